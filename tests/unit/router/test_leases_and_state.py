"""Lease tables in order, and the mirrors that feed the fleet and survive on disk."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from common import keys
from common.clock import FakeClock
from common.memory_store import MemoryStore
from data_plane.router.assignments import Assignments
from data_plane.router.core.fleet import Fleet
from data_plane.router.core.holds import Hold, Holds
from data_plane.router.lease_desk import LeaseDesk
from data_plane.router.state import RouterState
from data_plane.router.tables import Tables
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import UnavailableError
from fairlead.quota.v1 import quota_pb2
from model_units.cost import CostProfile
from model_units.profiles import built_in_profiles
from model_units.wire import profile_to_proto
from tests.support.waiting import eventually

Answer = quota_pb2.ReportWantsResponse
KEY = ("acme", "tiny")
DEFAULT = "llama-3.1-8b/h100/2"
SECOND = 1_000_000_000


class Desk:
    """A lease desk over real holds and a fake clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.holds = Holds()
        self.leases = LeaseDesk(self.holds, self.clock, router_id="r", incarnation_id="now")

    def table(
        self,
        number: int,
        report: int,
        *,
        epoch: int = 5,
        rate: int = 60_000,
        router: str = "r",
        incarnation: str = "now",
    ) -> quota_pb2.LeaseTable:
        table = quota_pb2.LeaseTable(
            router_id=router,
            incarnation_id=incarnation,
            epoch=epoch,
            table_number=number,
            report_number=report,
            leases=[
                quota_pb2.Lease(
                    tenant_id="acme",
                    model_id="tiny",
                    rate_milli_mu_per_minute=rate,
                    burst_milli_mu=30_000,
                    safe_rate_milli_mu_per_minute=600,
                )
            ],
        )
        table.lease_duration.FromSeconds(10)
        return table

    @property
    def rate(self) -> int:
        return self.holds.view(KEY, self.clock.monotonic_ns()).rate_milli_mu_per_minute


def test_lease_time_runs_from_the_sending_of_the_answered_report() -> None:
    """A slow answer shortens the lease; after its end the safe rate applies; a later table renews it."""
    desk = Desk()
    report = desk.leases.next_report()
    desk.clock.advance(4)
    assert desk.leases.take(desk.table(1, report))
    assert desk.rate == 60_000
    desk.clock.advance(5.9)
    assert desk.rate == 60_000
    desk.clock.advance(0.2)
    assert desk.rate == 600
    assert desk.leases.take(desk.table(2, desk.leases.next_report()))
    assert desk.rate == 60_000


def test_tables_never_go_back() -> None:
    """An older number, an older epoch, a repeated table: all ignored; a newer epoch wins with any number."""
    desk = Desk()
    report = desk.leases.next_report()
    assert desk.leases.take(desk.table(7, report))
    assert not desk.leases.take(desk.table(7, report, rate=1))
    assert not desk.leases.take(desk.table(6, report, rate=1))
    assert not desk.leases.take(desk.table(99, report, epoch=4, rate=1))
    assert desk.rate == 60_000
    assert desk.leases.take(desk.table(1, report, epoch=6, rate=30_000))
    assert (desk.rate, desk.leases.applied) == (30_000, {0: (6, 1)})


def answer(report: int, *, epoch: int = 5, renewed: int = 0, table: quota_pb2.LeaseTable | None = None) -> Answer:
    message = Answer(epoch=epoch, report_number=report, tables=[table] if table else [])
    if renewed:
        message.renewed.add(epoch=epoch, table_number=renewed)
    message.lease_duration.FromSeconds(10)
    return message


def test_a_renewal_lets_the_table_in_force_run_on() -> None:
    """From the sending of the renewing report; a renewal of another table, or by an older leader, does nothing."""
    desk = Desk()
    desk.leases.answer(answer(desk.leases.next_report(), table=desk.table(3, 1)))
    desk.clock.advance(8)
    desk.leases.answer(answer(desk.leases.next_report(), renewed=3))
    desk.clock.advance(9)
    assert desk.rate == 60_000
    desk.leases.answer(answer(desk.leases.next_report(), renewed=2))
    desk.leases.answer(answer(desk.leases.next_report(), renewed=3, epoch=4))
    desk.clock.advance(1.1)
    assert desk.rate == 600


def test_a_gap_between_two_leases_is_paid_at_the_safe_rate() -> None:
    """A renewal after the end does not reach back: 600 a minute for 60 s, then 60,000 for one."""
    desk = Desk()
    desk.leases.answer(answer(desk.leases.next_report(), table=desk.table(3, 1)))
    assert isinstance(desk.holds.hold(KEY, 30_000, desk.clock.monotonic_ns()), Hold)
    desk.clock.advance(70)
    desk.leases.answer(answer(desk.leases.next_report(), renewed=3))
    desk.clock.advance(1)
    assert desk.holds.view(KEY, desk.clock.monotonic_ns()).level_milli_mu == 10_000 + 600 + 1_000


def test_a_resent_table_is_a_renewal() -> None:
    """The limiter has not heard yet that it arrived: applied once, it runs on from the newer report."""
    desk = Desk()
    table = desk.table(3, 1)
    desk.leases.answer(answer(desk.leases.next_report(), table=table))
    desk.holds.hold(KEY, 10_000, desk.clock.monotonic_ns())
    desk.clock.advance(8)
    desk.leases.answer(answer(desk.leases.next_report(), table=table))
    desk.clock.advance(9)
    assert desk.rate == 60_000


def test_shards_come_and_expire_by_themselves() -> None:
    """A table replaces only its own shard's leases."""
    desk = Desk()
    other = desk.table(4, 1)
    other.shard = 9
    other.leases[0].tenant_id = "zeta"
    report = desk.leases.next_report()
    desk.leases.answer(answer(report, table=desk.table(3, 1)))
    desk.leases.answer(answer(report, table=other))
    assert desk.leases.applied == {0: (5, 3), 9: (5, 4)}
    empty = desk.table(5, 1)
    del empty.leases[:]
    desk.leases.answer(answer(report, table=empty))
    assert desk.rate == 0
    assert desk.holds.view(("zeta", "tiny"), desk.clock.monotonic_ns()).rate_milli_mu_per_minute == 60_000


@pytest.mark.parametrize(("router", "incarnation"), [("other", "now"), ("r", "before")])
def test_tables_for_others_are_not_ours(router: str, incarnation: str) -> None:
    """Another router's table, or one of an earlier process once we have our own, changes nothing."""
    desk = Desk()
    report = desk.leases.next_report()
    assert desk.leases.take(desk.table(1, report))
    assert not desk.leases.take(desk.table(2, report, rate=1, router=router, incarnation=incarnation))
    assert desk.rate == 60_000


def test_a_table_for_a_report_never_sent_is_ignored() -> None:
    """Its time cannot be known."""
    desk = Desk()
    assert not desk.leases.take(desk.table(1, 12345))
    assert not desk.leases.usable


def test_the_previous_process_leaves_its_safe_rates_until_the_first_own_table() -> None:
    """From the snapshot a new process admits at the safe rate at once; its first own table brings no second burst."""
    desk = Desk()
    assert desk.leases.take(desk.table(9, 100, incarnation="before"))
    assert desk.leases.usable
    assert desk.leases.applied == {}
    assert desk.rate == 600
    assert desk.holds.view(KEY, desk.clock.monotonic_ns()).level_milli_mu == 0, "what it saved up may be spent"
    assert desk.leases.take(desk.table(1, desk.leases.next_report(), epoch=1))
    assert desk.rate == 60_000
    assert desk.holds.view(KEY, desk.clock.monotonic_ns()).level_milli_mu == 0


async def test_the_mirrors_feed_tables_fleet_and_leases_and_come_back_from_disk(tmp_path: Path) -> None:
    """What the store says arrives; with the store gone a new process has it all from its snapshots."""
    store, clock = MemoryStore(), FakeClock()
    await store.put(keys.tenant("acme"), admin_pb2.Tenant(tenant_id="acme").SerializeToString())
    await store.put(keys.model("tiny"), admin_pb2.Model(model_id="tiny").SerializeToString())
    await store.put(keys.policy("tiny", "acme"), admin_pb2.Reservation(tenant_id="acme").SerializeToString())
    record = engine_pb2.Replica(replica_id="a", model_id="tiny", state=engine_pb2.REPLICA_STATE_READY)
    await store.put(keys.replica("a"), record.SerializeToString())
    table = Desk().table(1, 1, incarnation="before")
    await store.put(keys.lease("r", 0), table.SerializeToString())
    await store.put(keys.lease("r2", 0), Desk().table(2, 1, router="r2").SerializeToString())

    def start() -> tuple[RouterState, Fleet, LeaseDesk]:
        state = RouterState(store, router_id="r", state_dir=tmp_path, clock=clock)
        fleet = Fleet()
        desk = LeaseDesk(Holds(), clock, router_id="r", incarnation_id="now")
        state.feed_fleet(fleet, lambda: None)
        state.feed_leases(desk)
        return state, fleet, desk

    state, fleet, desk = start()
    assert state.missing()
    running = asyncio.create_task(state.run())
    await eventually(lambda: state.missing() is None)
    assert fleet.get("a")
    assert desk.usable
    assert state.tables().model("acme", "tiny").model_id == "tiny"
    await store.delete(keys.replica("a"))
    await eventually(lambda: fleet.get("a") is None)
    await store.put(keys.replica("b"), engine_pb2.Replica(replica_id="b", model_id="tiny").SerializeToString())
    await eventually(lambda: fleet.get("b"))
    await eventually(lambda: b"b" in (tmp_path / "replicas.snapshot").read_bytes())
    running.cancel()
    await store.set_down(True)
    state, fleet, desk = start()
    assert state.missing() is None
    assert fleet.get("b")
    assert desk.usable
    assert [model.model_id for model in state.tables().models_of("acme")] == ["tiny"]


def live_profile(version: int) -> CostProfile:
    """A stored profile that costs `version` times the one that ships."""
    shipped = built_in_profiles().get(DEFAULT)
    return replace(shipped, profile_id=f"tiny/h100/{version}", model="tiny", version=version, b=shipped.b * version)


def model_with(profile_id: str, previous: str = "") -> admin_pb2.Model:
    """A model on H100s that names a profile."""
    engine = admin_pb2.EngineSpec(hardware="h100")
    return admin_pb2.Model(model_id="tiny", engine=engine, profile_id=profile_id, previous_profile_id=previous)


async def test_profiles_in_the_store_price_at_once_and_come_back_from_disk(tmp_path: Path) -> None:
    """A model's new profile prices its next request, a corrupt one harms nobody, and snapshots hold them all."""
    store = MemoryStore()
    for version in (1, 2):
        wire = profile_to_proto(live_profile(version))
        await store.put(keys.profile(wire.profile_id), wire.SerializeToString())
    await store.put(keys.profile("tiny/h100/3"), b"\xff\xff")
    await store.put(keys.model("tiny"), model_with("tiny/h100/1").SerializeToString())

    def start() -> RouterState:
        return RouterState(store, router_id="r", state_dir=tmp_path, clock=FakeClock())

    def priced(state: RouterState, tables: Tables, profile_id: str) -> bool:
        return tables.profile(state.models.items["tiny"]).profile_id == profile_id

    state = start()
    tables = state.tables()
    running = asyncio.create_task(state.run())
    try:
        await eventually(lambda: priced(state, tables, "tiny/h100/1"))
        await store.put(keys.model("tiny"), model_with("tiny/h100/2", "tiny/h100/1").SerializeToString())
        await eventually(lambda: priced(state, tables, "tiny/h100/2"))
        assert tables.profile(state.models.items["tiny"]).b == 2 * built_in_profiles().get(DEFAULT).b
        await store.put(keys.model("tiny"), model_with("", "tiny/h100/2").SerializeToString())
        await eventually(lambda: priced(state, tables, DEFAULT))
        await store.put(keys.model("tiny"), model_with("tiny/h100/2").SerializeToString())
        await eventually(lambda: priced(state, tables, "tiny/h100/2"))
        await eventually(lambda: state.missing() is None)
        # What is on disk, read as a process would that starts now.
        await eventually(lambda: priced(started := start(), started.tables(), "tiny/h100/2"))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await store.set_down(True)
    revived = start()
    assert revived.missing() is None
    assert priced(revived, revived.tables(), "tiny/h100/2")


def tables_with(live: dict[str, CostProfile]) -> Tables:
    """Look-ups that know these stored profiles."""
    profiles = built_in_profiles().with_live(live)
    return Tables(keys={}, tenants={}, models={}, policies={}, assignments=Assignments(FakeClock()), profiles=profiles)


def test_a_profile_not_seen_yet_leaves_the_old_price() -> None:
    """What a model was priced with stands in for a profile that has not arrived, and the new one takes over."""
    live = {"tiny/h100/1": live_profile(1)}
    tables = tables_with(live)
    assert tables.profile(model_with("tiny/h100/1")).version == 1
    assert tables.profile(model_with("tiny/h100/2")).profile_id == "tiny/h100/1"
    live["tiny/h100/2"] = live_profile(2)
    assert tables.profile(model_with("tiny/h100/2")).version == 2
    del live["tiny/h100/2"]
    assert tables.profile(model_with("tiny/h100/2")).version == 2


def test_a_new_router_prices_with_what_was_in_force_before_the_unknown_profile() -> None:
    """Without a price of its own a router takes the model's previous profile; it refuses where that is unknown too."""
    tables = tables_with({"tiny/h100/1": live_profile(1)})
    assert tables.profile(model_with("tiny/h100/2", "tiny/h100/1")).profile_id == "tiny/h100/1"
    with pytest.raises(UnavailableError, match="tiny/h100/2"):
        tables_with({}).profile(model_with("tiny/h100/2", "tiny/h100/1"))
