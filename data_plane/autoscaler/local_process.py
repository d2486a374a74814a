"""The actuator of one machine: every replica agent is a process in a session of its own.

Each seat is a file `{state_dir}/{model}/{slot}.json`. Its exclusive lock is held by the agent itself (see
seat_process), which makes the file the truth about the agent over any restart of the autoscaler: locked means alive,
and a second start of the same seat cannot even get as far as a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from common.logs import get_logger
from data_plane.autoscaler import seat_process
from data_plane.autoscaler.actuator import RunningSeat
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import UnavailableError

log = get_logger(__name__)

LOG_BYTES_MAX = 16 << 20
_POLL_S = 0.05

AgentCommand = Callable[[admin_pb2.Model, str], list[str]]
"""Makes the command line of an agent from its model and slot."""


class LocalProcessActuator:
    """Runs agents as processes of this machine.

    Args:
        state_dir: Seat files; must outlive the autoscaler, not the machine.
        log_dir: One log file per seat, `{model}-{slot}.log`, kept over restarts of the seat.
        command: Makes an agent's command line.
        working_dir: Where agents run: the checkout.
        stop_grace_s: Seconds an agent gets after SIGTERM, before SIGKILL.
    """

    def __init__(
        self, *, state_dir: Path, log_dir: Path, command: AgentCommand, working_dir: Path, stop_grace_s: float
    ) -> None:
        self._state_dir = state_dir
        self._log_dir = log_dir
        self._command = command
        self._working_dir = working_dir
        self._stop_grace_s = stop_grace_s
        self._children: list[subprocess.Popen[bytes]] = []

    async def seats(self) -> tuple[RunningSeat, ...]:
        """See Actuator."""
        return await asyncio.to_thread(lambda: tuple(self._read_all()))

    async def start(self, model: admin_pb2.Model, slot: str) -> RunningSeat:
        """See Actuator."""
        try:
            return await asyncio.to_thread(self._start, model, slot)
        except OSError as error:
            raise UnavailableError(f"cannot start {slot} of {model.model_id}: {error}") from error

    async def stop(self, model_id: str, slot: str) -> None:
        """See Actuator."""
        path = self._path(model_id, slot)
        seat = await asyncio.to_thread(self._read, path)
        if seat is None or not seat.alive:
            return
        _signal(seat.pid, signal.SIGTERM)
        if not await self._ends(path, self._stop_grace_s):
            log.warning("agent did not end, killing it", model=model_id, slot=slot, pid=seat.pid)
            _signal_group(seat.pid, signal.SIGKILL)
            await self._ends(path, self._stop_grace_s)

    async def forget(self, model_id: str, slot: str) -> None:
        """See Actuator."""
        await asyncio.to_thread(self._forget, self._path(model_id, slot))

    def _path(self, model_id: str, slot: str) -> Path:
        return self._state_dir / model_id / f"{slot}.json"

    def _read_all(self) -> Iterator[RunningSeat]:
        self._children = [child for child in self._children if child.poll() is None]
        for path in sorted(self._state_dir.glob("*/*.json")):
            if (seat := self._read(path)) is not None:
                yield seat

    def _read(self, path: Path) -> RunningSeat | None:
        try:
            with path.open("rb") as file:
                alive = not _lock(file.fileno(), fcntl.LOCK_SH)
                start_number, pid = _parse(file.read())
        except FileNotFoundError:
            return None
        return RunningSeat(path.parent.name, path.stem, start_number, pid, alive)

    def _start(self, model: admin_pb2.Model, slot: str) -> RunningSeat:
        path = self._path(model.model_id, slot)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _lock(descriptor, fcntl.LOCK_EX):
                return self._read(path) or RunningSeat(model.model_id, slot, 0, 0, alive=True)
            if os.fstat(descriptor).st_nlink == 0:
                raise UnavailableError(f"{slot} of {model.model_id} was being forgotten; try again")
            number = _parse(os.pread(descriptor, 4096, 0))[0] + 1
            wrapper = [sys.executable, "-I", "-S", seat_process.__file__, str(descriptor), str(number), "--"]
            with self._open_log(model.model_id, slot) as output:
                child = subprocess.Popen(
                    [*wrapper, *self._command(model, slot)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self._working_dir,
                    pass_fds=[descriptor],
                    start_new_session=True,
                )
            self._children.append(child)
            return RunningSeat(model.model_id, slot, number, child.pid, alive=True)
        finally:
            os.close(descriptor)

    def _open_log(self, model_id: str, slot: str) -> BinaryIO:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        path = self._log_dir / f"{model_id}-{slot}.log"
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        return path.open("ab")

    def _forget(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if _lock(file.fileno(), fcntl.LOCK_EX):
                path.unlink()

    async def _ends(self, path: Path, patience_s: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while True:
                    seat = await asyncio.to_thread(self._read, path)
                    if seat is None or not seat.alive:
                        return True
                    await asyncio.sleep(_POLL_S)
        return False


def _lock(descriptor: int, kind: int) -> bool:
    """Tries to lock an open file; the lock ends with the last copy of the descriptor."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _parse(content: bytes) -> tuple[int, int]:
    """Start number and process id of a seat file; zeros between the lock and the first line of an agent's life."""
    try:
        state = json.loads(content)
        return int(state["start_number"]), int(state["pid"])
    except (ValueError, KeyError, TypeError):
        return 0, 0


def _signal(pid: int, number: signal.Signals) -> None:
    if pid > 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _signal_group(pid: int, number: signal.Signals) -> None:
    if pid > 0:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)
