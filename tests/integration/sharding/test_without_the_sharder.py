"""What routers and agents know outlives the control plane and the store."""

from __future__ import annotations

import pytest

from common import keys
from common.shard_map import Generation
from tests.integration.router.processes import MODEL
from tests.integration.sharding.conftest import REPLICAS, Serving
from tests.integration.sharding.fleet import Traffic, by_key, held, strays, subsets
from tests.support.waiting import eventually

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]


async def forgotten(serving: Serving) -> dict[int, tuple[str, ...]]:
    """Kills the sharder and takes the assignment out of the store; returns what it said once all agents hold it."""
    stored = await serving.fleet.stored()
    assert stored is not None
    for replica in await serving.fleet.replicas():
        await serving.fleet.wait_holding(replica.address, Generation.of(stored.generation))
    serving.control.kill()
    stored = await serving.fleet.stored()
    assert stored is not None
    await serving.fleet.store.delete(keys.assignment(MODEL))
    return subsets(stored)


async def test_a_new_router_learns_the_subsets_from_its_neighbours(serving: Serving) -> None:
    """With the control plane killed and the assignment deleted from the store, a new router routes by the same subsets:
    it has them from agents and routers, and both routers send every session to the same few replicas."""
    before = await forgotten(serving)
    other = await serving.another_router()

    async def same() -> bool:
        return [subsets(each) for each in await held(other.grpc_address) if each.model_id == MODEL] == [before]

    await eventually(same, 20.0, "the new router holds the same subsets")
    (assignment,) = await held(other.grpc_address)
    async with Traffic([serving.router, other]) as traffic:
        await traffic.flows(120)
    assert not traffic.errors
    assert not strays(traffic.sent, assignment)
    assert {each.router for each in traffic.sent} == {serving.router, other}
    assert max(map(len, by_key(traffic.sent).values())) <= 3, "no session leaves its subset"


async def test_a_new_sharder_learns_before_it_assigns(serving: Serving) -> None:
    """A sharder that finds an empty store takes the assignment over from agents and routers: the subsets stay, only the
    generation grows, and no router ever sees another one."""
    old = await serving.fleet.stored()
    assert old is not None
    before = await forgotten(serving)
    async with Traffic([serving.router]) as traffic:
        serving.another_control()
        assigned = await serving.fleet.wait_assigned(REPLICAS)
        stored = await serving.fleet.stored()
        assert stored is not None
        assert subsets(stored) == before, stored.reason
        assert assigned.generation > Generation.of(old.generation)
        await serving.fleet.wait_holding(serving.router.grpc_address, assigned.generation)
        await traffic.flows()
    assert not traffic.errors
    assert not strays(traffic.sent, stored)


async def test_an_older_assignment_in_the_store_is_overruled(serving: Serving) -> None:
    """A store that was set back to an older assignment does not take the fleet back with it: the next sharder goes on
    from what agents and routers hold."""
    fleet = serving.fleet
    first = await fleet.stored()
    assert first is not None
    fleet.start_agent("agent-late")
    later = await fleet.wait_assigned(REPLICAS + 1)
    for replica in await fleet.replicas():
        await fleet.wait_holding(replica.address, later.generation)
    serving.control.kill()
    newest = await fleet.stored()
    assert newest is not None
    await fleet.store.put(keys.assignment(MODEL), first.SerializeToString())
    serving.another_control()

    async def recovered() -> bool:
        stored = await fleet.stored()
        return stored is not None and Generation.of(stored.generation) > Generation.of(newest.generation)

    await eventually(recovered, 45.0, "an assignment newer than the newest")
    stored = await fleet.stored()
    assert stored is not None
    assert subsets(stored) == subsets(newest), stored.reason
