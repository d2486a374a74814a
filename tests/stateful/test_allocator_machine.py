"""The allocator and its writes against a naive model, through fleet changes, takeovers and ghosts of old leaders."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from capacity.core import allocate as allocate_module
from capacity.core import live as live_module
from capacity.core import shares as shares_module
from capacity.core.allocate import PPM, Demand, Headroom, Model, ModelLedger, Replica, Reservation, allocate, ceiling_of
from capacity.core.columns import Column
from capacity.core.domains import domain_of, largest_domain
from capacity.core.explain import explain
from capacity.core.live import LiveLedgers
from capacity.core.shares import guarantees
from capacity.core.values import FailureDomain, Shares, Sold
from capacity.core.wants import SteadyWants
from capacity.quota_book import ConflictAtStoreError, QuotaBook
from common import keys
from common.clock import FakeClock, MonotonicNs
from common.memory_store import MemoryStore
from common.store import Epoch, Expect
from fairlead.capacity.v1 import capacity_pb2
from model_units.units import MilliModelUnitsPerMinute as Rate

LEADER = keys.leader("capacity")
MODELS = ("m", "n")
TENANTS = ("a", "b", "c", "d")
REPLICAS = ("r1", "r2", "r3", "r4")
RATES = st.integers(0, 40) | st.integers(0, 100_000) | st.integers(0, 10**18)


def pour(amount: int, limits: Mapping[str, int], weights: Mapping[str, int]) -> dict[str, Fraction]:
    """Naive weighted max-min: water rises in all that have room alike, in fractions, until the next one is full."""
    shares = dict.fromkeys(limits, Fraction(0))
    left = Fraction(max(0, amount))
    while left > 0 and (rising := [name for name in limits if shares[name] < limits[name]]):
        width = sum(weights[name] for name in rising)
        rise = min(left / width, *((limits[name] - shares[name]) / weights[name] for name in rising))
        for name in rising:
            shares[name] += rise * weights[name]
        left -= rise * width
    return shares


class AllocatorMachine(RuleBasedStateMachine):
    """Two models, four tenants, replicas on hosts in racks, and leaders that come and go."""

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.models = {name: Model(name, PPM) for name in MODELS}
        self.replicas: dict[str, Replica] = {}
        self.reservations: dict[tuple[str, str], Reservation] = {}
        self.wants: dict[str, dict[str, Demand]] = {}
        self.ghosts: list[tuple[QuotaBook, Epoch, Expect]] = []
        self.written: Sequence[ModelLedger] | None = None
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
        self.live = LiveLedgers()
        for name, model in self.models.items():
            self.live.set_model(name, model)
        for name, replica in self.replicas.items():
            self.live.set_replica(name, replica)
        for (model_id, tenant), reservation in self.reservations.items():
            self.live.set_reservation(model_id, tenant, reservation)
        self.live.set_demand(self.wants)

    @rule(
        name=st.sampled_from(REPLICAS),
        model_id=st.sampled_from(MODELS),
        capacity=RATES,
        ready=st.sampled_from([True, True, False]),
        host=st.sampled_from(["", "h1", "h2", "h3"]),
        rack=st.sampled_from(["", "k1", "k2"]),
    )
    def put_replica(self, name: str, model_id: str, capacity: int, ready: bool, host: str, rack: str) -> None:
        self.replicas[name] = Replica(name, model_id, Rate(capacity), ready, host, rack)
        self.live.set_replica(name, self.replicas[name])

    @rule(host=st.sampled_from(["h1", "h2", "h3"]))
    def lose_host(self, host: str) -> None:
        for name in [name for name, replica in self.replicas.items() if replica.host == host]:
            self.lose_replica(name)

    @rule(name=st.sampled_from(REPLICAS))
    def lose_replica(self, name: str) -> None:
        self.replicas.pop(name, None)
        self.live.set_replica(name, None)

    @rule(
        model_id=st.sampled_from(MODELS),
        headroom=st.sampled_from(Headroom),
        ppm=st.sampled_from([PPM, 800_000, 1]) | st.integers(1, PPM),
    )
    def put_model(self, model_id: str, headroom: Headroom, ppm: int) -> None:
        self.models[model_id] = Model(model_id, ppm, headroom)
        self.live.set_model(model_id, self.models[model_id])

    @precondition(lambda self: len(self.models) == len(MODELS))
    @rule(model_id=st.sampled_from(MODELS))
    def drop_model(self, model_id: str) -> None:
        self.models.pop(model_id, None)
        self.live.set_model(model_id, None)

    @rule(
        model_id=st.sampled_from(MODELS),
        tenant=st.sampled_from(TENANTS),
        reserved=RATES,
        ceiling=RATES,
        tier=st.integers(1, 3),
        weight=st.sampled_from([1, 2, 3, 1000]),
    )
    def reserve(self, model_id: str, tenant: str, reserved: int, ceiling: int, tier: int, weight: int) -> None:
        reservation = Reservation(tenant, model_id, Rate(reserved), Rate(ceiling), tier, weight)
        self.reservations[model_id, tenant] = reservation
        self.live.set_reservation(model_id, tenant, reservation)

    @rule(model_id=st.sampled_from(MODELS), tenant=st.sampled_from(TENANTS))
    def cancel(self, model_id: str, tenant: str) -> None:
        self.reservations.pop((model_id, tenant), None)
        self.live.set_reservation(model_id, tenant, None)

    @rule(model_id=st.sampled_from(MODELS), tenant=st.sampled_from(TENANTS), wants=RATES)
    def want(self, model_id: str, tenant: str, wants: int) -> None:
        mine = {**self.wants.get(model_id, {}), tenant: Demand(Rate(wants), Rate(wants))}
        self.wants = {**self.wants, model_id: mine}
        self.live.set_demand(self.wants)

    @rule(model_id=st.sampled_from(MODELS), per_cent=st.integers(-6, 6))
    def wobble(self, model_id: str, per_cent: int) -> None:
        for tenant, row in self.wants.get(model_id, {}).items():
            self.want(model_id, tenant, row.wants * (100 + per_cent) // 100)

    @rule(model_id=st.sampled_from(MODELS), rate=st.integers(20, 1000), per_cent=st.integers(60, 100))
    def owner_returns(self, model_id: str, rate: int, per_cent: int) -> None:
        """An owner of all there is lends while it is idle, then wants most of it back at once."""
        for name in REPLICAS:
            self.lose_replica(name)
        self.put_model(model_id, Headroom.NONE, PPM)
        self.put_replica("r1", model_id, rate, True, "h1", "k1")
        self.want(model_id, "a", 0)
        self.want(model_id, "b", rate)
        self.reserve(model_id, "a", rate, 0, 1, 1)
        self.reserve(model_id, "b", 0, rate, 1, 1)
        self.every_ledger_keeps_its_promises()
        self.want(model_id, "a", rate * per_cent // 100)

    @rule(seconds=st.sampled_from([0.1, 2.0, 11.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def round(self) -> Sequence[ModelLedger]:
        for model_id in self.live.changed(self.clock.monotonic_ns()):
            self.live.compute(model_id, self.clock.monotonic_ns())
        return self.live.ledgers

    @rule()
    def compute_and_write(self) -> None:
        self.written = self.round()
        self.loop.run_until_complete(self.book.write(self.written, (), self.epoch, self.fence))

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
            written = self.loop.run_until_complete(book.write(self.round(), (), epoch, fence))
        except ConflictAtStoreError:
            written = 0
        assert written == 0
        assert self.loop.run_until_complete(self.store.list(keys.QUOTAS)) == before

    @invariant()
    def the_store_holds_the_last_ledger(self) -> None:
        if getattr(self, "written", None) is None:
            return
        stored = {
            (table.model_id, row.tenant_id): (row.guaranteed_milli_mu_per_minute, row.granted_milli_mu_per_minute)
            for entry in self.loop.run_until_complete(self.store.list(keys.QUOTAS)).entries
            for table in [capacity_pb2.QuotaTable.FromString(entry.value)]
            for row in table.quotas
        }
        assert stored == {
            (ledger.model_id, quota.tenant_id): (quota.guaranteed, quota.granted)
            for ledger in self.written or ()
            for quota in ledger.quotas
        }

    @invariant()
    def every_ledger_keeps_its_promises(self) -> None:
        if not hasattr(self, "loop"):
            return
        ledgers = self.round()
        assert [ledger.model_id for ledger in ledgers] == sorted(self.models)
        for ledger in ledgers:
            self.check_capacity(ledger)
            self.check_guarantees(ledger)
            self.check_grants(ledger)
            self.check_fresh(ledger)

    def ready(self, model_id: str) -> list[Replica]:
        return [r for r in self.replicas.values() if r.ready and r.model_id == model_id]

    def sold(self, model_id: str) -> dict[str, Reservation]:
        return {tenant: r for (name, tenant), r in self.reservations.items() if name == model_id}

    def check_capacity(self, ledger: ModelLedger) -> None:
        """What may be sold is what is left after losing the worst domain, by losing every one of them."""
        model, fleet = self.models[ledger.model_id], self.ready(ledger.model_id)
        assert ledger.have == sum(int(r.capacity) for r in fleet) * model.target_utilization_ppm // PPM
        assert ledger.sold == sum(int(r.reserved) for r in self.sold(ledger.model_id).values())
        after = [ledger]
        if model.headroom != Headroom.NONE:
            for lost in {domain_of(replica, model.headroom) for replica in fleet}:
                left = [r for r in fleet if domain_of(r, model.headroom) != lost]
                after += allocate(left, [model], self.sold(ledger.model_id).values(), {})
        assert ledger.sellable == min(one.have for one in after), "sellable is not what the worst loss leaves"
        assert ledger.uncovered_after_loss == max(one.shortfall for one in after)

    def check_guarantees(self, ledger: ModelLedger) -> None:
        sold = self.sold(ledger.model_id)
        left, expected = int(ledger.have), {}
        for tier in (1, 2, 3):
            mine = {t: int(r.reserved) for t, r in sold.items() if r.tier == tier}
            expected |= pour(left, mine, {t: sold[t].weight for t in mine})
            left = max(0, left - sum(mine.values()))
        for quota in ledger.quotas:
            assert abs(quota.guaranteed - expected[quota.tenant_id]) < 1, "not shared by tier and weight"

    def check_grants(self, ledger: ModelLedger) -> None:
        """Whatever happened before: the sum, the ceilings, what an owner wants, and the explanation."""
        assert sum(quota.granted for quota in ledger.quotas) <= ledger.have, "more granted than there is"
        demand, sold = self.wants.get(ledger.model_id, {}), self.sold(ledger.model_id)
        assert [quota.tenant_id for quota in ledger.quotas] == sorted(sold)
        for quota in ledger.quotas:
            wants = demand[quota.tenant_id].wants if quota.tenant_id in demand else 0
            assert quota.wants == wants
            assert quota.granted <= ceiling_of(sold[quota.tenant_id])
            assert quota.granted >= min(wants, quota.guaranteed), "an owner does not have what it wants of its own"
            assert quota.granted * 2 >= quota.guaranteed, "lent more than half"
            parts = quota.guaranteed - quota.lent + quota.borrowed + quota.idle
            assert quota.granted == parts, "the explanation does not add up"
            assert explain(ledger, quota)
        if any(quota.granted < quota.guaranteed for quota in ledger.quotas):
            assert sum(quota.granted for quota in ledger.quotas) == ledger.have, "lent without need"

    def check_fresh(self, ledger: ModelLedger) -> None:
        """Without a past the grants are weighted max-min over what is wanted, step by step."""
        sold, demand = self.sold(ledger.model_id), self.wants.get(ledger.model_id, {})
        wanted = {(ledger.model_id, tenant): row for tenant, row in demand.items()}
        (fresh,) = allocate(self.ready(ledger.model_id), [self.models[ledger.model_id]], sold.values(), wanted)
        rows = {quota.tenant_id: quota for quota in fresh.quotas}
        weights = {tenant: sold[tenant].weight for tenant in rows}
        unsold = fresh.have - sum(row.guaranteed for row in rows.values())
        spare = unsold + sum(row.guaranteed - row.kept for row in rows.values())
        missing = {tenant: max(0, row.counted - row.guaranteed) for tenant, row in rows.items()}
        lent = pour(spare, missing, weights)
        kept = {tenant: row.guaranteed - row.lent + row.borrowed for tenant, row in rows.items()}
        room = {tenant: row.ceiling - kept[tenant] for tenant, row in rows.items()}
        idle = pour(fresh.have - sum(kept.values()), room, weights)
        for tenant, row in rows.items():
            assert min(row.wants, row.ceiling) <= row.counted <= row.ceiling
            assert abs(row.borrowed - lent[tenant]) < 1, "spare is not shared by weighted max-min"
            assert abs(row.idle - idle[tenant]) < 1, "idle capacity is not shared by weighted max-min"


AllocatorMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAllocator = AllocatorMachine.TestCase


LARGEST_DOMAIN = largest_domain
SHARE_OUT = shares_module.share_out
FAIR_SHARES = shares_module.fair_shares


def first_replica_only(model: Model, ready: Sequence[Replica]) -> FailureDomain | None:
    """Replicas that share a host or a rack are not added up."""
    return LARGEST_DOMAIN(model, ready[:1])


def guarantees_without_tiers(have: int, sold: Sold) -> Column:
    flat = Sold([])
    flat.__dict__ |= sold.__dict__ | {"tier": np.ones_like(sold.tier)}
    return guarantees(have, flat)


def lend_without_giving_up(have: int, sold: Sold, counted: Column) -> Shares:
    shares = SHARE_OUT(have, sold, counted)
    return replace(shares, lent=np.zeros_like(shares.lent))


def stand_always(held: Shares, fresh: Shares) -> bool:
    return True


def count_slowly(self: SteadyWants, tenants: tuple[str, ...], wants: Column, now: MonotonicNs) -> Column:
    """An owner that comes back is counted with a part of what it wants."""
    return wants // 8


def share_unweighted(amount: int, limits: Column, weights: Column) -> Column:
    return FAIR_SHARES(amount, limits, np.ones_like(weights))


@pytest.mark.parametrize(
    ("owner", "name", "bug", "found"),
    [
        (allocate_module, "largest_domain", first_replica_only, "worst loss"),
        (shares_module, "guarantees", guarantees_without_tiers, "tier and weight"),
        (live_module, "share_out", lend_without_giving_up, "more granted"),
        (live_module, "may_stand", stand_always, "what it wants"),
        (SteadyWants, "count", count_slowly, "what it wants"),
        (shares_module, "fair_shares", share_unweighted, "weight"),
    ],
)
def test_machine_notices(
    owner: object, name: str, bug: Callable[..., object], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves that the machine can fail: with one rule switched off it finds the promise that breaks."""
    monkeypatch.setattr(owner, name, bug)
    search = settings(
        max_examples=1_000,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        derandomize=True,
    )
    with pytest.raises(AssertionError, match=found):
        run_state_machine_as_test(AllocatorMachine, settings=search)
