"""The leader's side of a calibration against agents that misbehave in every way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest

from common.rpc import fail
from control_plane.calibration.bench import open_bench
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import FailedPreconditionError, InvalidArgumentError, Reason, UnavailableError
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.loads import measurement_to_proto

LOAD = LoadSpec(((10, 5),), 1, 0.1, 0.2)
RESULT = LoadResult(10.0, 12.0, 40, 4_000, 38.5, 8_000, 1.6e6, 9.1e5, 0.05, 0.09)
FREE = engine_pb2.CalibrateResponse()

Script = Callable[[AsyncIterator[engine_pb2.CalibrateRequest], Any], AsyncIterator[engine_pb2.CalibrateResponse]]


class ScriptedAgent(engine_pb2_grpc.EngineServiceServicer):
    """An agent whose calibrations follow a script."""

    def __init__(self, script: Script) -> None:
        self._script = script

    async def Calibrate(self, request_iterator: Any, context: Any) -> AsyncIterator[engine_pb2.CalibrateResponse]:
        async for answer in self._script(request_iterator, context):
            yield answer

    def Drain(self, request: engine_pb2.DrainRequest, context: Any) -> Any:
        raise AssertionError("nobody drains here")

    def Generate(self, request: engine_pb2.EngineGenerateRequest, context: Any) -> Any:
        raise AssertionError("nobody generates here")

    def WatchLoad(self, request: engine_pb2.WatchLoadRequest, context: Any) -> Any:
        raise AssertionError("nobody watches here")


@asynccontextmanager
async def agent(script: Script) -> AsyncIterator[engine_pb2.Replica]:
    server = grpc.aio.server()
    engine_pb2_grpc.add_EngineServiceServicer_to_server(ScriptedAgent(script), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield engine_pb2.Replica(replica_id="r", address=f"127.0.0.1:{port}")
    finally:
        await server.stop(None)


async def test_loads_are_answered_in_turn() -> None:
    """Proves that the first message reserves by name and that each load gets its measurement."""
    heard: list[engine_pb2.CalibrateRequest] = []

    async def script(requests: Any, context: Any) -> AsyncIterator[engine_pb2.CalibrateResponse]:
        heard.append(await anext(requests))
        yield FREE
        async for request in requests:
            heard.append(request)
            result = replace(RESULT, first_tokens=len(heard))
            yield engine_pb2.CalibrateResponse(measurement=measurement_to_proto(result))

    async with agent(script) as replica, open_bench(replica, "c") as bench:
        assert await bench.measure(LOAD) == replace(RESULT, first_tokens=2)
        assert await bench.measure(LOAD) == replace(RESULT, first_tokens=3)
    assert (heard[0].replica_id, heard[0].calibration_id, heard[0].HasField("load")) == ("r", "c", False)
    assert heard[1].load.concurrency == 1


async def test_nonsense_is_refused() -> None:
    """Proves that a measurement that cannot be true never reaches the fit."""

    async def script(requests: Any, context: Any) -> AsyncIterator[engine_pb2.CalibrateResponse]:
        await anext(requests)
        yield FREE
        await anext(requests)
        yield engine_pb2.CalibrateResponse(measurement=engine_pb2.Measurement(window_s=float("nan"), engine_s=1.0))

    async with agent(script) as replica, open_bench(replica, "c") as bench:
        with pytest.raises(InvalidArgumentError, match="window_s"):
            await bench.measure(LOAD)


async def test_refusals_and_failures_arrive_as_they_were_meant() -> None:
    """Proves that an agent's error is raised with its class and reason, at the reservation and at a load."""

    async def busy(requests: Any, context: Any) -> AsyncIterator[engine_pb2.CalibrateResponse]:
        await fail(context, FailedPreconditionError("taken"))
        yield FREE

    async def dying(requests: Any, context: Any) -> AsyncIterator[engine_pb2.CalibrateResponse]:
        await anext(requests)
        yield FREE
        await anext(requests)
        await fail(context, UnavailableError("died", reason=Reason.ENGINE_FAILED))

    async with agent(busy) as replica:
        with pytest.raises(FailedPreconditionError, match="taken"):
            async with open_bench(replica, "c"):
                raise AssertionError("must not be reserved")
    async with agent(dying) as replica, open_bench(replica, "c") as bench:
        for _ in range(2):
            with pytest.raises(UnavailableError, match="died") as raised:
                await bench.measure(LOAD)
            assert raised.value.reason is Reason.ENGINE_FAILED


async def test_an_agent_that_hangs_up_or_falls_silent_has_failed() -> None:
    """Proves that neither an early end nor silence beyond the load's own limit keeps the leader waiting."""

    async def short(requests: Any, context: Any) -> AsyncIterator[engine_pb2.CalibrateResponse]:
        await anext(requests)
        yield FREE

    async def silent(requests: Any, context: Any) -> AsyncIterator[engine_pb2.CalibrateResponse]:
        await anext(requests)
        yield FREE
        await asyncio.Event().wait()

    async with agent(short) as replica, open_bench(replica, "c") as bench:
        with pytest.raises(UnavailableError, match="ended the calibration"):
            await bench.measure(LOAD)
    async with agent(silent) as replica, open_bench(replica, "c", silence_max_s=0.3) as bench:
        with pytest.raises(UnavailableError, match=r"has not answered for 0\.5 s"):
            await bench.measure(LOAD)


async def test_leaving_ends_the_call() -> None:
    """Proves that the agent learns at once that the calibration is over."""
    over = asyncio.Event()

    async def script(requests: Any, context: Any) -> AsyncIterator[engine_pb2.CalibrateResponse]:
        context.add_done_callback(lambda _: over.set())
        await anext(requests)
        yield FREE
        await asyncio.Event().wait()

    async with agent(script) as replica:
        async with open_bench(replica, "c"):
            assert not over.is_set()
        async with asyncio.timeout(10):
            await over.wait()
