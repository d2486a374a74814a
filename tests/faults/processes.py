"""Processes of a lab: started on their host, killed, frozen and started again, with one log file each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_HTTP_TIMEOUT_S = 3.0


class LabProcess:
    """One process that can be ended and started again as it was.

    Args:
        name: For the log file.
        command: What to run; the beginning may enter a host.
        folder: Where its log goes.
        environment: Beyond this process's own.
    """

    def __init__(self, name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str] = {}) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self.command = list(command)
        self.environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._ended = False

    @property
    def pid(self) -> int:
        """Process id while it runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it runs, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def died(self) -> bool:
        """Whether it was started and has ended without being told to."""
        return self._process is not None and not self._ended and self._process.poll() is not None

    def start(self) -> None:
        """Starts it, unless it runs."""
        if self.running:
            return
        self._ended = False
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=CHECKOUT,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def freeze(self) -> None:
        """Stops its time: SIGSTOP."""
        self._frozen = True
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on: SIGCONT."""
        if self._frozen and self.running:
            os.kill(self.pid, signal.SIGCONT)
        self._frozen = False

    def kill(self) -> None:
        """Ends it at once: SIGKILL."""
        self._ended = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._frozen = False

    def stop(self, timeout_s: float = 20.0) -> None:
        """Asks it to end and waits until it has: SIGTERM."""
        self._ended = True
        if self._process is not None:
            self.thaw()
            self._process.terminate()
            self._process.wait(timeout_s)

    def end(self, timeout_s: float = 20.0) -> None:
        """Ends it in order where it still can, else at once."""
        try:
            self.stop(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def log(self) -> str:
        """What it has written."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


class Service(LabProcess):
    """A process of the platform: one Python module with settings, a gRPC and an ops port.

    Args:
        name: Its instance id.
        module: What `python -m` runs.
        folder: Where its log goes.
        enter: The beginning of the command.
        address: Its host's address.
        ports: Its gRPC and ops ports.
        settings: Its settings, by name.
    """

    def __init__(
        self,
        name: str,
        module: str,
        folder: Path,
        *,
        enter: Sequence[str],
        address: str,
        ports: tuple[int, int],
        settings: Mapping[str, object],
    ) -> None:
        self.module = module
        self._enter = list(enter)
        self.grpc_address = f"{address}:{ports[0]}"
        self.ops_url = f"http://{address}:{ports[1]}"
        common = {
            "instance_id": name,
            "bind_host": address,
            "grpc_port": ports[0],
            "ops_port": ports[1],
            "supervisor_pid": os.getpid(),
            "drain_grace_s": 1.0,
        }
        self._flags = [f"--{key.replace('_', '-')}={value}" for key, value in (common | dict(settings)).items()]
        super().__init__(name, [], folder)
        self.runs(module)

    def runs(self, module: str, **environment: str) -> None:
        """Says what its next start runs: the product's module, or a mutant of it, with these variables."""
        self.command = [*self._enter, sys.executable, "-m", module, *self._flags]
        self.environment = dict(environment)

    def as_shipped(self) -> bool:
        """Whether its next start runs the product's own module, as always."""
        return self.command == [*self._enter, sys.executable, "-m", self.module, *self._flags] and not self.environment

    def ready(self) -> bool:
        """Whether /readyz says so."""
        try:
            return bool(self._get("/readyz"))
        except OSError:
            return False

    def metrics(self) -> str:
        """What /metrics says.

        Raises:
            OSError: It does not answer.
        """
        return self._get("/metrics")

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.ops_url + path, timeout=_HTTP_TIMEOUT_S) as response:
            return str(response.read().decode())
