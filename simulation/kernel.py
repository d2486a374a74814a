"""Virtual time: an event loop over a heap, and the seeds of everything random.

Events run in order of (time, the order in which they were planned), so a run depends on nothing but its scenario and
its seed. The clock is whole nanoseconds, as the product's cores count it. Nothing here is global.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Any, Final

from common.clock import MonotonicNs, WallNs

NS_PER_S: Final = 1_000_000_000

# The wall clock of a simulation begins here; only dates of records are made of it.
_WALL_START_NS: Final = 1_700_000_000 * NS_PER_S


class Loop:
    """The event loop. It is also the clock (`common.clock.Clock`) of the product's code that wants one.

    Attributes:
        now_ns: Virtual time.
        events: Events run so far.
    """

    __slots__ = ("_heap", "_sequence", "events", "now_ns")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._sequence = 0
        self.now_ns = 0
        self.events = 0

    def at(self, time_ns: int, action: Callable[[Any], None], argument: Any = None) -> None:
        """Plans `action(argument)` at a time; a time that has passed means now, after what is planned for now."""
        self._sequence += 1
        heapq.heappush(self._heap, (max(time_ns, self.now_ns), self._sequence, action, argument))

    def after(self, seconds: float, action: Callable[[Any], None], argument: Any = None) -> None:
        """Plans `action(argument)` in `seconds`."""
        self.at(self.now_ns + round(seconds * NS_PER_S), action, argument)

    def run(self, until_ns: int) -> None:
        """Runs every event up to and including `until_ns`, and moves the clock there."""
        heap, pop, events = self._heap, heapq.heappop, 0
        while heap and heap[0][0] <= until_ns:
            self.now_ns, _, action, argument = pop(heap)
            action(argument)
            events += 1
        self.events += events
        self.now_ns = max(self.now_ns, until_ns)

    def monotonic_ns(self) -> MonotonicNs:
        """Virtual time as a `Clock` tells it."""
        return MonotonicNs(self.now_ns)

    def wall_ns(self) -> WallNs:
        """Virtual wall time as a `Clock` tells it."""
        return WallNs(_WALL_START_NS + self.now_ns)


def stream(seed: int, *path: object) -> random.Random:
    """A random stream of its own for one purpose, so that one actor's draws never shift another's.

    Args:
        seed: Of the run.
        path: Names the purpose: ("tenant", "acme").
    """
    text = "/".join(str(part) for part in (seed, *path))
    return random.Random(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))


def mix(value: int) -> int:
    """Spreads the bits of a number over 64 (the finalizer of splitmix64): a fixed hash for whole numbers."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


_MASK: Final = (1 << 64) - 1
