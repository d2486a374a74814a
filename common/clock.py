"""Two kinds of time, kept apart: monotonic for every decision, wall for people and records."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NewType, Protocol

MonotonicNs = NewType("MonotonicNs", int)
WallNs = NewType("WallNs", int)

NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """Where a service's I/O shell reads the time; pure cores get it as an argument."""

    def monotonic_ns(self) -> MonotonicNs:
        """Nanoseconds from an arbitrary start; never goes back, never jumps."""
        ...

    def wall_ns(self) -> WallNs:
        """Nanoseconds since the Unix epoch; may jump. For people and records only."""
        ...


class SystemClock:
    """The machine's clocks; see Clock. The system's own functions: a method around them costs twice as much."""

    monotonic_ns: Callable[[], MonotonicNs] = staticmethod(time.monotonic_ns)  # type: ignore[assignment]
    wall_ns: Callable[[], WallNs] = staticmethod(time.time_ns)  # type: ignore[assignment]


class FakeClock:
    """A clock that stands still until it is told otherwise.

    Args:
        monotonic_ns: Start of the monotonic clock.
        wall_ns: Start of the wall clock.
    """

    def __init__(self, monotonic_ns: int = NS_PER_S, wall_ns: int = 1_700_000_000 * NS_PER_S) -> None:
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns

    def monotonic_ns(self) -> MonotonicNs:
        """See Clock."""
        return MonotonicNs(self._monotonic_ns)

    def wall_ns(self) -> WallNs:
        """See Clock."""
        return WallNs(self._wall_ns)

    def advance(self, seconds: float) -> None:
        """Moves both clocks forward by `seconds`, 0 or more."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self._monotonic_ns += round(seconds * NS_PER_S)
        self._wall_ns += round(seconds * NS_PER_S)
