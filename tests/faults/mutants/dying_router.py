"""A router that kills itself at a named point of a request's life, once a trigger file is there.

The environment names both: FAULT_POINT is one of POINTS, FAULT_TRIGGER a path. The rest is the product as it ships.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from data_plane.router.attempts import Attempts, Relay
from data_plane.router.core.holds import Hold, Holds
from data_plane.router.limiter_client import LimiterClient
from tests.faults import mutants

POINTS = ("hold", "stream", "settle", "report")
"""After the hold and before the dispatch; after the first token; after the settlement and before the answer's end; with
a report on its way to the limiter."""

_run, _settle, _report = Attempts.run, Holds.settle, LimiterClient._report


def _die() -> None:
    if Path(os.environ["FAULT_TRIGGER"]).exists():
        os.kill(os.getpid(), signal.SIGKILL)


async def _run_not(self: Attempts, relay: Relay) -> AsyncGenerator[Any, None]:
    _die()
    async for message in _run(self, relay):
        yield message


async def _run_partly(self: Attempts, relay: Relay) -> AsyncGenerator[Any, None]:
    async for message in _run(self, relay):
        yield message
        _die()


def _settle_and_die(self: Holds, hold: Hold, cost_milli_mu: int, now_ns: int) -> None:
    _settle(self, hold, cost_milli_mu, now_ns)
    if cost_milli_mu:
        _die()


async def _report_and_die(self: LimiterClient, **named: Any) -> float:
    # The report is on the wire within a millisecond, and its answer takes longer: it is stored first.
    asyncio.get_running_loop().call_later(0.002, _die)
    return await _report(self, **named)


_CHANGES: dict[str, Callable[[], None]] = {
    "hold": lambda: setattr(Attempts, "run", _run_not),
    "stream": lambda: setattr(Attempts, "run", _run_partly),
    "settle": lambda: setattr(Holds, "settle", _settle_and_die),
    "report": lambda: setattr(LimiterClient, "_report", _report_and_die),
}

if __name__ == "__main__":
    _CHANGES[os.environ["FAULT_POINT"]]()
    mutants.run("data_plane.router")
