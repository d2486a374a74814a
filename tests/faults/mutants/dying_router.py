"""A router that kills itself at a named point of a request's life, once a trigger file is there.

The environment names both: FAULT_POINT is one of POINTS, FAULT_TRIGGER a path. The rest is the product as it ships.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_plane.router.attempts import Attempts
from data_plane.router.core.holds import Hold, Holds
from data_plane.router.life import Exchange
from data_plane.router.limiter_client import LimiterClient
from data_plane.router.relay import Relay
from tests.faults import mutants

POINTS = ("hold", "stream", "settle", "report")
"""After the hold and before the dispatch; after the first token; after the settlement and before the answer's end; with
a report on its way to the limiter."""

_begin, _deliver, _settle, _report = Attempts.begin, Exchange.deliver, Holds.settle, LimiterClient._report


def _die() -> None:
    if Path(os.environ["FAULT_TRIGGER"]).exists():
        os.kill(os.getpid(), signal.SIGKILL)


def _begin_not(self: Attempts, relay: Relay) -> None:
    _die()
    _begin(self, relay)


def _deliver_and_die(self: Exchange, piece: bytes, tokens: int) -> bool:
    keeps_up = _deliver(self, piece, tokens)
    asyncio.get_running_loop().call_soon(_die)  # once it is written
    return keeps_up


def _settle_and_die(self: Holds, hold: Hold, cost_milli_mu: int, now_ns: int) -> None:
    _settle(self, hold, cost_milli_mu, now_ns)
    if cost_milli_mu:
        _die()


async def _report_and_die(self: LimiterClient, **named: Any) -> float:
    # The report is on the wire within a millisecond, and its answer takes longer: it is stored first.
    asyncio.get_running_loop().call_later(0.002, _die)
    return await _report(self, **named)


_CHANGES: dict[str, Callable[[], None]] = {
    "hold": lambda: setattr(Attempts, "begin", _begin_not),
    "stream": lambda: setattr(Exchange, "deliver", _deliver_and_die),
    "settle": lambda: setattr(Holds, "settle", _settle_and_die),
    "report": lambda: setattr(LimiterClient, "_report", _report_and_die),
}

if __name__ == "__main__":
    _CHANGES[os.environ["FAULT_POINT"]]()
    mutants.run("data_plane.router")
