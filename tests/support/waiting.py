"""Waiting for something to become true, with a deadline instead of a sleep."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Self

PROCESS_START_S: Final = 60.0
"""A process has started, or refused its settings, by then: it takes 1 to 2 s, and 20 s on a machine at a third of its
speed whose host takes the processor away for seconds."""

_PAUSE_S: Final = 0.02
_LATE_SHARE_MAX: Final = 2.0


async def eventually(
    predicate: Callable[[], object | Awaitable[object]], timeout_s: float = 10.0, what: str = ""
) -> None:
    """Returns once `predicate` is true; fails the test when it is not by the deadline.

    Time in which the machine did not run this process does not count, up to twice the limit: what is waited for did not
    get it either.

    Args:
        predicate: Plain or async; an exception counts as not yet.
        timeout_s: The limit.
        what: What is waited for, for the failure message.
    """
    deadline, late_s = time.monotonic() + timeout_s, 0.0
    last: BaseException | object = None
    while time.monotonic() < deadline + min(late_s, _LATE_SHARE_MAX * timeout_s):
        try:
            last = predicate()
            if inspect.isawaitable(last):
                last = await last
            if last:
                return
        except Exception as error:  # noqa: BLE001  # not yet
            last = error
        paused_s = time.monotonic()
        await asyncio.sleep(_PAUSE_S)
        late_s += max(0.0, time.monotonic() - paused_s - 2 * _PAUSE_S)
    late = f" and the {late_s:.1f} s in which this process stood still" if late_s > 1.0 else ""
    raise AssertionError(f"not within {timeout_s} s{late}: {what or predicate}; last: {last!r}")


class Stillness:
    """How long at a time this process, and so most likely the machine, stood still while a block ran.

    Attributes:
        longest_s: The longest time so far.
    """

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._watching: asyncio.Task[None] | None = None

    async def _watch(self) -> None:
        while True:
            paused_s = time.monotonic()
            await asyncio.sleep(_PAUSE_S)
            self.longest_s = max(self.longest_s, time.monotonic() - paused_s - _PAUSE_S)

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watching is not None
        self._watching.cancel()
