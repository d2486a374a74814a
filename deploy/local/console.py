"""What the launcher says to the person in front of it."""

from __future__ import annotations

import signal
import sys
import time


class StartError(RuntimeError):
    """The platform cannot start; the message says what is wrong and what to do."""


def stop_signals() -> list[signal.Signals]:
    """Signals that ask the launcher to stop; a hang-up that nohup has it ignore stays ignored."""
    asked = [signal.SIGINT, signal.SIGTERM]
    return asked if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [*asked, signal.SIGHUP]


class Console:
    """Prints lines with the seconds since the beginning. A reader that went away never stops the platform."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def step(self, text: str) -> None:
        """Prints what just happened."""
        self.say(f"[{time.monotonic() - self._began:5.1f} s] {text}")

    def say(self, text: str = "") -> None:
        """Prints one line, or several."""
        try:
            print(text, flush=True)
        except (OSError, ValueError):
            return

    def complain(self, text: str) -> None:
        """Prints to standard error."""
        try:
            print(text, file=sys.stderr, flush=True)
        except (OSError, ValueError):
            return
