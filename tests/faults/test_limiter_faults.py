"""The leading rate limiter dies, or freezes and comes back as a ghost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.faults import checkers
from tests.faults.books import RouterBooks, value
from tests.faults.checkers import Write
from tests.faults.lab import ELECTION_TTL_S, LEASE_S, Lab
from tests.faults.load import History, load
from tests.faults.processes import Service
from tests.faults.tenants import GREEDY, STEADY
from tests.faults.traffic import BURST, GREEDY_RATE, both
from tests.faults.watch import Seen, watching
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(300)

# What a machine with other things to do may take beyond the promise: the start of nothing is waited for here.
SLACK_S = 1.5


@dataclass(frozen=True)
class Evidence:
    """What was seen of one fault.

    Attributes:
        history: Every request.
        books: Of every router, for the same time.
        seen: What was written.
        takeover_s: From the fault to the first grant of the next leader.
        woken: What was written of the leases after a frozen leader woke up.
    """

    history: History
    books: dict[str, RouterBooks]
    seen: Seen
    takeover_s: float
    woken: Sequence[Write] = ()


def granted(limiter: Service) -> bool:
    """Whether it leads and has answered a report."""
    text = limiter.metrics()
    leads = value(text, "fairlead_ratelimiter_leader") == 1
    return leads and value(text, "fairlead_ratelimiter_reports_total", outcome="granted") > 0


async def leader_killed(lab: Lab) -> Evidence:
    """SIGKILL of the leader under load; the load goes on until its leases have ended."""
    before = lab.books()
    async with watching(lab) as seen, load(both(lab)) as history:
        await asyncio.sleep(1.5)
        leader = lab.leader("ratelimiter")
        standby = next(lab.services[f"ratelimiter-{n}"] for n in (1, 2) if lab.services[f"ratelimiter-{n}"] != leader)
        leader.kill()
        killed_s = time.monotonic()
        await eventually(lambda: asyncio.to_thread(granted, standby), 20.0, "the standby grants")
        takeover_s = time.monotonic() - killed_s
        await asyncio.sleep(LEASE_S)
    return Evidence(history, await lab.since(before), seen, takeover_s)


async def leader_frozen(lab: Lab) -> Evidence:
    """SIGSTOP of the leader for three lease times, then SIGCONT; the load goes on for one more."""
    before = lab.books()
    async with watching(lab) as seen, load(both(lab)) as history:
        await asyncio.sleep(1.0)
        leader = lab.leader("ratelimiter")
        leader.freeze()
        frozen_s = time.monotonic()
        await asyncio.sleep(3 * LEASE_S)
        leader.thaw()
        written = len(seen.leases)
        await asyncio.sleep(LEASE_S)
    return Evidence(history, await lab.since(before), seen, time.monotonic() - frozen_s, seen.leases[written:])


def check_work(evidence: Evidence) -> None:
    """What holds whatever happens to the limiter."""
    greedy = evidence.history.of(GREEDY)
    checkers.admitted_within(greedy, rate_milli_mu_per_minute=GREEDY_RATE, burst_milli_mu=BURST)
    checkers.never_refused(evidence.history.of(STEADY))
    checkers.books_agree(evidence.history, evidence.books)
    checkers.nothing_held(evidence.books)
    checkers.settled_agrees(evidence.history, evidence.books, tenant=GREEDY)


def check_grants(evidence: Evidence, lab: Lab) -> None:
    """What holds for everything that was granted."""
    checkers.epochs_never_go_back(evidence.seen.leases)
    # Before that, a router that finds the new leader late is rightly forgotten for a moment.
    checkers.tables_stay(evidence.woken, lab.router_names)
    checkers.refills_within(evidence.seen.refills, limit_milli_mu_per_minute=GREEDY_RATE)


async def test_a_healthy_platform_admits_its_quota_and_no_more(lab: Lab) -> None:
    """Without any fault: within rate x window + burst, nearly all of it usable, and every book agrees."""
    before = lab.books()
    async with watching(lab) as seen, load(both(lab)) as history:
        await asyncio.sleep(1.0)
        from_s = time.monotonic()
        await asyncio.sleep(LEASE_S)
        to_s = time.monotonic()
    evidence = Evidence(history, await lab.since(before), seen, 0.0)
    check_work(evidence)
    check_grants(evidence, lab)
    checkers.used_at_least(
        history.of(GREEDY), from_s=from_s, to_s=to_s, rate_milli_mu_per_minute=GREEDY_RATE, share=0.9
    )


async def test_a_killed_leader_is_replaced_before_anybody_notices(lab: Lab) -> None:
    """SIGKILL under load: no in-quota refusal, grants of the next leader in two TTLs, never more than the quota."""
    evidence = await leader_killed(lab)
    check_work(evidence)
    check_grants(evidence, lab)
    assert evidence.takeover_s <= 2 * ELECTION_TTL_S + SLACK_S


async def test_a_frozen_leader_that_wakes_up_grants_nothing(lab: Lab) -> None:
    """SIGSTOP for three lease times, SIGCONT: nothing a deposed leader does counts, and the quota holds."""
    evidence = await leader_frozen(lab)
    check_work(evidence)
    check_grants(evidence, lab)


async def test_a_ghost_without_fencing_is_caught(lab: Lab) -> None:
    """The same on a build whose fencing is switched off: what the ghost does to the stored leases is noticed."""
    lab.services["ratelimiter-2"].kill()
    await become_leader(lab, "ratelimiter-1", "unfenced_limiter")
    lab.services["ratelimiter-2"].start()
    await lab.wait_well()
    evidence = await leader_frozen(lab)
    with pytest.raises(AssertionError):
        check_grants(evidence, lab)


async def test_a_limiter_that_grants_every_router_the_whole_quota_is_caught(lab: Lab) -> None:
    """A limit multiplied by the number of routers shows in the leases and in the work admitted."""
    lab.services["ratelimiter-2"].kill()
    await become_leader(lab, "ratelimiter-1", "multiplying_limiter")
    async with watching(lab) as seen, load(both(lab)) as history:
        await asyncio.sleep(3 * LEASE_S)
    with pytest.raises(AssertionError, match="over the bound"):
        checkers.admitted_within(history.of(GREEDY), rate_milli_mu_per_minute=GREEDY_RATE, burst_milli_mu=BURST)
    with pytest.raises(AssertionError, match="in force"):
        checkers.refills_within(seen.refills, limit_milli_mu_per_minute=GREEDY_RATE)


async def test_a_router_that_drops_its_leases_is_caught(lab: Lab) -> None:
    """A router that forgets its leases when the limiter does not answer refuses work within the quota."""
    await lab.become("router-1", "forgetful_router")
    evidence = await leader_killed(lab)
    with pytest.raises(AssertionError, match="within the quota"):
        checkers.never_refused(evidence.history.of(STEADY))


async def become_leader(lab: Lab, name: str, mutant: str) -> None:
    """Puts a mutant in the place of a limiter, with no other beside it, and waits until it leads."""
    service = lab.services[name]
    service.kill()
    service.runs(f"tests.faults.mutants.{mutant}")
    service.start()
    await eventually(lambda: asyncio.to_thread(granted, service), 60.0, f"{mutant} grants")
