"""Elections: one leader, fenced by its epoch."""

from __future__ import annotations

import asyncio

from common.clock import FakeClock
from common.leadership import Election
from common.memory_store import MemoryStore
from fairlead.admin.v1 import admin_pb2
from tests.support.waiting import eventually


def candidate(store: MemoryStore, name: str, clock: FakeClock) -> Election:
    return Election(store, "ratelimiter", admin_pb2.ServiceInstance(instance_id=name), ttl_s=5, clock=clock)


async def test_one_leads_and_a_standby_takes_over_with_a_higher_epoch() -> None:
    """Of two candidates one leads; when it resigns the other leads, with a higher epoch."""
    clock = FakeClock()
    store = MemoryStore(clock)
    first, second = candidate(store, "a", clock), candidate(store, "b", clock)
    one = asyncio.create_task(first.run())
    await first.wait_leader()
    two = asyncio.create_task(second.run())
    await asyncio.sleep(0.05)
    assert not second.is_leader
    epoch = first.epoch
    one.cancel()
    await asyncio.wait([one])
    await eventually(lambda: second.is_leader)
    assert second.epoch > epoch
    two.cancel()


async def test_a_ghost_cannot_write() -> None:
    """A leader that was frozen past its lease finds its fence useless, whatever it believes."""
    clock = FakeClock()
    store = MemoryStore(clock)
    ghost = candidate(store, "a", clock)
    task = asyncio.create_task(ghost.run())
    await ghost.wait_leader()
    fence = ghost.fence()
    task.cancel()
    await asyncio.wait([task])
    successor = candidate(store, "b", clock)
    heir = asyncio.create_task(successor.run())
    await successor.wait_leader()
    assert await store.commit([fence], {"/p/a": b"ghost"}) is None
    assert await store.commit([successor.fence()], {"/p/a": b"heir"}) is not None
    assert await store.commit([], {"/p/a": b"without fencing"}) is not None  # the checker can fail
    heir.cancel()


async def test_a_leader_doubts_itself_on_its_own_clock() -> None:
    """Without a renewal the leader steps down by its own clock before the lease can have ended at the store."""
    clock = FakeClock()
    store = MemoryStore(clock)
    election = candidate(store, "a", clock)
    task = asyncio.create_task(election.run())
    await election.wait_leader()
    await store.set_down(True)
    clock.advance(5.1)
    assert not election.is_leader
    assert election.epoch == 0
    task.cancel()


async def test_a_standby_outlives_compaction() -> None:
    """The history since the leader's election is compacted away: the standby waits on and takes over in time."""
    clock = FakeClock()
    store = MemoryStore(clock)
    first, second = candidate(store, "a", clock), candidate(store, "b", clock)
    one = asyncio.create_task(first.run())
    await first.wait_leader()
    two = asyncio.create_task(second.run())
    for _ in range(3):
        await asyncio.sleep(0.02)
        await store.put("/p/a", b"something else")
        await store.compact()
    await asyncio.sleep(0.02)
    assert not two.done()
    one.cancel()
    await asyncio.wait([one])
    await eventually(lambda: second.is_leader)
    two.cancel()
