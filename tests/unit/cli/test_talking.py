"""generate, chat, replay, top, doctor, completion, version: what people try first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead import QuotaExceededError
from fairlead.inference.v1 import inference_pb2
from tests.support.fake_platform import FakePlatform
from tests.unit.cli.conftest import Command

ROOT = Path(__file__).resolve().parents[3]


def test_generate_streams_and_says_what_it_cost(command: Command) -> None:
    """The text goes to standard output, the account beside it; the only model need not be named."""
    result = command.run("generate", "Once upon a time", "--max-tokens", "3")
    assert result.stdout == "w0 w1 w2\n"
    assert "3 out" in result.stderr
    assert "0.034 MU (estimated 0.164)" in result.stderr
    assert "replica replica-1" in result.stderr


def test_generate_as_json(command: Command, platform: FakePlatform) -> None:
    """Programs get one object with text, usage, cost and times; every option is sent."""
    line = "generate hello --max-tokens 2 --temperature 0 --session s --priority batch --stop END --request-id r1"
    answer = command.json(*line.split())
    assert (answer["text"], answer["finish_reason"], answer["request_id"]) == ("w0 w1", "length", "r1")
    assert answer["usage"] == {"input_tokens": 1, "cached_input_tokens": 0, "output_tokens": 2}
    assert answer["cost"]["settled_milli_mu"] == 21
    assert answer["ttft_s"] > 0
    sent = platform.router.seen[-1].request
    assert (sent.session_id, list(sent.sampling.stop)) == ("s", ["END"])
    assert sent.priority == inference_pb2.PRIORITY_BATCH


def test_text_is_read_from_a_pipe(command: Command, platform: FakePlatform) -> None:
    """generate and chat take their text from standard input; what is not UTF-8 is refused."""
    command.run("generate", "--max-tokens", "1", stdin="from a pipe")
    assert platform.router.seen[-1].request.prompt == "from a pipe"
    command.run("chat", "--system", "Be brief", "--max-tokens", "1", stdin="a question")
    turns = platform.router.seen[-1].request.chat.messages
    assert [(turn.role, turn.content) for turn in turns] == [("system", "Be brief"), ("user", "a question")]
    assert "UTF-8" in command.run("generate", "-", exit_code=2, stdin=b"\xff\xfe").stderr


def test_a_quota_refusal_says_when_to_come_back(command: Command, platform: FakePlatform) -> None:
    """The exit code tells a script that it was the quota."""
    platform.router.refusals.append(QuotaExceededError("the quota of alpha is used up", retry_after_s=90.0))
    message = command.error("generate", "x", exit_code=7)
    assert "come back in 90.0 s" in message
    assert "fairlead quota get" in message


def test_several_models_must_be_told_apart(command: Command, platform: FakePlatform) -> None:
    """With more than one model the error lists them."""
    platform.router.models.append(inference_pb2.ModelInfo(id="other"))
    assert "tiny, other" in command.error("generate", "x", exit_code=5)


def write_platform(folder: Path, platform: FakePlatform, pid: int) -> None:
    run = folder / "build" / "run"
    run.mkdir(parents=True)
    (run / "admin.token").write_text(platform.control.token)
    data = {
        "http": "http://127.0.0.1:8080",
        "grpc": platform.address,
        "admin": platform.admin_address,
        "admin_token_file": "admin.token",
        "metrics": {"router-1": "127.0.0.1:1"},
        "tenants": {
            "alpha": {"key": "fl-key-alpha", "model": "tiny"},
            "beta": {"key": "fl-key-beta", "model": "tiny"},
        },
        "processes": [{"name": "router-1", "pid": pid}],
    }
    (run / "platform.json").write_text(json.dumps(data))


@pytest.fixture
def beside(platform: FakePlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command without any setting, in a folder below one with a local platform."""
    import os

    write_platform(tmp_path, platform, os.getpid())
    below = tmp_path / "some" / "where"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    return Command({})


def test_a_local_platform_is_found(beside: Command, platform: FakePlatform) -> None:
    """Addresses, token and keys come from build/run/platform.json of a folder above; --tenant picks the key."""
    assert [row["tenant_id"] for row in beside.json("tenants", "list")] == ["alpha"]
    beside.run("generate", "x", "--tenant", "beta", "--max-tokens", "1")
    assert platform.router.seen[-1].metadata["authorization"] == "Bearer fl-key-beta"
    assert "alpha, beta" in beside.error("generate", "x", "--tenant", "gamma", exit_code=2)


def test_local_keys_go_nowhere_else(beside: Command, platform: FakePlatform) -> None:
    """An address given by hand switches the local platform off, keys included."""
    assert "no API key" in beside.error("generate", "x", "--address", platform.address, exit_code=4)


def test_replay_of_the_shipped_excerpt(beside: Command, tmp_path: Path) -> None:
    """Ten recorded seconds at speed 50 reach both tenants; the table, the JSON and the samples agree."""
    samples = tmp_path / "samples.jsonl"
    line = f"replay --duration 10 --speed 50 --samples {samples}"
    report = beside.json(*line.split())
    assert report["trace"] == "azure_conv_excerpt.csv.gz"
    assert report["total"]["ok"] == report["total"]["received"] > 20
    assert report["total"]["difference"] == 0
    assert [tenant["tenant"] for tenant in report["tenants"]] == ["alpha", "beta"]
    rows = [json.loads(row) for row in samples.read_text().splitlines()]
    assert sum(row["settled_milli_mu"] for row in rows) == report["total"]["settled_milli_mu"]
    result = beside.run("replay", "--duration", "2", "--speed", "50", "--tenant", "beta")
    assert "beta" in result.stdout
    assert "alpha" not in result.stdout
    assert "made-up words" in result.stdout
    assert "difference 0: as it must be" in result.stdout


def test_replay_targets_from_a_file(command: Command, tmp_path: Path) -> None:
    """Tenants, keys and shares can be written down; what is wrong in the file is said."""
    file = tmp_path / "targets.yaml"
    file.write_text("- {name: a, key: fl-key-alpha, weight: 3}\n- {name: b, key: fl-key-beta}\n")
    report = command.json("replay", "--duration", "10", "--speed", "50", "--targets", str(file))
    counts = [tenant["received"] for tenant in report["tenants"]]
    assert counts[0] > counts[1] > 0
    file.write_text("- {name: a, key: k, colour: red}\n")
    assert "unknown field colour" in command.error("replay", "--targets", str(file), exit_code=2)
    file.write_text("name: a\n")
    assert "list of targets" in command.error("replay", "--targets", str(file), exit_code=2)
    assert "cannot read the trace" in command.error("replay", "none.csv", exit_code=2)


def test_top_takes_a_look(command: Command) -> None:
    """One look holds capacity, quotas and replicas; an agent out of reach is shown as such."""
    look = command.json("top", "--once")
    assert set(look) == {"capacity", "quotas", "replicas", "problems"}
    assert look["replicas"][0]["load"] is None
    shown = command.run("top", "--once").stdout
    assert "tiny-r1" in shown
    assert "alpha" in shown


def test_doctor_finds_nothing_wrong_on_a_sound_platform(beside: Command) -> None:
    """Every check passes, each once."""
    report = beside.json("doctor")
    assert report["healthy"]
    assert {check["check"]: check["verdict"] for check in report["checks"]} == dict.fromkeys(
        [
            "versions",
            "configuration",
            "processes",
            "encryption",
            "router",
            "key",
            "control-plane",
            "services",
            "replicas",
            "quotas",
            "leases",
            "clock",
        ],
        "good",
    )
    assert "nothing is wrong" in beside.run("doctor").stdout


def wrong(command: Command, *args: str) -> dict[str, dict[str, str]]:
    report = command.json("doctor", *args, exit_code=1)
    return {check["check"]: check for check in report["checks"] if check["verdict"] == "wrong"}


def test_doctor_names_each_trouble_and_its_remedy(command: Command, platform: FakePlatform) -> None:
    """A wrong key, no leader, no ready replica, a shortfall, a silent limiter: each is found and has a remedy."""
    found = wrong(command, "--api-key", "fl-nobody")
    assert set(found) == {"key"}
    control = platform.control
    control.services = [service for service in control.services if service.service != "capacity"]
    control.replicas.clear()
    control.without_limiter = True
    found = wrong(command)
    assert set(found) == {"services", "replicas", "quotas", "leases"}
    assert "capacity" in found["services"]["detail"]
    assert "tiny lacks 60.0 MU/min" in found["quotas"]["detail"]
    assert all(finding["remedy"] for finding in found.values())


def test_doctor_can_do_without_an_autoscaler(command: Command, platform: FakePlatform) -> None:
    """Where replicas are scaled by hand, a missing autoscaler is doubtful, not wrong."""
    control = platform.control
    control.services = [service for service in control.services if service.service != "autoscaler"]
    report = command.json("doctor")
    (services,) = [check for check in report["checks"] if check["check"] == "services"]
    assert (services["verdict"], "autoscaler" in services["detail"]) == ("doubtful", True)


def test_doctor_sees_a_clock_that_is_off(command: Command, platform: FakePlatform) -> None:
    """A platform an hour ahead is doubtful, not wrong."""
    platform.control.clock_skew_s = 3600
    report = command.json("doctor")
    (clock,) = [check for check in report["checks"] if check["check"] == "clock"]
    assert (clock["verdict"], "3600 s ahead" in clock["detail"]) == ("doubtful", True)


def test_doctor_with_nothing_at_all() -> None:
    """Without a platform it still ends properly and says how to start one."""
    nothing = Command({"FAIRLEAD_ADDRESS": "127.0.0.1:9", "FAIRLEAD_ADMIN_ADDRESS": "127.0.0.1:9"})
    assert set(wrong(nothing)) == {"router"}
    broken = Command({"FAIRLEAD_OUTPUT": "xml"})
    assert "output must be one of" in broken.run("doctor", exit_code=1).stdout


def test_doctor_tells_a_dead_platform_from_a_sick_one(platform: FakePlatform, tmp_path: Path) -> None:
    """A file left over from a platform that no longer runs is recognised by its processes."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    write_platform(tmp_path, platform, process.pid)
    assert "no longer runs" in wrong(Command({}))["processes"]["detail"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(command: Command, shell: str) -> None:
    """Each shell gets a script that calls the command back."""
    assert "_FAIRLEAD_COMPLETE" in command.run("completion", shell).stdout


def test_the_command_as_a_process(tmp_path: Path) -> None:
    """The installed entry point works: version, a completion, and an error, without a traceback."""
    code = "from fairlead.cli import main; main()"

    def run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        import os

        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), **more}
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=60,
        )

    version = run("version", "-o", "json")
    assert (version.returncode, set(json.loads(version.stdout))) == (0, {"fairlead", "python", "grpcio"})
    completed = run(_FAIRLEAD_COMPLETE="bash_complete", COMP_WORDS="fairlead te", COMP_CWORD="1")
    assert completed.stdout.split(",")[-1].strip() == "tenants"
    failed = run("tenants", "lits")
    assert (failed.returncode, "Traceback" in failed.stderr) == (2, False)
    assert "did you mean list?" in failed.stderr
