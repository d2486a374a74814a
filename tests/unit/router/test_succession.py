"""A router that comes beside another one waits for leases for all whom that one serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from common import keys
from common.clock import FakeClock
from common.memory_store import MemoryStore
from data_plane.router import succession
from data_plane.router.core.holds import Holds
from data_plane.router.lease_desk import LeaseDesk
from data_plane.router.succession import PATIENCE_S, Succession
from fairlead.quota.v1 import quota_pb2
from tests.support.waiting import eventually

OLD, NEW = "router-1", "router-1b"


class Heir:
    """A new router: its leases, and whether it still waits."""

    def __init__(self, store: MemoryStore, *, replaces: bool) -> None:
        self.store, self.clock, self.holds = store, FakeClock(), Holds()
        self.desk = LeaseDesk(self.holds, self.clock, router_id=NEW, incarnation_id="i")
        self.stop = asyncio.Event()
        succession = Succession(OLD, store, self.desk, self.holds, self.clock, replaces=replaces)
        self.waiting = asyncio.create_task(succession.wait(self.stop))

    def granted(self, *tenants: str, number: int = 1) -> None:
        """The limiter answers a report."""
        answer = quota_pb2.ReportWantsResponse(epoch=1, report_number=self.desk.next_report())
        answer.lease_duration.FromSeconds(10)
        answer.tables.append(table(NEW, *tenants, number=number))
        self.desk.answer(answer)


def table(router_id: str, *tenants: str, number: int = 1) -> quota_pb2.LeaseTable:
    leases = [
        quota_pb2.Lease(tenant_id=tenant, model_id="m", rate_milli_mu_per_minute=100, burst_milli_mu=50)
        for tenant in tenants
    ]
    return quota_pb2.LeaseTable(router_id=router_id, incarnation_id="i", epoch=1, table_number=number, leases=leases)


@pytest.fixture(params=[True, False], ids=["replaces", "beside"])
async def heir(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> AsyncIterator[Heir]:
    """The router before it has leases for t1 and t2."""
    monkeypatch.setattr(succession, "_LOOK_INTERVAL_S", 0.001)
    store = MemoryStore()
    await store.put(keys.lease(OLD, 0), table(OLD, "t1", "t2").SerializeToString())
    made = Heir(store, replaces=request.param)
    yield made
    made.stop.set()
    await made.waiting


async def looked() -> None:
    """Enough time for many looks."""
    await asyncio.sleep(0.05)


async def test_it_waits_for_everybody_whom_the_old_one_serves(heir: Heir) -> None:
    """A lease for one of two tenants is not enough."""
    heir.granted("t1")
    await looked()
    assert not heir.waiting.done()
    heir.granted("t1", "t2", number=2)
    await eventually(heir.waiting.done)


@pytest.mark.parametrize("heir", [True], indirect=True)
async def test_a_replacement_waits_for_a_limiter_that_is_away(heir: Heir) -> None:
    """Without an answer of the limiter it never takes over, however long that lasts: the old one serves on."""
    await looked()
    heir.clock.advance(1000.0)
    await looked()
    assert not heir.waiting.done()


@pytest.mark.parametrize("heir", [False], indirect=True)
async def test_one_that_replaces_nobody_serves_at_last_without_a_limiter(heir: Heir) -> None:
    """It then has its safe rates, as every router without a limiter."""
    await looked()
    heir.clock.advance(PATIENCE_S - 0.1)
    await looked()
    assert not heir.waiting.done()
    heir.clock.advance(0.2)
    await eventually(heir.waiting.done)


async def test_the_rates_of_an_earlier_process_are_no_lease(heir: Heir) -> None:
    """What was granted to an earlier process of this router has ended with it."""
    earlier = table(NEW, "t1", "t2")
    earlier.incarnation_id = "earlier"
    for lease in earlier.leases:
        lease.safe_rate_milli_mu_per_minute = 50
    assert heir.desk.take(earlier)
    await looked()
    assert not heir.waiting.done()


async def test_it_waits_for_a_store_that_is_away(heir: Heir) -> None:
    """What the old one serves is not known then."""
    await heir.store.set_down(True)
    heir.granted("t1", "t2")
    await looked()
    assert not heir.waiting.done()
    await heir.store.set_down(False)
    await eventually(heir.waiting.done)


async def test_what_the_limiter_does_not_grant_in_a_lease_time_is_not_waited_for(heir: Heir) -> None:
    """A quota too small to be split, for instance."""
    heir.granted("t1")
    await looked()
    heir.clock.advance(PATIENCE_S + 0.1)
    await eventually(heir.waiting.done)


async def test_it_follows_changes_of_what_the_old_one_has(heir: Heir) -> None:
    """A tenant that is deleted meanwhile is not waited for."""
    heir.granted("t1")
    await heir.store.put(keys.lease(OLD, 0), table(OLD, "t1", number=2).SerializeToString())
    await eventually(heir.waiting.done)
