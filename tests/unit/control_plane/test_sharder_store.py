"""The sharder's service and its store: assignments damaged, lost, set back, and found again at those that hold them."""

from __future__ import annotations

import dataclasses
import time

import pytest

from common import keys
from common.memory_store import MemoryStore
from common.shard_map import GENERATION_MAX, Generation
from control_plane import sharded_model
from control_plane.assignment_messages import to_message
from control_plane.core.sharding.values import Placement, Slice
from control_plane.sharded_model import ASKED_TIMES, RETURN_S
from fairlead.admin.v1 import admin_pb2
from fairlead.sharding.v1 import sharding_pb2
from tests.support.agents import FakeAgent
from tests.support.waiting import eventually
from tests.unit.control_plane.sharder_lab import (
    CONFIG,
    MODEL,
    Lab,
    assigned,
    events,
    put_model,
    put_replica,
    ready,
    stored,
)


def held(incarnation: int, number: int, *replica_ids: str) -> sharding_pb2.Assignment:
    placement = Placement(
        Generation(incarnation, number),
        (Slice(0, replica_ids),),
        {replica_id: replica_id for replica_id in replica_ids},
    )
    return to_message(MODEL, placement, 0)


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
