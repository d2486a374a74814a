"""The platform's processes, each on a leash, each with its own ports, so that one can be killed and brought back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.report import ROOT
from deploy.local import leash
from deploy.local.ports import HOST

STOP_GRACE_S: Final = 8.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_LOG_TAIL_CHARACTERS: Final = 2_000


class Process:
    """One process of the platform.

    Args:
        name: Unique; also the log file's name.
        command: Program and arguments.
        log_dir: Where its log goes.
    """

    def __init__(self, name: str, command: Sequence[str], log_dir: Path) -> None:
        self.name = name
        self.command = list(command)
        self.log_path = log_dir / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; the kernel ends it when this process dies."""
        own = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), str(int(signal.SIGKILL))]
        with self.log_path.open("ab") as output:
            self._process = subprocess.Popen(
                [*own, *self.command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id; it must have been started."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal; it must run."""
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self) -> None:
        """Ends it: SIGTERM, and SIGKILL after a grace."""
        if not self.running:
            return
        assert self._process is not None
        self.signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            await self.kill()

    async def kill(self) -> None:
        """Ends it at once."""
        if self.running:
            assert self._process is not None
            self.signal(signal.SIGKILL)
            await asyncio.to_thread(self._process.wait)

    def cpu_s(self) -> float:
        """CPU time it has used, seconds; 0 once it has ended."""
        if not self.running:
            return 0.0
        assert self._process is not None
        return cpu_s(self._process.pid)

    def last_words(self) -> str:
        """The end of its log, for errors."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return f"{self.name}:\n{text[-_LOG_TAIL_CHARACTERS:]}"


def cpu_s(pid: int) -> float:
    """User and system time of a process, seconds; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def service(module: str, name: str, settings: Mapping[str, object]) -> list[str]:
    """The command line of a service.

    Args:
        module: As in `python -m`.
        name: Its instance id.
        settings: Further settings, named as in its config.
    """
    common = {"instance_id": name, "bind_host": HOST, "supervisor_pid": os.getpid(), "drain_grace_s": 3.0}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in (common | dict(settings)).items()]
    return [sys.executable, "-m", *module.split(), *flags]


def machine_cpu() -> tuple[float, float]:
    """(busy, total) CPU time of the whole machine since its start, seconds over all cores.

    Time stolen by the host counts as busy: nobody here had it.
    """
    values = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = values[3] + values[4]
    return (sum(values) - idle) / _TICKS_PER_S, sum(values) / _TICKS_PER_S
