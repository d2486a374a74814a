"""The processes the launcher starts itself: on a leash, with a log file each, restarted when they end by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local import leash
from deploy.local.console import Console, StartError

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
SETTLED_S = 60.0
LOG_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Program:
    """What to run.

    Attributes:
        name: Unique among the launcher's children; also the log file's name.
        command: Program and arguments.
        advice: What a person can do when it does not start.
        death_signal: Sent by the kernel when the launcher dies.
    """

    name: str
    command: Sequence[str]
    advice: str = ""
    death_signal: signal.Signals = signal.SIGKILL


class Child:
    """One program, kept running.

    Args:
        program: What to run.
        log_dir: Where its log goes.
        console: Told of unexpected ends.
    """

    def __init__(self, program: Program, log_dir: Path, console: Console) -> None:
        self.name = program.name
        self.log_path = log_dir / f"{program.name}.log"
        self._program = program
        self._console = console
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 while it does not run."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process is not None and running else 0

    async def keep_running(self, platform_up: asyncio.Event) -> None:
        """Starts the program, and again whenever it ends, until cancelled; cancelling leaves it running.

        Raises:
            StartError: It ended before the platform was up; the message holds the end of its log.
        """
        pause_s = BACKOFF_FIRST_S
        while True:
            began = time.monotonic()
            code = await self._run_once()
            if not platform_up.is_set():
                raise StartError(self._last_words(f"{self.name} did not start ({describe_exit(code)})"))
            if time.monotonic() - began >= SETTLED_S:
                pause_s = BACKOFF_FIRST_S
            self._console.step(
                f"{self.name} ended ({describe_exit(code)}); starting it again in {pause_s:g} s. Log: {self.log_path}"
            )
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, BACKOFF_MAX_S)

    async def _run_once(self) -> int:
        own = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), str(int(self._program.death_signal))]
        with self.log_path.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *own,
                *self._program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return await self._process.wait()

    def _last_words(self, headline: str) -> str:
        tail = log_tail(self.log_path)
        return "\n".join([f"{headline}. The end of {self.log_path}:", *tail, self._program.advice]).rstrip()

    async def stop(self, grace_s: float) -> None:
        """Ends the program: SIGTERM, and SIGKILL for its session after `grace_s` seconds."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of a log, indented."""
    try:
        return [f"    {line}" for line in path.read_text(errors="replace").splitlines()[-lines:]]
    except OSError:
        return []


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
