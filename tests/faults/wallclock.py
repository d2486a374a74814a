"""A wall clock that the tests can set for chosen processes; their monotonic clock is left alone."""

from __future__ import annotations

from pathlib import Path

_PATTERNS = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")


def library() -> Path | None:
    """libfaketime for programs with threads, where it is installed."""
    for pattern in _PATTERNS:
        for path in sorted(Path("/").glob(pattern.lstrip("/"))):
            return path
    return None


class WallClock:
    """The wall clock of the processes that run with its environment.

    Args:
        control: File the processes read it from.
        library: libfaketime.
    """

    def __init__(self, control: Path, library: Path) -> None:
        self._control = control
        self._library = library
        self.step(0)

    @property
    def environment(self) -> dict[str, str]:
        """What a process must be started with."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._control),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, seconds: int) -> None:
        """Sets it so many seconds ahead of the true time, or behind it."""
        scratch = self._control.with_suffix(".new")
        scratch.write_text(f"{seconds:+d}\n")
        scratch.replace(self._control)
