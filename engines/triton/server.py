"""tritonserver as a child process: started with a deadline, stopped for certain, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from engines.triton.environment import TritonEnvironment, TritonEnvironmentError, open_environment
from engines.triton.guard import remove_shared_memory
from fairlead.errors import Reason, UnavailableError

_GUARD = Path(__file__).with_name("guard.py")
_HOST = "127.0.0.1"
# tritonserver gets this long to end requests in flight, then the guard a little longer to end tritonserver.
_EXIT_TIMEOUT_S = 3
_GRACE_S = _EXIT_TIMEOUT_S + 2
_STOP_S = _GRACE_S + 5
_LOG_TAIL_BYTES = 8192
_SPAN_DELAY_MS = 500


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How tritonserver runs.

    Attributes:
        environment: The Triton environment.
        repository: The model repository.
        log_file: Where its output goes; the output of the run before stays beside it with the suffix ".1".
        otlp_traces_url: OTLP/HTTP URL that its OpenTelemetry spans go to, "http://host:4318/v1/traces"; empty for none.
    """

    environment: Path
    repository: Path
    log_file: Path
    otlp_traces_url: str = ""


class TritonServer:
    """One tritonserver process on free ports of the loopback interface.

    Args:
        settings: How it runs.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._guard: asyncio.subprocess.Process | None = None
        self._server_pid = 0
        self._shm_prefix = ""
        self.address = ""
        self.metrics_address = ""

    @property
    def process_id(self) -> int:
        """Process id of tritonserver, or 0 while there is none."""
        return self._server_pid if self.alive() else 0

    def alive(self) -> bool:
        """Whether the process exists."""
        return self._guard is not None and self._guard.returncode is None

    async def start(self) -> None:
        """Starts the process and returns once it exists; serving takes it a few seconds more.

        Raises:
            UnavailableError: The Triton environment is missing or incomplete.
        """
        await self.stop()
        try:
            environment = await asyncio.to_thread(open_environment, self._settings.environment)
        except TritonEnvironmentError as error:
            raise UnavailableError(str(error), reason=Reason.ENGINE_MISSING) from error
        grpc_port, metrics_port = _free_ports()
        self.address, self.metrics_address = f"{_HOST}:{grpc_port}", f"{_HOST}:{metrics_port}"
        self._shm_prefix = f"fairlead-{os.getpid()}-{secrets.token_hex(4)}-"
        command = [
            sys.executable,
            "-I",
            str(_GUARD),
            "--shm-prefix",
            self._shm_prefix,
            "--grace-s",
            str(_GRACE_S),
            "--library-path",
            environment.library_path,
            "--",
        ]
        command += _command(environment, self._settings, grpc_port, metrics_port, self._shm_prefix)
        log_file = self._settings.log_file
        log_file.parent.mkdir(parents=True, exist_ok=True)
        if log_file.exists():
            log_file.replace(log_file.with_name(log_file.name + ".1"))
        with log_file.open("wb") as log:
            self._guard = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=_process_environment(environment),
                start_new_session=True,
            )
        assert self._guard.stdout is not None
        line = await self._guard.stdout.readline()
        if not line.strip().isdigit():
            await self.stop()
            raise UnavailableError(f"tritonserver did not start: {self.log_tail()}", reason=Reason.ENGINE_FAILED)
        self._server_pid = int(line)

    async def stop(self) -> None:
        """Ends the process and all it has started, by force after a grace time. Safe to call twice."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        if guard.returncode is None:
            guard.terminate()
        try:
            async with asyncio.timeout(_STOP_S):
                await guard.wait()
        except TimeoutError:
            os.killpg(self._server_pid, signal.SIGKILL)
            guard.kill()
            await guard.wait()
        remove_shared_memory(self._shm_prefix)  # the guard has, unless it was killed

    def log_tail(self) -> str:
        """The last lines of the log that tell of an error, for error messages."""
        try:
            text = self._settings.log_file.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return "no log"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(("E", "error")) or "rror" in line]
        return " | ".join((telling or lines)[-3:]) or "its log is empty"


def _command(
    environment: TritonEnvironment, settings: ServerSettings, grpc_port: int, metrics_port: int, prefix: str
) -> list[str]:
    command = [
        str(environment.server),
        f"--model-repository={settings.repository}",
        f"--backend-directory={environment.backends}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--grpc-address={_HOST}",
        f"--grpc-port={grpc_port}",
        "--allow-http=false",
        f"--metrics-address={_HOST}",
        f"--metrics-port={metrics_port}",
        "--allow-gpu-metrics=false",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
    ]
    if settings.otlp_traces_url:
        # Rate 0 traces exactly those requests that bring a traceparent.
        values = ("mode=opentelemetry", "level=TIMESTAMPS", "rate=0", "count=-1")
        resource = "resource=service.name=fairlead-triton"
        exporter = (f"url={settings.otlp_traces_url}", resource, f"bsp_schedule_delay={_SPAN_DELAY_MS}")
        command += [f"--trace-config={value}" for value in values]
        command += [f"--trace-config=opentelemetry,{value}" for value in exporter]
    return command


def _process_environment(environment: TritonEnvironment) -> dict[str, str]:
    # The stub's embedded Python finds its packages by the first python on the PATH.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"PATH": f"{environment.root / 'bin'}:{os.environ.get('PATH', os.defpath)}"}


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind((_HOST, 0))
        return int(first.getsockname()[1]), int(second.getsockname()[1])
