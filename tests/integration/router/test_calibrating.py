"""A replica that is measured under the eyes of a router and its tenants."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from common.rpc import channel
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.inference.v1 import inference_pb2 as pb
from model_units.calibration.load import LoadSpec
from model_units.loads import load_to_proto
from tests.integration.router.processes import AUTH, RouterProcess, platform
from tests.integration.router.traffic import books, generated, request
from tests.support.etcd import EtcdServer
from tests.support.waiting import eventually

LOAD = LoadSpec(((200, 50),), 4, 5.0, 60.0)


async def tenant(router: RouterProcess, stop: asyncio.Event, replicas: list[str]) -> None:
    """Asks again and again; notes who answered, and fails when an answer is not whole."""
    while not stop.is_set():
        answer: pb.GenerateResponse = await router.stub.Generate(request(tokens=20), metadata=AUTH, timeout=20)
        assert answer.usage.output_tokens == 20
        replicas.append(answer.replica_id)


async def test_tenants_notice_nothing(etcd: EtcdServer, tmp_path: Path) -> None:
    """Proves that taking a replica out fails no request, that none reaches it meanwhile, and that it comes back."""
    async with platform(etcd, tmp_path) as world:
        world.start_quota()
        world.start_agent("agent-1")
        world.start_agent("agent-2")
        measured, other = await world.wait_replicas(2)
        router = world.start_router("router-1")
        await router.wait_ready()
        await eventually(lambda: generated(router), 15.0, "the first answer")
        stop, replicas = asyncio.Event(), list[str]()
        async with asyncio.TaskGroup() as tenants, channel(measured.address) as agent:
            for _ in range(8):
                tenants.create_task(tenant(router, stop, replicas))
            await eventually(lambda: {measured.replica_id, other.replica_id} <= set(replicas), 20.0, "both in use")
            # grpcio's stubs do not know a call without an iterator of requests.
            call = cast(Any, engine_pb2_grpc.EngineServiceStub(agent)).Calibrate()
            await call.write(engine_pb2.CalibrateRequest(replica_id=measured.replica_id, calibration_id="c"))
            assert isinstance(await call.read(), engine_pb2.CalibrateResponse), "those in flight have ended"
            taken = len(replicas)
            for _ in range(3):
                await call.write(engine_pb2.CalibrateRequest(load=load_to_proto(LOAD)))
                answer = await call.read()
                assert answer.measurement.output_tokens > 0
            await eventually(lambda: len(replicas) >= taken + 60, 30.0, "traffic goes on")
            # An answer counted after the reservation may have come from a request that ended before it.
            assert set(replicas[taken + 8 :]) == {other.replica_id}
            call.cancel()
            back = len(replicas)
            await eventually(lambda: measured.replica_id in replicas[back:], 20.0, "it serves again")
            stop.set()
        received, finished = await books(router)
        assert received == finished
