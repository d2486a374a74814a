"""The sharder's service: replicas that come, go, die, hang and talk nonsense, and a store that is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from typing import Any

import pytest

from common import keys
from common.memory_store import MemoryStore
from common.shard_map import GENERATION_MAX, Generation, ShardMap, tenant_keys
from control_plane import sharded_model, sharder
from control_plane.assignment_messages import to_message
from control_plane.core.heartbeats import SILENT_S
from control_plane.core.sharding.assigner import Assigner
from control_plane.core.sharding.values import Happened, Life, Placement, Round, Slice, View
from control_plane.sharded_model import ASKED_TIMES, RETURN_S
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.sharding.v1 import sharding_pb2
from tests.support.agents import FakeAgent
from tests.support.waiting import eventually
from tests.unit.control_plane.sharder_lab import (
    CONFIG,
    MODEL,
    EveryoneServesAll,
    Lab,
    assigned,
    events,
    put_model,
    put_replica,
    ready,
    stored,
)


@pytest.fixture
async def store() -> MemoryStore:
    """A store with one model."""
    store = MemoryStore()
    await put_model(store)
    return store


def held(incarnation: int, number: int, *replica_ids: str) -> sharding_pb2.Assignment:
    placement = Placement(
        Generation(incarnation, number),
        (Slice(0, replica_ids),),
        {replica_id: replica_id for replica_id in replica_ids},
    )
    return to_message(MODEL, placement, 0)


async def test_the_fleet_and_its_load_reach_the_core(store: MemoryStore) -> None:
    """Proves what a round is shown: ready replicas as open, draining ones as leaving, reservations, loads, the price of
    a token; that it runs beside the loop; and that regular rounds come at their pace."""
    async with FakeAgent("a") as agent:
        agent.load(7 << 32, 4_000, "acme", in_flight=1)
        await put_replica(store, agent.record(slot="seat-1"))
        await put_replica(store, ready("b", state=engine_pb2.REPLICA_STATE_DRAINING))
        await put_replica(store, ready("c", state=engine_pb2.REPLICA_STATE_UNHEALTHY))
        await put_replica(store, ready("d", model_id="other"))
        reservation = admin_pb2.Reservation(tenant_id="acme", model_id=MODEL, reserved_milli_mu_per_minute=5)
        await store.put(keys.policy(MODEL, "acme"), reservation.SerializeToString())
        lab = Lab(store, dataclasses.replace(CONFIG, assign_interval_s=0.3))
        async with lab.running():
            await assigned(store, "a")
            await eventually(lambda: True in lab.core.balanced and lab.core.views[-1].loads.get("a"))
            view = lab.core.views[-1]
            assert [(s.replica_id, s.seat, s.life) for s in view.servers] == [
                ("a", "seat-1", Life.OPEN),
                ("b", "b", Life.LEAVING),
            ]
            assert view.reserved == {"acme": 5}
            assert view.loads["a"][0].rate == 4_000
            assert view.token_milli_mu > 0
            assert threading.get_ident() not in lab.core.threads
            assert lab.core.balanced[0] is False, "the first look only deals with what is there"
            answer = lab.sharder.heat(MODEL)
            assert [(h.replica_id, h.load_milli_mu_per_minute, h.slices) for h in answer.replicas] == [
                ("a", 4_000, 1),
                ("b", 0, 0),
            ]
            assert [heat.load_milli_mu_per_minute for heat in answer.slices] == [4_000]
        assert not lab.sharder.heat().replicas, "a deposed leader knows nothing of load"


async def test_losses_gather_for_a_moment(store: MemoryStore) -> None:
    """Proves the storm wait: replicas that vanish one after another move tenants once."""
    for name in "abcdef":
        await put_replica(store, ready(name))
    lab = Lab(store)
    async with lab.running():
        first = await assigned(store, *"abcdef")
        for name in "ab":
            await store.delete(keys.replica(name))
        second = await assigned(store, *"cdef")
    assert second.generation.number > first.generation.number
    assert lab.metric("fairlead_sharder_assignments_total", {"model": MODEL}) == 2
    assert lab.metric("fairlead_sharder_moves_total", {"model": MODEL, "cause": "removal"}) == 2


async def test_nothing_changes_for_nothing(store: MemoryStore) -> None:
    """Proves that records which are written again, as agents do, cost no round."""
    await put_replica(store, ready("a"))
    lab = Lab(store)
    async with lab.running():
        await assigned(store, "a")
        rounds = len(lab.core.views)
        looks = lab.metric("fairlead_sharder_rounds_total") or 0
        await put_replica(store, ready("a", drift_ratio=1.1))
        await eventually(lambda: (lab.metric("fairlead_sharder_rounds_total") or 0) > looks)
        assert len(lab.core.views) == rounds


async def test_an_empty_view_keeps_the_last_assignment(store: MemoryStore) -> None:
    """Proves that replicas which all vanish leave the assignment alone, and a deleted model takes it along."""
    await put_replica(store, ready("a"))
    lab = Lab(store)
    async with lab.running():
        before = await assigned(store, "a")
        await store.delete(keys.replica("a"))
        await put_model(store, "other")
        await put_replica(store, ready("o", model_id="other"))

        async def other() -> bool:
            return bool((await stored(store, "other")).slices)

        await eventually(other, what="the sharder works on")
        assert await stored(store) == before
        await store.delete(keys.model("other"))
        await eventually(lambda: _gone(store, "other"))


async def _gone(store: MemoryStore, model_id: str) -> bool:
    return await store.get(keys.assignment(model_id)) is None


async def test_a_crashed_agent_leaves_before_its_lease_ends(store: MemoryStore) -> None:
    """Proves that a registered replica whose port refuses connections is out of the assignment at once, with an event,
    and one that hangs after its silence; the printed time is from the crash to the commit."""
    async with FakeAgent("a") as a, FakeAgent("b") as b, FakeAgent("c") as c, FakeAgent("d") as d:
        for agent in (a, b, c, d):
            await put_replica(store, agent.record())
        lab = Lab(store)
        async with lab.running():
            await assigned(store, *"abcd")
            await eventually(lambda: lab.metric("fairlead_sharder_replicas_heard") == 4)
            crashed_s = time.monotonic()
            await a.crash()
            await assigned(store, *"bcd")
            print(f"crash to assignment: {time.monotonic() - crashed_s:.1f} s")
            assert [event.kind for event in await events(store)] == ["REPLICA_SILENT"]
            b.silent = True
            lab.report_clock.advance(SILENT_S + 1)
            await assigned(store, *"cd")


async def test_what_the_core_noticed_is_written_down_once(store: MemoryStore) -> None:
    """Proves that happenings become events of their model with their facts, also without a new assignment."""
    await put_replica(store, ready("a"))
    lab = Lab(store, dataclasses.replace(CONFIG, assign_interval_s=0.1))
    async with lab.running():
        await assigned(store, "a")
        lab.core.happens = [Happened("KEY_OF_DEATH", "acme", "two replicas crashed", {"kind": "x", "model": "y"})]

        async def told() -> bool:
            return bool(await events(store))

        await eventually(told)
        rounds = len(lab.core.views)
        await eventually(lambda: len(lab.core.views) > rounds + 2)
    (event,) = await events(store)
    assert (event.kind, event.model_id, event.message) == ("KEY_OF_DEATH", MODEL, "two replicas crashed")
    assert dict(event.facts) == {"tenant_id": "acme", "kind": "x", "model": "y"}


@pytest.mark.parametrize("value", [b"\xff\xff", b"", held(5, 9, "x").SerializeToString()[:-4]])
async def test_a_damaged_assignment_is_replaced(store: MemoryStore, value: bytes) -> None:
    """Proves that what cannot be read in the store neither stops the sharder nor survives it."""
    await store.put(keys.assignment(MODEL), value)
    await put_replica(store, ready("a"))
    async with Lab(store).running():
        assert (await assigned(store, "a")).generation.incarnation > 0


async def test_a_lost_store_is_restored_from_those_that_hold_it(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves recovery: an empty store and an agent that still holds an assignment give its successor in the same line,
    nobody is moved while replicas it names have not registered again, and it is written down."""
    monkeypatch.setattr(sharded_model, "RETURN_S", RETURN_S / 2)
    async with FakeAgent("a") as a, FakeAgent("b") as b:
        a.held = [held(70, 4_000, "a", "b", "gone")]
        await put_replica(store, a.record())
        await put_replica(store, b.record())
        lab = Lab(store)
        async with lab.running():
            recovered = await assigned(store, "a", "b", "gone")
            assert recovered.generation.incarnation == 70
            assert recovered.generation.number > 4_000
            assert "agents and routers" in recovered.reason
            assert [event.kind for event in await events(store)] == ["ASSIGNMENT_RECOVERED"]
            assert not lab.core.views, "nothing is decided before the replicas are back"
            began_s = time.monotonic()
            after = await assigned(store, "a", "b", timeout_s=RETURN_S + 10)
            assert time.monotonic() - began_s > 1.0
            assert after.generation.incarnation == 70


async def test_a_router_alone_saves_the_assignment(store: MemoryStore) -> None:
    """Proves that routers are asked too, and that replicas which are all back are not waited for."""
    async with FakeAgent("router-1") as router:
        router.held = [held(70, 4_000, "a", "b")]
        instance = admin_pb2.ServiceInstance(service="router", instance_id="router-1", address=router.address)
        await store.put(keys.service("router", "router-1"), instance.SerializeToString())
        for name in "abc":
            await put_replica(store, ready(name))
        async with Lab(store).running():
            assert (await assigned(store, *"abc")).generation.incarnation == 70


async def test_an_older_store_gives_way_to_a_newer_holder(store: MemoryStore) -> None:
    """Proves that a store set back is noticed when it is read; and that an agent that claims a newer assignment and has
    none changes nothing."""
    await store.put(keys.assignment(MODEL), held(70, 100, "a").SerializeToString())
    async with FakeAgent("a") as a, FakeAgent("b") as b:
        a.held = [held(70, 4_000, "a", "b")]
        await put_replica(store, a.record())
        await put_replica(store, b.record())
        lab = Lab(store)
        async with lab.running():
            first = await assigned(store, "a", "b")
            assert (first.generation.incarnation, first.generation.number > 4_000) == (70, True)
            looks = lab.metric("fairlead_sharder_rounds_total") or 0
            b.says.assignment.incarnation = 999
            await eventually(lambda: lab.loads.newest_generation(MODEL) == Generation(999))
            await eventually(lambda: (lab.metric("fairlead_sharder_rounds_total") or 0) > looks)
            assert (await stored(store)).generation.incarnation == 70


async def test_incarnations_only_grow(store: MemoryStore) -> None:
    """Proves that a first assignment is newer than any that this leader ever saw of any model."""
    await put_model(store, "known")
    known = held(10**6, 5, "k")
    known.model_id = "known"
    await store.put(keys.assignment("known"), known.SerializeToString())
    await put_replica(store, ready("a"))
    async with Lab(store).running():
        assert (await assigned(store, "a")).generation.incarnation == 10**6 + 1


async def test_a_conflict_is_read_again(store: MemoryStore) -> None:
    """Proves that an assignment somebody else wrote meanwhile is neither overwritten blindly nor an end."""
    await put_replica(store, ready("a"))
    lab = Lab(store)
    async with lab.running():
        await assigned(store, "a")
        await store.put(keys.assignment(MODEL), held(10**6, 10**15, "a").SerializeToString())
        await put_replica(store, ready("b"))
        after = await assigned(store, "a", "b")
    assert (after.generation.incarnation, after.generation.number) == (10**6, 10**15 + 1)
    assert lab.metric("fairlead_sharder_conflicts_total") == 1


@pytest.mark.parametrize("lost", [True, False])
async def test_a_store_set_back_under_a_leader_is_found(store: MemoryStore, lost: bool) -> None:
    """Proves that a leader notices at its next regular round that its assignment is gone from the store, or an older
    one there, although nothing in the fleet changes; and puts its own back as a newer one."""
    await put_replica(store, ready("a"))
    lab = Lab(store, dataclasses.replace(CONFIG, assign_interval_s=0.3))
    async with lab.running():
        before = await assigned(store, "a")
        if lost:
            await store.delete(keys.assignment(MODEL))
        else:
            await store.put(keys.assignment(MODEL), held(1, 1, "old").SerializeToString())
        after = await assigned(store, "a")
        assert Generation.of(after.generation) > Generation.of(before.generation)
        assert after.generation.incarnation == before.generation.incarnation


async def test_assignments_stand_while_the_store_is_away(store: MemoryStore) -> None:
    """Proves that an outage loses nothing: the first change after it is assigned in the same line."""
    await put_replica(store, ready("a"))
    lab = Lab(store)
    async with lab.running():
        before = await assigned(store, "a")
        await store.set_down(True)
        await eventually(lambda: not lab.election.is_leader, 10.0)
        await store.set_down(False)
        await put_replica(store, ready("b"))
        after = await assigned(store, "a", "b", timeout_s=30.0)
    assert after.generation.incarnation == before.generation.incarnation
    assert after.generation.number > before.generation.number


async def test_the_newest_start_wins_an_address(store: MemoryStore) -> None:
    """Proves that an agent that was restarted on its address replaces its predecessor, whose lease still stands."""
    old, new = ready("z-old", address="10.0.0.1:70"), ready("a-new", address="10.0.0.1:70")
    old.start_time.seconds, new.start_time.seconds = 100, 200
    await put_replica(store, old)
    async with Lab(store).running():
        await assigned(store, "z-old")
        await put_replica(store, new)
        await assigned(store, "a-new", timeout_s=15.0)


class Failing(EveryoneServesAll):
    """A core that fails while it is told to."""

    fails = True

    def round(self, view: View, previous: Placement | None, **when: Any) -> Round:
        """See Assigner."""
        if self.fails:
            raise ArithmeticError("the core has a bug")
        return super().round(view, previous, **when)


async def test_a_model_that_fails_stops_no_other(store: MemoryStore) -> None:
    """Proves that a bug that one model's fleet brings out is counted and tried again, and that the models after it are
    assigned meanwhile."""
    await put_model(store, "a-first")
    cores = [Failing(), EveryoneServesAll()]
    lab = Lab(store, dataclasses.replace(CONFIG, assign_interval_s=0.2), assigner=lambda: cores.pop(0))
    failing = cores[0]
    assert isinstance(failing, Failing)
    await put_replica(store, ready("f", model_id="a-first"))
    await put_replica(store, ready("a"))
    async with lab.running():
        await assigned(store, "a")
        failures = {"model": "a-first"}
        await eventually(lambda: (lab.metric("fairlead_sharder_failures_total", failures) or 0) > 1)
        failing.fails = False

        async def first() -> bool:
            return list((await stored(store, "a-first")).replica_ids) == ["f"]

        await eventually(first)
        assert not lab.metric("fairlead_sharder_failures_total", {"model": MODEL})


async def test_a_store_that_is_not_understood_does_not_end_the_sharder(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves that a failure outside of any model is counted and tried again."""
    monkeypatch.setattr(sharder, "_FAILED_RETRY_S", 0.5)
    lab = Lab(store)
    listing, failed = store.list, [True]

    async def failing(prefix: str) -> Any:
        if prefix == keys.ASSIGNMENTS and failed:
            failed.pop()
            raise KeyError(prefix)
        return await listing(prefix)

    monkeypatch.setattr(store, "list", failing)
    await put_replica(store, ready("a"))
    async with lab.running():
        await assigned(store, "a")
    assert lab.metric("fairlead_sharder_failures_total", {"model": ""}) == 1


class Slow(EveryoneServesAll):
    """A core that takes until it is let go, in its thread."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()

    def round(self, view: View, previous: Placement | None, **when: Any) -> Round:
        """See Assigner."""
        decided = super().round(view, previous, **when)
        assert self.go.wait(10.0)
        return decided


async def test_a_model_deleted_while_another_is_computed_is_left_out(store: MemoryStore) -> None:
    """Proves that the models of a round may go while it runs."""
    await put_model(store, "a-first")
    core = Slow()
    lab = Lab(store, assigner=lambda: core)
    await put_replica(store, ready("f", model_id="a-first"))
    await put_replica(store, ready("a"))
    async with lab.running():
        await assigned(store, "a")
        seen = len(core.views)
        core.go.clear()
        await put_replica(store, ready("g", model_id="a-first"))
        await put_replica(store, ready("b"))
        await eventually(lambda: len(core.views) > seen)
        await store.delete(keys.model(MODEL))
        await eventually(lambda: MODEL not in lab.views.models.items)
        core.go.set()
        await eventually(lambda: _gone(store, MODEL))
        assert list((await stored(store, "a-first")).replica_ids) == ["f", "g"]
    assert not lab.metric("fairlead_sharder_failures_total", {"model": MODEL})


async def test_a_regular_round_waits_for_a_storm_and_is_not_left_out(store: MemoryStore) -> None:
    """Proves that a regular round that falls due while losses gather comes with the round that ends the wait."""
    for name in "abcd":
        await put_replica(store, ready(name))
    lab = Lab(store, dataclasses.replace(CONFIG, assign_interval_s=1.0, storm_wait_s=1.5))
    async with lab.running():
        await eventually(lambda: True in lab.core.balanced)
        await store.delete(keys.replica("a"))
        await assigned(store, *"bcd")
        after = next(at for at, view in enumerate(lab.core.views) if len(view.servers) == 3)
        assert lab.core.balanced[after]


async def test_a_replica_that_is_calibrated_is_leaving_and_not_gone(store: MemoryStore) -> None:
    """Proves that calibrations with requests in flight are no crashes: the core still sees the replica."""
    await put_replica(store, ready("a"))
    await put_replica(store, ready("b"))
    lab = Lab(store)
    async with lab.running():
        await assigned(store, "a", "b")
        await put_replica(store, ready("b", state=engine_pb2.REPLICA_STATE_CALIBRATING))
        await assigned(store, "a")
    assert [(s.replica_id, s.life) for s in lab.core.views[-1].servers] == [("a", Life.OPEN), ("b", Life.LEAVING)]


async def test_a_silent_holder_is_asked_again_before_a_first_assignment(store: MemoryStore) -> None:
    """Proves that an agent that did not answer in time is asked once more before the sharder starts from nothing, and
    not for ever."""
    async with FakeAgent("a") as a, FakeAgent("b") as b:
        a.silent = b.silent = True
        a.held = [held(70, 4_000, "a", "b")]
        await put_replica(store, a.record())
        await put_replica(store, b.record())
        async with Lab(store).running():
            await eventually(lambda: a.asked and b.asked)
            assert not (await stored(store)).slices
            a.silent = False
            assert (await assigned(store, "a", "b")).generation.incarnation == 70
            assert len(b.asked) <= 2


async def test_holders_that_stay_silent_do_not_keep_a_model_unassigned(store: MemoryStore) -> None:
    """Proves the other bound: after ASKED_TIMES a first assignment is made without them."""
    async with FakeAgent("a") as a:
        a.silent = True
        await put_replica(store, a.record())
        async with Lab(store).running():
            await assigned(store, "a")
            assert len(a.asked) == ASKED_TIMES


async def test_a_number_that_ran_away_goes_on_in_the_next_incarnation(store: MemoryStore) -> None:
    """Proves that an assignment with almost the largest number there is stays in force, and leaves room again."""
    await store.put(keys.assignment(MODEL), held(5, GENERATION_MAX, "a").SerializeToString())
    await put_replica(store, ready("a"))
    async with Lab(store).running():

        async def goes_on() -> bool:
            return (await stored(store)).generation.incarnation == 6

        await eventually(goes_on)
        assert (await stored(store)).generation.number < 2**43
        assert list((await stored(store)).replica_ids) == ["a"]


async def test_a_key_of_death_is_frozen_from_what_was_in_flight_at_the_crash(store: MemoryStore) -> None:
    """Proves, with the real core, that two crashes with one tenant's requests in flight freeze that tenant although the
    requests came and killed between two regular rounds; and that it is written down with the tenant's name."""
    first_key = tenant_keys("acme")[0]
    agents = [FakeAgent(f"r{number}") for number in range(8)]
    async with contextlib.AsyncExitStack() as stack:
        for agent in agents:
            await stack.enter_async_context(agent)
            agent.load(tenant_keys("acme")[0], 3_000, "acme")
            for other in ("globex", "initech"):
                agent.load(tenant_keys(other)[0], 30_000, other)
            await put_replica(store, agent.record())
        for tenant_id in ("acme", "globex", "initech"):
            reservation = admin_pb2.Reservation(tenant_id=tenant_id, model_id=MODEL, reserved_milli_mu_per_minute=5)
            await store.put(keys.policy(MODEL, tenant_id), reservation.SerializeToString())
        lab = Lab(store, assigner=Assigner)
        async with lab.running():
            await eventually(lambda: _named(store, agents))
            await eventually(lambda: lab.metric("fairlead_sharder_replicas_heard") == len(agents))
            for _ in range(2):
                serving = ShardMap(await stored(store)).subset(first_key)
                victim = next(agent for agent in agents if agent.replica_id == serving[0])
                victim.says.key_loads[0].in_flight = 1
                told = lab.loads.reports
                await eventually(lambda: told(MODEL)[victim.replica_id].loads()[0].in_flight == 1)  # noqa: B023  # at once
                await victim.crash()
                agents.remove(victim)
                await eventually(lambda: _named(store, agents), 20.0)
            kinds = {event.kind: dict(event.facts) for event in await events(store)}
            assert kinds["KEY_OF_DEATH"]["tenant_id"] == "acme"
            frozen = [each.tenant_id for each in (await stored(store)).slices if each.HasField("frozen_until")]
            assert frozen == ["acme"]


async def _named(store: MemoryStore, agents: list[FakeAgent]) -> bool:
    """Whether an assignment is in force that names only these."""
    named = set((await stored(store)).replica_ids)
    return bool(named) and named <= {agent.replica_id for agent in agents}
