"""The platform in containers, as `docker compose up` makes it: real etcd, a real Triton with a real engine.

One platform serves all tests of this file, on free ports, under a project name of its own; it is torn down with its
volumes. Skipped, with the reason, only where no Docker Engine or none of its base images can be had.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import fairlead
from tests.docker.compose_project import CHECKOUT, ComposeProject, reason_to_skip
from tests.docker.traffic import Traffic
from tests.support.waiting import eventually

# The first build installs some 600 MB of packages; on two busy cores that takes a minute or two.
pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
BUILD_TIMEOUT_S = 300.0
UP_TIMEOUT_S = 300.0
ONE_SHOTS = {"secrets", "setup"}
SERVICES = {"etcd", "control-plane", "ratelimiter", "capacity", "router", "replica", "edge", "prometheus"}


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform that serves."""

    project: ComposeProject
    http: str
    grpc: str
    key: str
    model: str

    def client(self) -> fairlead.Client:
        return fairlead.Client(self.grpc, api_key=self.key, deadline_s=30.0)


@pytest.fixture(scope="module")
def platform(request: pytest.FixtureRequest) -> Iterator[Platform]:
    """Builds and starts the platform with two replicas, once for this file."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    project = ComposeProject(f"fairlead-test-{secrets.token_hex(3)}", {"FAIRLEAD_VERSION": "test"})
    try:
        project.compose("build", "--quiet", timeout_s=BUILD_TIMEOUT_S)
        project.compose("up", "--detach", "--scale", "router=1", timeout_s=UP_TIMEOUT_S)
        said = json.loads(project.compose("run", "--rm", "--no-deps", "-T", "keys"))
        assert (said["http"], said["grpc"]) == (
            f"http://127.0.0.1:{project.http_port}",
            f"127.0.0.1:{project.grpc_port}",
        )
        tenant = said["tenants"]["acme"]
        yield Platform(project, said["http"], said["grpc"], tenant["key"], tenant["model"])
    except BaseException:
        print(project.compose("logs", "--tail", "40", "--no-color"))
        raise
    finally:
        if request.session.testsfailed:
            print(project.compose("logs", "--tail", "40", "--no-color"))
        project.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "3")


async def served(platform: Platform) -> fairlead.Generation:
    """Returns the answer to one request, as soon as the platform can serve it."""
    answers: list[fairlead.Generation] = []

    def ask() -> bool:
        with platform.client() as client:
            answers.append(client.generate("Once upon a time", model=platform.model, max_tokens=8))
        return True

    await eventually(ask, timeout_s=60.0, what="a request served")
    return answers[-1]


def chat_over_http(platform: Platform) -> dict[str, Any]:
    """Returns OpenAI's answer to one chat request."""
    request = urllib.request.Request(
        f"{platform.http}/v1/chat/completions",
        data=json.dumps(
            {"model": platform.model, "max_tokens": 6, "messages": [{"role": "user", "content": "Hello"}]}
        ).encode(),
        headers={"authorization": f"Bearer {platform.key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


@pytest.mark.parametrize("profile", ["", "gpu", "tools"])
@pytest.mark.parametrize("engine", ["triton", "sim"])
def test_file_is_valid_without_settings(profile: str, engine: str) -> None:
    """Proves that every profile of compose.yaml is valid with no .env file, for both engines."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    project = ComposeProject("fairlead-test-config", {"ENGINE": engine})
    said = json.loads(project.compose(*(["--profile", profile] if profile else []), "config", "--format", "json"))
    assert set(said["services"]) >= SERVICES | ONE_SHOTS
    assert ("triton-gpu" in said["services"]) == (profile == "gpu")
    assert said["services"]["replica"]["build"]["target"] == f"replica-{engine}"


async def test_requests_through_published_ports(platform: Platform) -> None:
    """Proves that gRPC with the SDK and OpenAI's HTTP API are served through the published ports by a real engine."""
    answer = await served(platform)
    assert answer.usage.output_tokens == 8
    assert answer.cost.settled_mu > 0
    body = chat_over_http(platform)
    assert body["usage"]["completion_tokens"] == 6
    assert body["choices"][0]["message"]["role"] == "assistant"


def test_command_line_in_a_container(platform: Platform) -> None:
    """Proves that the CLI of the `cli` container finds the platform, its admin token and a tenant's key by itself."""
    cli = ("run", "--rm", "--no-deps", "-T", "cli")
    replicas = json.loads(platform.project.compose(*cli, "replicas", "list", "-o", "json"))
    assert len(replicas) == 2
    said = platform.project.compose(*cli, "generate", "Once upon a time", "--max-tokens", "4", "--tenant", "globex")
    assert said.strip()


def test_containers_are_locked_down(platform: Platform) -> None:
    """Proves of every container: no root, read-only, no capability, no way to new ones, bounded memory and logs."""
    seen = set()
    for container in platform.project.containers(stopped=True):
        described = platform.project.inspect(container)
        name, host = described["Name"], described["HostConfig"]
        seen.add(described["Config"]["Labels"]["com.docker.compose.service"])
        assert described["Config"]["User"] == "10001:10001", name
        assert host["ReadonlyRootfs"], name
        assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], None), name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert host["Memory"] > 0, name
        assert host["PidsLimit"] > 0, name
        assert host["LogConfig"]["Config"]["max-size"] == "10m", name
        assert not host["Privileged"], name
        assert not [mount for mount in described["Mounts"] if mount["Source"].endswith("docker.sock")], name
    assert seen == SERVICES | ONE_SHOTS
    for container in platform.project.containers():
        status = platform.project.execute(container, "cat", "/proc/1/status")
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split() == ["10001"] * 4
        assert {int(fields[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")} == {0}
        assert fields["NoNewPrivs"] == "1"
        assert "Read-only file system" in platform.project.execute(container, "touch", "/opt/written")


def test_secrets_are_apart_and_in_no_log(platform: Platform) -> None:
    """Proves that only control planes hold the admin token, replicas hold nothing, and no log shows token or key."""
    project = platform.project
    listed = {
        service: project.execute(project.containers(service)[0], "find", "/var/lib/fairlead", "-type", "f")
        for service in ("control-plane", "router", "replica", "capacity")
    }
    assert "admin-token" in listed["control-plane"]
    assert "key-pepper" in listed["control-plane"]
    assert "admin-token" not in listed["router"]
    assert "key-pepper" in listed["router"]
    assert "key-pepper" not in listed["replica"] + listed["capacity"]
    assert "admin-token" not in listed["replica"] + listed["capacity"]
    control_plane = project.containers("control-plane")[0]
    token = project.execute(control_plane, "cat", "/var/lib/fairlead/admin/admin-token")
    logs = project.compose("logs", "--no-color")
    assert len(token) > 30
    assert token not in logs
    assert platform.key not in logs
    assert platform.key.split("-")[2] not in logs


async def test_traffic_goes_on_without_a_replica(platform: Platform) -> None:
    """Proves that with one of two replica containers killed under traffic every request is still answered."""
    await served(platform)
    replicas = platform.project.containers("replica")
    assert len(replicas) == 2
    with Traffic(platform.grpc, platform.key, platform.model) as traffic:
        await eventually(
            lambda: len({outcome.replica_id for outcome in traffic.outcomes() if outcome.replica_id}) == 2,
            timeout_s=60.0,
            what="both replicas serve",
        )
        killed_s = time.monotonic()
        platform.project.kill(replicas[0])
        # Longer than the agent's lease, so that both the hole and the time after it are seen.
        await eventually(lambda: time.monotonic() > killed_s + 8 and traffic.served(killed_s) >= 10, timeout_s=60.0)
        after = traffic.outcomes(killed_s)
    assert not [outcome.failure for outcome in after if outcome.failure]
    settled = {outcome.replica_id for outcome in after[-5:]}
    assert len(settled) == 1


async def test_routers_scale_and_fail_behind_one_address(platform: Platform) -> None:
    """Proves that `--scale router=2` adds a router behind the same port, and that killing the first is survived."""
    project = platform.project
    first = project.containers("router")
    project.compose("up", "--detach", "--no-recreate", "--scale", "router=2", timeout_s=120.0)
    query = 'fairlead_edge_ready_backends{service="router"}'
    await eventually(lambda: 2.0 in project.prometheus(query).values(), timeout_s=60.0, what="two routers ready")
    await eventually(lambda: sum(project.prometheus('up{job="router"}').values()) == 2, timeout_s=60.0)
    project.kill(first[0])
    with Traffic(platform.grpc, platform.key, platform.model, workers=2) as traffic:
        await eventually(lambda: traffic.served() >= 6, timeout_s=60.0, what="requests served by the second router")
    assert not [outcome.failure for outcome in traffic.outcomes() if outcome.failure]


async def test_gpu_profile_with_a_cpu_in_its_place(platform: Platform) -> None:
    """Proves the gpu profile's wiring: an agent in external-endpoint mode serves a Triton it does not own, LLM API."""
    project = platform.project
    files = ("-f", "compose.yaml", "-f", "tests/docker/gpu_standin.yaml", "--profile", "gpu")
    parts = ("triton-gpu", "setup-gpu", "replica-gpu")
    project.compose(*files, "up", "--detach", "--no-recreate", *parts, timeout_s=120.0)

    def ask() -> bool:
        with platform.client() as client:
            answer = client.generate("Once upon a time", model="llama-3.1-8b-gpu", max_tokens=5)
        return answer.usage.output_tokens == 5

    await eventually(ask, timeout_s=60.0, what="a request served by the external Triton")
    job = "up{job='triton-gpu'}"
    await eventually(lambda: 1.0 in project.prometheus(job).values(), timeout_s=30.0, what="its metrics scraped")
    project.compose(*files, "rm", "--stop", "--force", *parts)


async def test_prometheus_sees_every_process(platform: Platform) -> None:
    """Proves that each service's processes are scraped, the replicas among them."""
    jobs = ("etcd", "control-plane", "ratelimiter", "capacity", "router", "replica", "edge", "prometheus")

    def all_up() -> bool:
        return all(1.0 in platform.project.prometheus(f'up{{job="{job}"}}').values() for job in jobs)

    await eventually(all_up, timeout_s=60.0, what="every job has a target that is up")


async def test_routers_and_replicas_go_on_alone(platform: Platform) -> None:
    """Proves that requests are served with etcd and the control side stopped, also by a router that restarts then."""
    project = platform.project
    project.compose("stop", "--timeout", "3", "control-plane", "ratelimiter", "capacity", "etcd")
    for _ in range(2):
        answer = await served(platform)
        assert answer.usage.output_tokens == 8
        project.compose("restart", "--timeout", "10", "--no-deps", "router")
    project.compose("up", "--detach", "--no-recreate", "--scale", "router=2", timeout_s=120.0)


async def test_a_second_up_changes_nothing(platform: Platform) -> None:
    """Proves that `docker compose up` again keeps secrets, model, tenants and keys."""
    project = platform.project
    project.compose("up", "--detach", "--no-recreate", "--scale", "router=2", timeout_s=120.0)
    logs = project.compose("logs", "--no-color", "secrets")
    assert logs.count("created") == 2
    said = json.loads(project.compose("run", "--rm", "--no-deps", "-T", "keys"))
    assert said["tenants"]["acme"]["key"] == platform.key
    assert (await served(platform)).usage.output_tokens == 8


def test_context_holds_no_build_output() -> None:
    """Proves that the build context is an allow-list: neither build/ nor .git ever reaches a builder."""
    rules = (CHECKOUT / ".dockerignore").read_text().splitlines()
    assert rules[[bool(rule) and not rule.startswith("#") for rule in rules].index(True)] == "*"
    assert not {"!build", "!.git", "!."} & {rule.rstrip("/*") for rule in rules}


def test_offline_script_is_sound() -> None:
    """Proves that tools/offline-images.sh parses and makes the images that compose file and Dockerfile use."""
    script = CHECKOUT / "tools" / "offline-images.sh"
    assert subprocess.run(["bash", "-n", str(script)], timeout=30).returncode == 0
    used = (CHECKOUT / "compose.yaml").read_text() + (CHECKOUT / "deploy/docker/Dockerfile").read_text()
    text = script.read_text()
    for image in ("python:3.11-slim-bookworm", "quay.io/coreos/etcd:v3.5.16", "prom/prometheus:v2.53.3"):
        assert image in used
        assert f"name={image}" in text
