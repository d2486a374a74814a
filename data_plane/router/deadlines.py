"""The deadlines of all requests, with one timer: nearly all of them end before theirs, and a timer each is dear.

Requests are kept by the time they are looked at. A far deadline is looked at early, at a round time that it shares with
others, and put nearer then; so there are a few dozen times, whatever comes.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import Final, Protocol

from common.clock import NS_PER_S, Clock

TICK_NS: Final = 4_000_000
"""A deadline is told by so much later at most: less than a stream's time from token to token."""

_STEP_BITS: Final = 4
"""A far deadline is looked at after 7/8 of the time to it at the earliest; with more bits there are more times."""


class Timed(Protocol):
    """What has a deadline."""

    def on_deadline(self) -> None:
        """It has come."""
        ...


class Deadlines:
    """See the module.

    Args:
        clock: Monotonic time.
    """

    def __init__(self, clock: Clock) -> None:
        self._now_ns = clock.monotonic_ns
        self._looks: dict[int, dict[Timed, int]] = {}  # who is looked at when, and the deadline
        self._look_of: dict[Timed, int] = {}
        self._order: list[int] = []  # a heap of the times
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._look_of)

    @property
    def looks(self) -> int:
        """How many times there are at which somebody is looked at."""
        return len(self._looks)

    def add(self, timed: Timed, deadline_ns: int) -> None:
        """Has it told at its deadline, once, unless it is removed before.

        Args:
            timed: What has no deadline here yet.
            deadline_ns: Monotonic.
        """
        left_ns = deadline_ns - self._now_ns()
        if left_ns < 8 * TICK_NS:
            look_ns = (deadline_ns // TICK_NS + 1) * TICK_NS
        else:
            step_ns = 1 << left_ns.bit_length() - _STEP_BITS
            look_ns = deadline_ns // step_ns * step_ns
        together = self._looks.get(look_ns)
        if together is None:
            together = self._looks[look_ns] = {}
            heappush(self._order, look_ns)
            if self._order[0] == look_ns:
                self._arm()
        together[timed] = deadline_ns
        self._look_of[timed] = look_ns

    def remove(self, timed: Timed) -> None:
        """It has ended. Harmless where it has no deadline."""
        look_ns = self._look_of.pop(timed, None)
        if look_ns is not None:
            del self._looks[look_ns][timed]

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        left_s = (self._order[0] - self._now_ns()) / NS_PER_S
        self._timer = asyncio.get_running_loop().call_later(max(0.0, left_s), self._look)

    def _look(self) -> None:
        self._timer = None
        now_ns = self._now_ns()
        while self._order and self._order[0] <= now_ns:
            look_ns = heappop(self._order)
            together = self._looks[look_ns]
            while together:  # whoever is told may remove others
                timed, deadline_ns = together.popitem()
                del self._look_of[timed]
                if deadline_ns <= now_ns:
                    timed.on_deadline()
                else:
                    self.add(timed, deadline_ns)
            del self._looks[look_ns]
        if self._order:
            self._arm()
