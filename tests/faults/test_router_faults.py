"""A router dies at named points of a request's life, or stands still for a while."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.faults import checkers
from tests.faults.checkers import Allowance
from tests.faults.lab import LEASE_S, Lab
from tests.faults.load import History, load
from tests.faults.mutants.dying_router import POINTS
from tests.faults.tenants import GREEDY, STEADY
from tests.faults.traffic import BURST, GREEDY_RATE, both
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(300)

# After a lease has ended: the limiter's look at the time (1 s), its guard (1 %), a report and an answer.
REGRANT_S = 2.5
MEASURED_S = 3.0


@pytest.mark.parametrize("point", POINTS)
async def test_a_router_killed_at_any_point_leaks_nothing(lab: Lab, tmp_path: Path, point: str) -> None:
    """SIGKILL after the hold, mid-stream, after the settlement, during a report: one lease time later nothing is lost.

    The others can then use the whole quota, have ended every hold of their own, and no request within its quota was
    refused on the way.
    """
    trigger = tmp_path / "now"
    victim = await lab.become("router-1", "dying_router", FAULT_POINT=point, FAULT_TRIGGER=str(trigger))
    before = lab.books()
    async with load(both(lab)) as history:
        await asyncio.sleep(1.0)
        trigger.touch()
        await eventually(lambda: not victim.running, 10.0, "the router dies")
        died_s = time.monotonic()
        await asyncio.sleep(LEASE_S + REGRANT_S)
        from_s = time.monotonic()
        await asyncio.sleep(MEASURED_S)
        to_s = time.monotonic()
    books = await lab.since(before)
    assert set(books) == {"router-2", "router-3"}
    greedy = history.of(GREEDY)
    checkers.used_at_least(greedy, from_s=from_s, to_s=to_s, rate_milli_mu_per_minute=GREEDY_RATE, share=0.9)
    checkers.admitted_within(greedy, rate_milli_mu_per_minute=GREEDY_RATE, burst_milli_mu=BURST)
    checkers.books_agree(history, books)
    checkers.nothing_held(books)
    lost = [record for record in history.of(STEADY) if record.router == "router-1" and record.ended_s >= died_s - 1.0]
    checkers.never_refused(history.of(STEADY), lost_max=len(lost))


async def test_a_router_that_ends_not_every_hold_is_caught(lab: Lab) -> None:
    """A build that forgets some holds shows: they stay open when nothing is in flight."""
    await lab.become("router-1", "leaky_router")
    async with load(both(lab)):
        await asyncio.sleep(2.0)
    with pytest.raises(AssertionError, match="holds"):
        checkers.nothing_held(await lab.quiet())


async def test_a_router_that_counts_twice_is_caught(lab: Lab) -> None:
    """A build that counts cancelled requests twice shows: its books do not agree with its clients'."""
    await lab.become("router-1", "miscounting_router")
    before = lab.books()
    async with load(both(lab, cancel_share=0.3)) as history:
        await asyncio.sleep(2.0)
    with pytest.raises(AssertionError, match="router-1 received"):
        checkers.books_agree(history, await lab.since(before))


async def paused(lab: Lab) -> tuple[History, float, float]:
    """Freezes router-1 for three lease times under load."""
    async with load(both(lab)) as history:
        await asyncio.sleep(1.0)
        lab.services["router-1"].freeze()
        frozen_s = time.monotonic()
        await asyncio.sleep(3 * LEASE_S)
        lab.services["router-1"].thaw()
        thawed_s = time.monotonic()
        await asyncio.sleep(LEASE_S)
    return history, frozen_s, thawed_s


async def test_a_router_that_stood_still_causes_no_burst(lab: Lab) -> None:
    """SIGSTOP of a router for three lease times: what it admits on waking is its bucket, never what time piled up."""
    before = lab.books()
    history, _, thawed_s = await paused(lab)
    books = await lab.since(before)
    greedy = history.of(GREEDY)
    # Waking, it may have a full bucket, its third of the burst, and spend at its safe rate until a report is answered.
    own = BURST / len(lab.routers)
    safe = Allowance(thawed_s, thawed_s + LEASE_S, GREEDY_RATE / len(lab.routers))
    checkers.admitted_within(
        greedy, rate_milli_mu_per_minute=GREEDY_RATE, burst_milli_mu=BURST + own, allowances=[safe]
    )
    woken = [record for record in greedy if record.router == "router-1" and record.first_s > thawed_s]
    assert sum(record.cost_milli_mu for record in woken) <= own + GREEDY_RATE / 60 * (LEASE_S + 1.0)
    checkers.books_agree(history, books)
    checkers.nothing_held(books)
