"""An asyncio event loop whose clock jumps: nobody ever waits, and every sleep ends exactly when it should."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from common.clock import NS_PER_S, MonotonicNs, WallNs

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting until the next timer, moves the clock there."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everybody waits and no timer is set: nothing would ever happen")
            self.now_s += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop. It has no use for threads, processes and sockets: their time does not jump."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._jumping.now_s

    def stall(self, seconds: float) -> None:
        """Time passes in which the loop does nothing, as when the process is not scheduled."""
        self._jumping.now_s += seconds


class LoopClock:
    """The time of the loop that runs the caller."""

    def monotonic_ns(self) -> MonotonicNs:
        """See Clock."""
        return MonotonicNs(round(asyncio.get_running_loop().time() * NS_PER_S))

    def wall_ns(self) -> WallNs:
        """See Clock."""
        return WallNs(self.monotonic_ns())


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` on a loop of its own, in no time; its clock begins at 0."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtual_loop() -> VirtualLoop:
    """The loop that runs the caller."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop
