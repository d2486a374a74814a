"""Connections between two kinds of processes are cut, and heal again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.faults import checkers
from tests.faults.checkers import Allowance
from tests.faults.lab import LEASE_S, Lab
from tests.faults.load import ask, load
from tests.faults.network import Namespaces
from tests.faults.tenants import GREEDY, STEADY
from tests.faults.traffic import BURST, GREEDY_RATE, both
from tests.faults.watch import watching
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(300)

CUT_S = 2 * LEASE_S
HEAL_S = 30.0
VICTIM = "router-1"

Pair = Callable[[Lab], tuple[list[str], list[str]]]

_LIMITERS = ["ratelimiter-1", "ratelimiter-2"]
_ALLOCATORS = ["capacity-1", "capacity-2"]
PAIRS: dict[str, Pair] = {
    "router-limiter": lambda lab: ([VICTIM], _LIMITERS),
    "router-etcd": lambda lab: ([VICTIM], ["etcd"]),
    "limiter-etcd": lambda lab: ([lab.leader("ratelimiter").name], ["etcd"]),
    "allocator-etcd": lambda lab: ([lab.leader("capacity").name], ["etcd"]),
    "limiter-allocator": lambda lab: (_LIMITERS, _ALLOCATORS),
    "router-replica": lambda lab: ([VICTIM], lab.replica_names),
}


def cut(lab: Lab, pair: str) -> None:
    """Cuts a pair."""
    assert isinstance(lab.network, Namespaces)
    lab.network.cut(*PAIRS[pair](lab))


@pytest.mark.parametrize("pair", PAIRS)
async def test_a_cut_costs_at_most_the_safe_share(split_lab: Lab, pair: str) -> None:
    """Whatever is cut for two lease times: the quota plus a cut router's safe share holds, and all heals by itself."""
    lab = split_lab
    before = lab.books()
    async with watching(lab) as seen, load(both(lab, cancel_share=0.0)) as history:
        await asyncio.sleep(1.0)
        cut(lab, pair)
        cut_s = time.monotonic()
        await asyncio.sleep(CUT_S)
        lab.network.heal()
        healed_s = time.monotonic()
        await lab.wait_well(HEAL_S)
    books = await lab.since(before)
    safe = seen.safe_rates[VICTIM] if pair.startswith("router") else 0
    # Its leases count until they end; after that it spends its safe share beside what the others were granted.
    more = Allowance(cut_s + LEASE_S, healed_s + LEASE_S, safe)
    greedy = history.of(GREEDY)
    checkers.admitted_within(greedy, rate_milli_mu_per_minute=GREEDY_RATE, burst_milli_mu=BURST, allowances=[more])
    checkers.epochs_never_go_back(seen.leases)
    checkers.refills_within(seen.refills, limit_milli_mu_per_minute=GREEDY_RATE + safe)
    served = [record for record in history.of(STEADY) if pair != "router-replica" or record.router != VICTIM]
    checkers.never_refused(served)
    checkers.books_agree(history, books)
    checkers.nothing_held(books)
    # Back to work, without a restart or a command.
    await eventually(lambda: ask(STEADY, lab.services[VICTIM].grpc_address), HEAL_S, f"{VICTIM} answers")


async def test_leases_that_do_not_expire_are_caught(split_lab: Lab) -> None:
    """A router whose leases never end keeps its full rate when it is cut off, beside what the others get of it."""
    lab = split_lab
    await lab.become(VICTIM, "immortal_lease_router")
    async with watching(lab) as seen, load(both(lab, cancel_share=0.0)):
        await asyncio.sleep(1.0)
        cut(lab, "router-limiter")
        await asyncio.sleep(CUT_S)
    with pytest.raises(AssertionError, match="in force"):
        checkers.refills_within(seen.refills, limit_milli_mu_per_minute=GREEDY_RATE + seen.safe_rates[VICTIM])
