"""A router dies at named points of a request's life, or stands still for a while."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults import checkers
from tests.faults.books import value
from tests.faults.checkers import Allowance
from tests.faults.lab import LEASE_S, Lab
from tests.faults.load import History, load
from tests.faults.mutants.dying_router import POINTS
from tests.faults.tenants import GREEDY, STEADY
from tests.faults.traffic import BURST, GREEDY_RATE, both
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(300)

REGRANT_S = 4.0
"""After a lease has ended: the limiter's look at the time (1 s), its guard (1 %), a report and an answer; and room."""
MEASURED_S = 3.0
REPLAY_S = 30.0


async def whole_quota_in_force(lab: Lab, names: Sequence[str]) -> bool:
    """Whether these routers together refill the greedy tenant's buckets at its whole quota."""
    pages = await asyncio.gather(*(asyncio.to_thread(lab.services[name].metrics) for name in names))
    refills = (value(page, "fairlead_router_lease_milli_mu_per_minute", tenant=GREEDY) for page in pages)
    return sum(refills) >= 0.98 * GREEDY_RATE


@pytest.mark.parametrize("point", POINTS)
async def test_a_router_killed_at_any_point_leaks_nothing(lab: Lab, tmp_path: Path, point: str) -> None:
    """SIGKILL after the hold, mid-stream, after the settlement, during a report: one lease time later nothing is lost.

    The others can then use the whole quota, have ended every hold of their own, and no request within its quota was
    refused on the way. What the dead one settled is in the usage once it is back.
    """
    trigger = tmp_path / "now"
    victim = await lab.become("router-1", "dying_router", FAULT_POINT=point, FAULT_TRIGGER=str(trigger))
    others = ["router-2", "router-3"]
    before, used_before = lab.books(), await lab.usage("router-1")
    async with load(both(lab, cancel_share=0.0)) as history:
        await asyncio.sleep(1.0)
        trigger.touch()
        await eventually(lambda: not victim.running, 10.0, "the router dies")
        died_s = time.monotonic()
        await eventually(lambda: whole_quota_in_force(lab, others), LEASE_S + REGRANT_S, "the others have its share")
        from_s = time.monotonic()
        await asyncio.sleep(MEASURED_S)
        to_s = time.monotonic()
    books = await lab.since(before)
    assert set(books) == set(others)
    greedy = history.of(GREEDY)
    checkers.used_at_least(greedy, from_s=from_s, to_s=to_s, rate_milli_mu_per_minute=GREEDY_RATE, share=0.85)
    checkers.admitted_within(greedy, rate_milli_mu_per_minute=GREEDY_RATE, burst_milli_mu=BURST)
    checkers.books_agree(history, books)
    checkers.nothing_held(books)
    lost = [record for record in history.of(STEADY) if record.router == "router-1" and record.ended_s >= died_s - 1.0]
    checkers.never_refused(history.of(STEADY), lost_max=len(lost))
    await usage_follows(lab, history, used_before)


async def usage_follows(lab: Lab, history: History, used_before: Counter[str]) -> None:
    """Starts the dead router again, as it ships, and waits until its usage holds what its clients were told."""
    router = lab.services["router-1"]
    router.runs(router.module)
    router.start()

    async def replayed() -> bool:
        checkers.usage_holds(history, "router-1", used_before, await lab.usage("router-1"))
        return True

    await eventually(replayed, REPLAY_S, "what the dead router settled is in the usage")


async def test_a_router_without_a_journal_is_caught(lab: Lab) -> None:
    """A build that journals nothing loses what it settled shortly before it is killed."""
    router = await lab.become("router-1", "unjournaled_router")
    used_before = await lab.usage("router-1")
    async with load(both(lab, cancel_share=0.0, routers=["router-1"])) as history:
        await asyncio.sleep(2.0)
    router.kill()
    await lab.recover()
    with pytest.raises(AssertionError, match="usage"):
        checkers.usage_holds(history, "router-1", used_before, await lab.usage("router-1"))


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
