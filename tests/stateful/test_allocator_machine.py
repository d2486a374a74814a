"""The allocator and its writes against a naive model, through fleet changes, takeovers and ghosts of old leaders."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from capacity.core.allocate import PPM, Demand, Model, ModelLedger, Replica, Reservation, allocate, ceiling_of
from capacity.quota_book import ConflictAtStoreError, QuotaBook
from common import keys
from common.clock import FakeClock
from common.memory_store import MemoryStore
from common.store import Epoch, Expect
from fairlead.capacity.v1 import capacity_pb2
from model_units.units import MilliModelUnitsPerMinute as Rate

LEADER = keys.leader("capacity")
TENANTS = ("a", "b", "c", "d")
RATES = st.integers(0, 40)


def pour(amount: int, limits: dict[str, int], weights: dict[str, int]) -> dict[str, int]:
    """Naive weighted max-min: one unit at a time to whoever has least per weight and still has room."""
    shares = dict.fromkeys(limits, 0)
    for _ in range(amount):
        hungry = [tenant for tenant in limits if shares[tenant] < limits[tenant]]
        if not hungry:
            break
        shares[min(hungry, key=lambda tenant: (shares[tenant] / weights[tenant], tenant))] += 1
    return shares


class AllocatorMachine(RuleBasedStateMachine):
    """One model, four tenants, a few replicas, and leaders that come and go."""

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.replicas: dict[str, Replica] = {}
        self.reservations: dict[str, Reservation] = {}
        self.wants: dict[str, int] = {}
        self.ghosts: list[tuple[QuotaBook, Epoch, Expect]] = []
        self.written: ModelLedger | None = None
        self.elect()

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()

    def elect(self) -> None:
        self.loop.run_until_complete(self.store.delete(LEADER))
        self.epoch = Epoch(self.loop.run_until_complete(self.store.put(LEADER, b"")))
        self.fence = Expect(LEADER, create_revision=self.epoch)
        self.book = QuotaBook(self.store, self.clock)
        self.loop.run_until_complete(self.book.load())

    @rule(name=st.sampled_from(["r1", "r2", "r3"]), capacity=RATES, ready=st.booleans())
    def put_replica(self, name: str, capacity: int, ready: bool) -> None:
        self.replicas[name] = Replica(name, "m", Rate(capacity), ready)

    @rule(name=st.sampled_from(["r1", "r2", "r3"]))
    def lose_replica(self, name: str) -> None:
        self.replicas.pop(name, None)

    @rule(
        tenant=st.sampled_from(TENANTS),
        reserved=RATES,
        ceiling=RATES,
        tier=st.integers(1, 3),
        weight=st.integers(1, 3),
    )
    def reserve(self, tenant: str, reserved: int, ceiling: int, tier: int, weight: int) -> None:
        self.reservations[tenant] = Reservation(tenant, "m", Rate(reserved), Rate(ceiling), tier, weight)

    @rule(tenant=st.sampled_from(TENANTS))
    def cancel(self, tenant: str) -> None:
        self.reservations.pop(tenant, None)

    @rule(tenant=st.sampled_from(TENANTS), wants=st.integers(0, 60))
    def want(self, tenant: str, wants: int) -> None:
        self.wants[tenant] = wants

    @rule(seconds=st.sampled_from([0.1, 2.0, 11.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def ledger(self) -> ModelLedger:
        demand = {("m", tenant): Demand(Rate(wants), Rate(wants)) for tenant, wants in self.wants.items()}
        (ledger,) = allocate(self.replicas.values(), [Model("m", PPM)], self.reservations.values(), demand)
        return ledger

    @rule()
    def compute_and_write(self) -> None:
        self.written = self.ledger()
        self.loop.run_until_complete(self.book.write([self.written], (), self.epoch, self.fence))

    @rule()
    def take_over(self) -> None:
        self.ghosts.append((self.book, self.epoch, self.fence))
        self.elect()

    @precondition(lambda self: self.ghosts)
    @rule(data=st.data())
    def ghost_writes(self, data: st.DataObject) -> None:
        """A deposed leader tries to write something else; it must fail unless it has nothing to say."""
        book, epoch, fence = data.draw(st.sampled_from(self.ghosts))
        before = self.loop.run_until_complete(self.store.list(keys.QUOTAS))
        try:
            written = self.loop.run_until_complete(book.write([self.ledger()], (), epoch, fence))
        except ConflictAtStoreError:
            written = 0
        assert written == 0
        assert self.loop.run_until_complete(self.store.list(keys.QUOTAS)) == before

    @invariant()
    def the_store_holds_the_last_ledger(self) -> None:
        if self.written is None:
            return
        stored = {
            quota.tenant_id: (quota.guaranteed_milli_mu_per_minute, quota.granted_milli_mu_per_minute)
            for entry in self.loop.run_until_complete(self.store.list(keys.QUOTAS)).entries
            for quota in capacity_pb2.QuotaTable.FromString(entry.value).quotas
        }
        assert stored == {quota.tenant_id: (quota.guaranteed, quota.granted) for quota in self.written.quotas}

    @invariant()
    def the_ledger_agrees_with_the_naive_model(self) -> None:
        if not hasattr(self, "loop"):
            return
        ledger = self.ledger()
        have = sum(int(replica.capacity) for replica in self.replicas.values() if replica.ready)
        assert ledger.have == have
        left, expected = have, dict.fromkeys(self.reservations, 0)
        for tier in (1, 2, 3):
            mine = {t: int(r.reserved) for t, r in self.reservations.items() if r.tier == tier}
            shares = pour(left, mine, {t: self.reservations[t].weight for t in mine})
            expected |= shares
            left -= sum(shares.values())
        for quota in ledger.quotas:
            assert abs(quota.guaranteed - expected[quota.tenant_id]) <= 1
        assert sum(quota.granted for quota in ledger.quotas) <= have
        for quota in ledger.quotas:
            reservation = self.reservations[quota.tenant_id]
            assert min(quota.wants, quota.guaranteed) <= quota.granted <= ceiling_of(reservation)
        self.nobody_lends_without_need(ledger)

    def nobody_lends_without_need(self, ledger: ModelLedger) -> None:
        """While anybody is below its guarantee, all of `have` is in use by somebody who wants it."""
        if any(quota.granted < quota.guaranteed for quota in ledger.quotas):
            assert sum(quota.granted for quota in ledger.quotas) == ledger.have


AllocatorMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestAllocator = AllocatorMachine.TestCase
