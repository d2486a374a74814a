"""Every request is told of its deadline, once and in time, with few timers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from common.clock import NS_PER_S
from data_plane.router.deadlines import TICK_NS, Deadlines
from tests.support.virtual_loop import LoopClock, run_virtually

CLOCK = LoopClock()


class Request:
    """Writes down when it is told."""

    def __init__(self, deadline_ns: int = 0, then: Callable[[], Any] = lambda: None) -> None:
        self.deadline_ns = deadline_ns
        self.then = then
        self.told_ns: list[int] = []

    def on_deadline(self) -> None:
        self.told_ns.append(CLOCK.monotonic_ns())
        self.then()


def test_everybody_is_told_in_time_and_once() -> None:
    """Deadlines from a moment to half an hour away, in any order, half of them removed before."""

    async def main() -> None:
        draw = random.Random(5)
        deadlines = Deadlines(CLOCK)
        kept, removed = [], []
        for _ in range(2_000):
            request = Request(CLOCK.monotonic_ns() + int(10 ** draw.uniform(6, 12.2)))
            deadlines.add(request, request.deadline_ns)
            (kept if draw.random() < 0.5 else removed).append(request)
            if draw.random() < 0.1:
                await asyncio.sleep(0.001)
        for request in removed:
            deadlines.remove(request)
            deadlines.remove(request)
        # Those that were due before they were removed were told, rightly.
        assert all(len(each.told_ns) <= 1 for each in removed)
        assert len(deadlines) == sum(not each.told_ns for each in kept)
        told_of_removed = [list(each.told_ns) for each in removed]
        await asyncio.sleep(2_000)
        assert told_of_removed == [each.told_ns for each in removed]
        for request in kept:
            (told_ns,) = request.told_ns
            assert 0 <= told_ns - request.deadline_ns <= 2 * TICK_NS
        assert len(deadlines) == 0

    run_virtually(main())


def test_a_deadline_that_has_passed_is_told_at_once() -> None:
    """In the next turns of the loop, not within `add`."""

    async def main() -> None:
        deadlines = Deadlines(CLOCK)
        late = Request()
        deadlines.add(late, CLOCK.monotonic_ns() - NS_PER_S)
        assert not late.told_ns
        await asyncio.sleep(2 * TICK_NS / NS_PER_S)
        assert len(late.told_ns) == 1

    run_virtually(main())


def test_whoever_is_told_may_end_others() -> None:
    """Of the same moment: they are not told any more, and whoever comes new is."""

    async def main() -> None:
        deadlines = Deadlines(CLOCK)
        requests = [Request() for _ in range(3)]
        late = Request()

        def end_all() -> None:
            for each in requests:
                deadlines.remove(each)
            deadlines.add(late, CLOCK.monotonic_ns() + NS_PER_S)

        for each in requests:
            each.then = end_all
            deadlines.add(each, NS_PER_S)
        await asyncio.sleep(1.5)
        assert sum(len(each.told_ns) for each in requests) == 1
        await asyncio.sleep(1.5)
        assert len(late.told_ns) == 1

    run_virtually(main())


def test_times_are_few_whatever_comes() -> None:
    """A hundred thousand requests that end at once leave neither themselves nor a time each behind."""

    async def main() -> None:
        deadlines = Deadlines(CLOCK)
        for number in range(100_000):
            request = Request()
            deadlines.add(request, CLOCK.monotonic_ns() + 600 * NS_PER_S)
            deadlines.remove(request)
            if number % 100 == 0:
                await asyncio.sleep(0.1)
        assert len(deadlines) == 0
        assert deadlines.looks <= 40

    run_virtually(main())
