"""`docker compose` under a project name of the test's own, and what its containers say of themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.ports import free_port

CHECKOUT = Path(__file__).resolve().parents[2]
BASE_IMAGES = ("python:3.11-slim-bookworm", "quay.io/coreos/etcd:v3.5.16", "prom/prometheus:v2.53.3")
PULL_TIMEOUT_S = 120.0


def reason_to_skip() -> str:
    """Returns why no container can be started here, and what to do; empty where they can."""
    remedy = "install Docker with its compose plugin, or run tools/offline-images.sh as root on Debian 12"
    if shutil.which("docker") is None:
        return f"there is no docker command: {remedy}"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if done.returncode:
            return f"`{' '.join(command)}` fails ({done.stderr.strip()[-200:]}): {remedy}"
    for image in BASE_IMAGES:
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True, timeout=30).returncode == 0:
            continue
        try:
            pulled = subprocess.run(["docker", "pull", "-q", image], capture_output=True, timeout=PULL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"{image} is not here and no registry answers: {remedy}"
        if pulled.returncode:
            return f"{image} is not here and cannot be pulled: {remedy}"
    return ""


class ComposeProject:
    """The checkout's compose.yaml, unchanged, on free ports.

    Args:
        name: Project name; prefixes every container, network and volume.
        environment: Settings of compose.yaml besides the ports.
    """

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name = name
        self.http_port, self.grpc_port, self.admin_port, self.prometheus_port = (free_port() for _ in range(4))
        ports = {
            "HTTP_PORT": self.http_port,
            "GRPC_PORT": self.grpc_port,
            "ADMIN_PORT": self.admin_port,
            "PROMETHEUS_PORT": self.prometheus_port,
        }
        self._environment = os.environ | environment | {name: str(port) for name, port in ports.items()}

    def compose(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """Runs `docker compose` and returns its output; fails the test with that output when it fails."""
        # An empty env file in place of the developer's own .env: what is tested is the file and its defaults.
        command = ["docker", "compose", "--env-file", os.devnull, "-p", self.name, *arguments]
        done = subprocess.run(
            command, cwd=CHECKOUT, env=self._environment, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, (
            f"{' '.join(command)}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        )
        return done.stdout

    def containers(self, service: str = "", *, stopped: bool = False) -> list[str]:
        """Returns the ids of the project's running containers, of one service or all."""
        arguments = ["ps", "-q", *(["-a"] if stopped else []), *([service] if service else [])]
        return self.compose(*arguments).split()

    def inspect(self, container: str) -> dict[str, Any]:
        """Returns what the engine knows of a container."""
        done = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, timeout=30, check=True)
        described: list[dict[str, Any]] = json.loads(done.stdout)
        return described[0]

    def execute(self, container: str, *command: str) -> str:
        """Runs a command in a container and returns its output, whatever its status."""
        done = subprocess.run(["docker", "exec", container, *command], capture_output=True, text=True, timeout=30)
        return done.stdout + done.stderr

    def kill(self, container: str) -> None:
        """Ends a container as a crash would: SIGKILL, and no restart."""
        subprocess.run(["docker", "kill", container], capture_output=True, timeout=30, check=True)

    def prometheus(self, query: str) -> dict[str, float]:
        """Evaluates a query; returns value by instance."""
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/query?query={urllib.parse.quote(query)}"
        with urllib.request.urlopen(url, timeout=5) as response:
            results = json.load(response)["data"]["result"]
        return {result["metric"].get("instance", ""): float(result["value"][1]) for result in results}
