"""Waiting for something to become true, with a deadline instead of a sleep."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable


async def eventually(
    predicate: Callable[[], object | Awaitable[object]], timeout_s: float = 10.0, what: str = ""
) -> None:
    """Returns once `predicate` is true; fails the test when it is not by the deadline.

    Args:
        predicate: Plain or async; an exception counts as not yet.
        timeout_s: The deadline.
        what: What is waited for, for the failure message.
    """
    deadline = time.monotonic() + timeout_s
    last: BaseException | object = None
    while time.monotonic() < deadline:
        try:
            last = predicate()
            if inspect.isawaitable(last):
                last = await last
            if last:
                return
        except Exception as error:  # noqa: BLE001  # not yet
            last = error
        await asyncio.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {what or predicate}; last: {last!r}")
