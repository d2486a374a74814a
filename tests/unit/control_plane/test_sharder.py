"""The sharder's service: replicas that come, go, die, hang and talk nonsense, and models that fail or go."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from typing import Any

import pytest

from common import keys
from common.memory_store import MemoryStore
from common.shard_map import ShardMap, tenant_keys
from control_plane import sharder
from control_plane.core.heartbeats import SILENT_S
from control_plane.core.sharding.assigner import Assigner
from control_plane.core.sharding.values import Happened, Life, Placement, Round, View
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
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
