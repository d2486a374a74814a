"""The loop: it looks at the store, acts through the actuator, and only while it leads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from prometheus_client import CollectorRegistry

from common import keys
from common.clock import SystemClock
from common.leadership import Election
from common.memory_store import MemoryStore
from common.mirror import Mirror
from data_plane.autoscaler.actuator import RunningSeat
from data_plane.autoscaler.autoscaler import Autoscaler, Sources
from data_plane.autoscaler.core.seat import ScalePolicy
from data_plane.autoscaler.metrics import AutoscalerMetrics
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import UnavailableError
from tests.support.waiting import eventually

READY, DRAINING = engine_pb2.REPLICA_STATE_READY, engine_pb2.REPLICA_STATE_DRAINING
QUICK = ScalePolicy(
    stable_window_s=0.05,
    removal_interval_s=0.05,
    drain_time_min_s=0.0,
    lost_patience_s=0.2,
    restart_backoff_first_s=0.01,
)


class Fleet:
    """An actuator and its agents in memory: a started agent registers as ready at once."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._seats: dict[tuple[str, str], RunningSeat] = {}
        self.starts: list[str] = []
        self.stopped: list[str] = []
        self.refusals = 0
        self.in_flight = 0

    async def seats(self) -> tuple[RunningSeat, ...]:
        return tuple(self._seats.values())

    async def start(self, model: admin_pb2.Model, slot: str) -> RunningSeat:
        if self.refusals:
            self.refusals -= 1
            raise UnavailableError("no room")
        self.starts.append(slot)
        seat = RunningSeat(model.model_id, slot, len(self.starts), 1000 + len(self.starts), True)
        self._seats[model.model_id, slot] = seat
        await self.register(seat, READY)
        return seat

    async def stop(self, model_id: str, slot: str) -> None:
        await self.die(model_id, slot)
        self.stopped.append(slot)

    async def forget(self, model_id: str, slot: str) -> None:
        self._seats.pop((model_id, slot), None)

    async def drain(self, replica: engine_pb2.Replica) -> int:
        await self.register(self._seats[replica.model_id, replica.slot], DRAINING)
        return self.in_flight

    async def die(self, model_id: str, slot: str) -> None:
        seat = self._seats[model_id, slot]
        self._seats[model_id, slot] = RunningSeat(model_id, slot, seat.start_number, seat.pid, False)
        await self._store.delete(keys.replica(f"r{seat.pid}"))

    async def register(self, seat: RunningSeat, state: engine_pb2.ReplicaState) -> None:
        record = engine_pb2.Replica(
            replica_id=f"r{seat.pid}",
            model_id=seat.model_id,
            slot=seat.slot,
            agent_pid=seat.pid,
            state=state,
            capacity_milli_mu_per_minute=100_000,
        )
        await self._store.put(keys.replica(record.replica_id), record.SerializeToString())

    @property
    def slots(self) -> list[str]:
        return sorted(slot for (_, slot), seat in self._seats.items() if seat.alive)


@asynccontextmanager
async def running(store: MemoryStore, fleet: Fleet, name: str = "a") -> AsyncIterator[Election]:
    """An autoscaler on the fleet."""
    sources = Sources(
        models=Mirror(store, keys.MODELS, admin_pb2.Model.FromString),
        targets=Mirror(store, keys.TARGETS, capacity_pb2.CapacityTarget.FromString),
        replicas=Mirror(store, keys.REPLICAS, engine_pb2.Replica.FromString),
    )
    election = Election(store, "autoscaler", admin_pb2.ServiceInstance(instance_id=name), ttl_s=5)
    autoscaler = Autoscaler(
        election=election,
        sources=sources,
        actuator=fleet,
        drain=fleet.drain,
        policy=QUICK,
        look_interval_s=0.02,
        clock=SystemClock(),
        metrics=AutoscalerMetrics(CollectorRegistry()),
    )
    loops = (sources.models.run, sources.targets.run, sources.replicas.run, election.run, autoscaler.run)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop()) for loop in loops]
        yield election
        for task in tasks:
            task.cancel()


async def put_model(store: MemoryStore, low: int, high: int) -> None:
    model = admin_pb2.Model(model_id="m", replicas_min=low, replicas_max=high)
    await store.put(keys.model("m"), model.SerializeToString())


async def put_target(store: MemoryStore, target: int) -> None:
    asked = capacity_pb2.CapacityTarget(model_id="m", target_milli_mu_per_minute=target)
    await store.put(keys.target("m"), asked.SerializeToString())


async def test_follows_the_target_up_and_down() -> None:
    """A model gets its minimum, a target more, and a lower target drains, stops and forgets down to the minimum."""
    store = MemoryStore()
    fleet = Fleet(store)
    async with running(store, fleet):
        await put_model(store, 1, 4)
        await eventually(lambda: fleet.slots == ["replica-1"])
        await put_target(store, 250_000)
        await eventually(lambda: fleet.slots == ["replica-1", "replica-2", "replica-3"])
        fleet.in_flight = 2
        await put_target(store, 50_000)
        await eventually(lambda: store_has_draining(store, "replica-3"))
        assert fleet.stopped == []
        fleet.in_flight = 0
        await eventually(lambda: sorted(fleet.stopped) == ["replica-2", "replica-3"])
        assert fleet.slots == ["replica-1"]


async def store_has_draining(store: MemoryStore, slot: str) -> bool:
    listing = await store.list(keys.REPLICAS)
    replicas = [engine_pb2.Replica.FromString(entry.value) for entry in listing.entries]
    return any(replica.slot == slot and replica.state == DRAINING for replica in replicas)


async def test_replaces_a_dead_replica_in_its_seat() -> None:
    """A process that dies is started again in the same seat."""
    store = MemoryStore()
    fleet = Fleet(store)
    await put_model(store, 2, 2)
    async with running(store, fleet):
        await eventually(lambda: len(fleet.slots) == 2)
        await fleet.die("m", "replica-2")
        await eventually(lambda: fleet.starts == ["replica-1", "replica-2", "replica-2"])


async def test_tries_again_when_a_start_fails() -> None:
    """A start that could not be carried out is decided again."""
    store = MemoryStore()
    fleet = Fleet(store)
    fleet.refusals = 2
    await put_model(store, 1, 1)
    async with running(store, fleet):
        await eventually(lambda: fleet.slots == ["replica-1"])


async def test_standby_does_nothing_until_it_leads() -> None:
    """Of two autoscalers one acts; the other takes the very same replicas over when the first is gone."""
    store = MemoryStore()
    fleet = Fleet(store)
    await put_model(store, 1, 1)
    async with AsyncExitStack() as later:
        async with running(store, fleet, "first") as first:
            await eventually(lambda: first.is_leader and fleet.starts == ["replica-1"])
            second = await later.enter_async_context(running(store, fleet, "second"))
            assert not second.is_leader
        await fleet.die("m", "replica-1")
        await eventually(lambda: second.is_leader and fleet.starts == ["replica-1", "replica-1"])
