"""Runs the commands that build the environments, several at once, and says how far they are. Standard library only."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


class BuildError(RuntimeError):
    """An environment could not be made; the message says what to do."""


class Work:
    """The work under way: says what happens with the seconds since the beginning, and runs the commands that do it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()

    def say(self, text: str) -> None:
        """Prints one line."""
        with self._lock:
            print(f"[{time.monotonic() - self._began:5.1f} s] {text}", flush=True)

    def run(self, command: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> None:
        """Runs a command quietly.

        Raises:
            BuildError: It failed; the message holds the end of its output.
        """
        words = [str(word) for word in command]
        with subprocess.Popen(
            words,
            cwd=CHECKOUT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            self._running.add(process)
            output, _ = process.communicate()
            self._running.discard(process)
        if process.returncode:
            tail = "\n".join(f"    {line}" for line in output.splitlines()[-15:])
            raise BuildError(f"{Path(words[0]).name} {' '.join(words[1:5])} ... failed:\n{tail}")

    def stop(self) -> None:
        """Ends the commands that run now."""
        for process in list(self._running):
            process.terminate()
