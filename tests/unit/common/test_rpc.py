"""The gRPC bootstrap: errors become rich statuses, the unknown leaks nothing, health tells the truth."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.config import CommonConfig
from common.rpc import GrpcServer, channel
from common.telemetry import Telemetry
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import InternalError, InvalidArgumentError, Reason, UnavailableError, from_rpc_error
from tests.support.ports import free_port

NAME = "fairlead.engine.v1.EngineService"


class Faulty(engine_pb2_grpc.EngineServiceServicer):
    """Fails in every way a handler can fail."""

    async def Generate(
        self, request: engine_pb2.EngineGenerateRequest, context: Any
    ) -> AsyncIterator[engine_pb2.EngineGenerateResponse]:
        yield engine_pb2.EngineGenerateResponse()

    async def Drain(self, request: engine_pb2.DrainRequest, context: Any) -> engine_pb2.DrainResponse:
        if request.replica_id == "defect":
            raise KeyError("secret prompt text")
        raise UnavailableError("no", reason=Reason.NO_REPLICA, retry_after_s=2)

    async def WatchLoad(
        self, request: engine_pb2.WatchLoadRequest, context: Any
    ) -> AsyncIterator[engine_pb2.LoadReport]:
        yield engine_pb2.LoadReport(replica_id="r", sequence=1)
        raise InvalidArgumentError("bad interval", field="interval")


@pytest.fixture
async def server() -> AsyncIterator[GrpcServer]:
    config = CommonConfig()
    running = GrpcServer(config, Telemetry("test", config))
    running.add(engine_pb2_grpc.add_EngineServiceServicer_to_server, Faulty(), NAME)
    await running.start()
    yield running
    await running.drain_and_stop(0)


async def test_errors_carry_reason_and_retry_info(server: GrpcServer) -> None:
    """A raised error arrives with its reason and its time to come back, from unary and streaming calls."""
    async with channel(server.address) as link:
        stub = engine_pb2_grpc.EngineServiceStub(link)
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.Drain(engine_pb2.DrainRequest(replica_id="x"))
        error = from_rpc_error(unary.value)
        assert (error.reason, error.retry_after_s) == (Reason.NO_REPLICA, 2.0)
        reports = []
        with pytest.raises(grpc.aio.AioRpcError) as streaming:
            async for report in stub.WatchLoad(engine_pb2.WatchLoadRequest()):
                reports.append(report.replica_id)
        assert reports == ["r"]
        assert from_rpc_error(streaming.value).field == "interval"


async def test_a_defect_leaks_nothing(server: GrpcServer) -> None:
    """An unexpected exception becomes INTERNAL with an incident id and none of its text."""
    async with channel(server.address) as link:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await engine_pb2_grpc.EngineServiceStub(link).Drain(engine_pb2.DrainRequest(replica_id="defect"))
    error = from_rpc_error(caught.value)
    assert isinstance(error, InternalError)
    assert error.metadata["incident"] in error.message
    assert "secret" not in error.message


async def test_health_follows_the_server(server: GrpcServer) -> None:
    """Health says SERVING for the service by name, and NOT_SERVING once it was told so."""
    async with channel(server.address) as link:
        health = health_pb2_grpc.HealthStub(link)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=NAME))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await server.set_serving(False)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=NAME))
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_taken_port_is_named(server: GrpcServer) -> None:
    """A port that is taken is refused with its number."""
    port = int(server.address.rsplit(":", 1)[1])
    config = CommonConfig(grpc_port=port)
    second = GrpcServer(config, Telemetry("test", config))
    with pytest.raises(InvalidArgumentError, match=str(port)):
        await second.start()


class Named(engine_pb2_grpc.EngineServiceServicer):
    """Says in its errors which process it is."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def Drain(self, request: engine_pb2.DrainRequest, context: Any) -> engine_pb2.DrainResponse:
        raise InvalidArgumentError(self._name)


async def test_each_of_several_on_one_port_has_a_port_of_its_own() -> None:
    """Processes that share a port can be told apart: a call to an own address reaches that very one."""
    port = free_port()
    config = CommonConfig(grpc_port=port)
    servers = {}
    for name in ("first", "second"):
        servers[name] = GrpcServer(config, Telemetry("test", config), reuse_port=True, own_port=True)
        servers[name].add(engine_pb2_grpc.add_EngineServiceServicer_to_server, Named(name), NAME)
        assert await servers[name].start() == f"127.0.0.1:{port}"
    for name, running in servers.items():
        async with channel(running.own_address) as link:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await engine_pb2_grpc.EngineServiceStub(link).Drain(engine_pb2.DrainRequest(), timeout=5.0)
        assert caught.value.details() == name
    for running in servers.values():
        await running.drain_and_stop(0)


async def test_a_port_nobody_shares_is_its_own(server: GrpcServer) -> None:
    """Without a second port both addresses are the same."""
    assert server.own_address == server.address
