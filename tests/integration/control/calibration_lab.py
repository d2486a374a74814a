"""Calibrations for tests: real agents with simulated engines and a real leader, in one process, on a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from common import keys
from common.clock import SystemClock
from common.etcd_store import EtcdStore
from common.leadership import Election
from common.mirror import Mirror
from common.rpc import channel
from control_plane.calibration.bench import Bench, open_bench
from control_plane.calibration.publish import Publisher
from control_plane.calibration.runner import CalibrationRunner
from control_plane.calibration.runs import Calibrations
from control_plane.events import Events
from control_plane.profiles import StoredProfiles
from control_plane.records import Tables
from engines.config import EngineConfig
from engines.wiring import serve
from fairlead.admin.v1 import admin_pb2
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from model_units.calibration.load import LoadResult, LoadSpec
from tests.support.waiting import eventually

MODEL = "sim-8b"
ENDED = {
    pb.CALIBRATION_STATE_PAUSED,
    pb.CALIBRATION_STATE_PUBLISHED,
    pb.CALIBRATION_STATE_REFUSED,
    pb.CALIBRATION_STATE_FAILED,
}

Spoil = Callable[[str, int, LoadResult], Awaitable[LoadResult]]
"""Told of every measurement before the leader is: (replica, how many there were, result) -> what the leader hears."""


class Agent:
    """One replica agent with a simulated engine, inside this process."""

    def __init__(self, endpoint: str, hardware: str, slot: str) -> None:
        self.slot = slot
        self._stop = asyncio.Event()
        config = EngineConfig(
            etcd_endpoint=endpoint,
            model_id=MODEL,
            hardware=hardware,
            slot=slot,
            bind_host="127.0.0.1",
            drain_grace_s=1.0,
        )
        self._task = asyncio.create_task(serve(config, self._stop))

    async def close(self) -> None:
        self._stop.set()
        await self._task

    async def die(self) -> None:
        """Ends at once, as a killed process would as far as its callers can tell."""
        self._task.cancel()
        await asyncio.wait({self._task})


class Lab:
    """A store with one model, and what stands around it.

    Attributes:
        measured: Every load that was measured to its end, in order, with its replica.
        spoil: See Spoil; returns what it is given unless a test says otherwise.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.store = EtcdStore(endpoint)
        self.clock = SystemClock()
        self.tables = Tables(self.store)
        self.profiles = StoredProfiles(self.store)
        self.events = Events(self.store, self.clock)
        self.publisher = Publisher(self.tables, self.profiles, self.events, self.clock)
        self.api = Calibrations(self.tables, self.profiles, self.publisher, self.clock)
        self.measured: list[tuple[str, LoadSpec]] = []
        self.spoil: Spoil = self._leave
        self.agents: list[Agent] = []

    @staticmethod
    async def _leave(replica_id: str, count: int, result: LoadResult) -> LoadResult:
        return result

    async def put_model(self, hardware: str = "h100") -> None:
        model = admin_pb2.Model(
            model_id=MODEL,
            engine=admin_pb2.EngineSpec(engine="simulated", hardware=hardware),
            context_tokens=8_192,
            output_tokens_max=4_096,
            bytes_per_token=4.0,
        )
        await self.store.put(keys.model(MODEL), model.SerializeToString())

    async def model(self) -> admin_pb2.Model:
        return (await self.tables.models.require(keys.model(MODEL))).record

    async def add_agents(self, count: int, hardware: str = "h100") -> None:
        before = len(await self.replicas())
        self.agents += [Agent(self.endpoint, hardware, f"seat-{len(self.agents) + n}") for n in range(count)]

        async def ready() -> bool:
            states = [replica.state for replica in await self.replicas()]
            return states == [engine_pb2.REPLICA_STATE_READY] * (before + count)

        await eventually(ready, 30.0, "agents that are READY")

    async def replicas(self) -> list[engine_pb2.Replica]:
        return [stored.record for stored in await self.tables.replicas.list()]

    async def agent_of(self, replica_id: str) -> Agent:
        replica = (await self.tables.replicas.require(keys.replica(replica_id))).record
        return next(agent for agent in self.agents if agent.slot == replica.slot)

    async def set_faults(self, replica_id: str, **faults: Any) -> None:
        replica = (await self.tables.replicas.require(keys.replica(replica_id))).record
        async with channel(replica.address) as agent:
            stub: Any = engine_pb2_grpc.FaultServiceStub(agent)
            await stub.SetFaults(engine_pb2.SetFaultsRequest(faults=engine_pb2.Faults(**faults)))

    @asynccontextmanager
    async def _bench(self, replica: engine_pb2.Replica, calibration_id: str) -> AsyncIterator[Bench]:
        async with open_bench(replica, calibration_id) as bench:
            yield _Watched(self, replica.replica_id, bench)

    @asynccontextmanager
    async def leader(self, name: str) -> AsyncIterator[Election]:
        """A control plane instance that campaigns and carries out calibrations."""
        me = admin_pb2.ServiceInstance(service="control-plane", instance_id=name)
        election = Election(self.store, "control-plane", me, ttl_s=2)
        mirror = Mirror(self.store, keys.CALIBRATIONS, pb.Calibration.FromString)
        runner = CalibrationRunner(
            self.tables,
            mirror,
            election,
            profiles=self.profiles,
            publisher=self.publisher,
            clock=self.clock,
            open_bench=self._bench,
        )
        tasks = [asyncio.create_task(loop()) for loop in (election.run, mirror.run, runner.run)]
        try:
            yield election
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def start(self, **options: Any) -> pb.Calibration:
        fresh = bool(options.pop("fresh", False))
        asked = pb.StartCalibrationRequest(model_id=MODEL, options=pb.CalibrationOptions(**options), fresh=fresh)
        return await self.api.start(asked)

    async def get(self, calibration_id: str) -> pb.Calibration:
        return await self.api.get(pb.GetCalibrationRequest(calibration_id=calibration_id))

    async def ended(self, calibration_id: str, timeout_s: float = 100.0) -> pb.Calibration:
        """The calibration once it has ended or is paused."""
        async with asyncio.timeout(timeout_s):
            async for calibration in self.api.watch(pb.GetCalibrationRequest(calibration_id=calibration_id)):
                if calibration.state in ENDED:
                    return calibration
        raise AssertionError("the watch ended before the calibration")

    async def close(self) -> None:
        await asyncio.gather(*(agent.close() for agent in self.agents), return_exceptions=True)
        await self.store.close()


class _Watched:
    """A bench whose measurements pass through the test."""

    def __init__(self, lab: Lab, replica_id: str, bench: Bench) -> None:
        self._lab = lab
        self._replica_id = replica_id
        self._bench = bench

    async def measure(self, load: LoadSpec) -> LoadResult:
        """See Bench."""
        result = await self._bench.measure(load)
        result = await self._lab.spoil(self._replica_id, len(self._lab.measured) + 1, result)
        self._lab.measured.append((self._replica_id, load))
        return result
