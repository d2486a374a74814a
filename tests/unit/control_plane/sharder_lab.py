"""The sharder's service on a store in memory, with agents over real gRPC and a core that is easy to foresee."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from common import keys
from common.clock import FakeClock, SystemClock
from common.leadership import Election
from common.memory_store import MemoryStore
from common.mirror import Mirror
from common.shard_map import Generation
from control_plane.assignment_messages import from_bytes
from control_plane.assignment_recovery import AssignmentRecovery
from control_plane.config import ControlPlaneConfig
from control_plane.core.sharding.values import Cause, Happened, Life, Move, Placement, Round, Slice, View
from control_plane.events import Events
from control_plane.fleet_views import FleetViews
from control_plane.metrics import ControlPlaneMetrics
from control_plane.replica_loads import ReplicaLoads
from control_plane.sharded_model import Assigning
from control_plane.sharder import Sharder
from fairlead.admin.v1 import admin_pb2, calibration_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.sharding.v1 import sharding_pb2
from model_units.wire import decode_profile
from tests.support.waiting import eventually

MODEL = "tiny"
CONFIG = ControlPlaneConfig(storm_wait_s=0.3, assign_interval_s=300.0, recovery_wait_s=1.0)


class EveryoneServesAll:
    """A core with one slice on every open replica; it remembers what it was shown."""

    def __init__(self) -> None:
        self.views: list[View] = []
        self.balanced: list[bool] = []
        self.threads: set[int] = set()
        self.happens: list[Happened] = []

    def round(self, view: View, previous: Placement | None, *, incarnation: int, now_ms: int, balance: bool) -> Round:
        """See Assigner."""
        self.views.append(view)
        self.balanced.append(balance)
        self.threads.add(threading.get_ident())
        happened, self.happens = tuple(self.happens), []
        heat = {replica_id: sum(each.rate for each in loads) for replica_id, loads in view.loads.items()}
        open_ids = tuple(sorted(server.replica_id for server in view.servers if server.life is Life.OPEN))
        load = sum(heat.values())
        if not open_ids or (previous is not None and previous.slices[0].replica_ids == open_ids):
            return Round(None, happened, heat, {0: load})
        left = sorted(set(previous.slices[0].replica_ids) - set(open_ids)) if previous is not None else []
        placement = Placement(
            Generation(incarnation, now_ms)
            if previous is None
            else Generation(previous.generation.incarnation, max(now_ms, previous.generation.number + 1)),
            (Slice(0, open_ids, load=load),),
            {server.replica_id: server.seat for server in view.servers if server.life is Life.OPEN},
            "everyone serves all",
            tuple(Move(0, "", replica_id, "", Cause.REMOVAL, 0, 0) for replica_id in left),
        )
        return Round(placement, happened, heat, {0: load})


class Lab:
    """One instance of the control plane's sharder."""

    def __init__(
        self,
        store: MemoryStore,
        config: ControlPlaneConfig = CONFIG,
        name: str = "cp-1",
        assigner: Callable[[], Assigning] | None = None,
    ) -> None:
        self.store = store
        self.config = config
        self.core = EveryoneServesAll()
        self.registry = CollectorRegistry()
        metrics = ControlPlaneMetrics(self.registry)
        self.report_clock = FakeClock()
        me = admin_pb2.ServiceInstance(service="control-plane", instance_id=name)
        self.election = Election(store, "control-plane", me, ttl_s=2)
        self.views = FleetViews(
            replicas=Mirror(store, keys.REPLICAS, engine_pb2.Replica.FromString),
            models=Mirror(store, keys.MODELS, admin_pb2.Model.FromString),
            reservations=Mirror(store, keys.POLICIES, admin_pb2.Reservation.FromString),
            profiles=Mirror(store, keys.PROFILES, decode_profile),
            routers=Mirror(store, f"{keys.SERVICES}router/", admin_pb2.ServiceInstance.FromString),
        )
        self.loads = ReplicaLoads(self.views.replicas.items.values, name, self.report_clock, metrics)
        self.sharder = Sharder(
            store,
            self.views,
            self.election,
            loads=self.loads,
            recovery=AssignmentRecovery("platform-token", config.recovery_wait_s),
            events=Events(store, SystemClock()),
            config=config,
            clock=SystemClock(),
            metrics=metrics,
            assigner=assigner or (lambda: self.core),
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Lab]:
        """Runs it."""
        views = self.views
        mirrors: tuple[Any, ...] = (views.replicas, views.models, views.reservations, views.profiles, views.routers)
        tasks = [asyncio.create_task(part.run()) for part in (*mirrors, self.election, self.sharder)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def metric(self, name: str, labels: Mapping[str, str] | None = None) -> float | None:
        """A metric's value now."""
        return self.registry.get_sample_value(name, dict(labels or {}))


async def put_model(store: MemoryStore, model_id: str = MODEL) -> None:
    """Creates a model."""
    engine = admin_pb2.EngineSpec(engine="simulated", hardware="h100")
    await store.put(keys.model(model_id), admin_pb2.Model(model_id=model_id, engine=engine).SerializeToString())


async def put_replica(store: MemoryStore, record: engine_pb2.Replica) -> None:
    """Registers a replica."""
    await store.put(keys.replica(record.replica_id), record.SerializeToString())


def ready(replica_id: str, **fields: Any) -> engine_pb2.Replica:
    """The record of a replica that nobody can dial."""
    base = {"replica_id": replica_id, "model_id": MODEL, "state": engine_pb2.REPLICA_STATE_READY}
    return engine_pb2.Replica(**{**base, "capacity_milli_mu_per_minute": 100_000, **fields})


async def stored(store: MemoryStore, model_id: str = MODEL) -> sharding_pb2.Assignment:
    """The assignment in the store; an empty one where there is none."""
    entry = await store.get(keys.assignment(model_id))
    return from_bytes(entry.value) if entry is not None else sharding_pb2.Assignment()


async def assigned(store: MemoryStore, *replica_ids: str, timeout_s: float = 10.0) -> sharding_pb2.Assignment:
    """Waits until the assignment names exactly these replicas."""

    async def named() -> bool:
        return list((await stored(store)).replica_ids) == list(replica_ids)

    await eventually(named, timeout_s, f"an assignment to {replica_ids}")
    return await stored(store)


async def events(store: MemoryStore) -> list[calibration_pb2.Event]:
    """What was written down, oldest first."""
    return [calibration_pb2.Event.FromString(entry.value) for entry in (await store.list(keys.EVENTS)).entries]
