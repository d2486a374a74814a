"""The leader's side of EngineService.Calibrate: one replica, set aside for as long as the conversation lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol, cast

import grpc.aio
from grpc.aio import Metadata

from common.rpc import channel
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import Reason, UnavailableError, from_rpc_error
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.loads import load_to_proto, measurement_from_proto

# The agent itself gives requests in flight ten minutes.
VACATE_MAX_S: Final = 630.0

SILENCE_MAX_S: Final = 60.0
"""An agent that has not answered a load this long after the load's own limit has failed."""


class Bench(Protocol):
    """A replica that is set aside."""

    async def measure(self, load: LoadSpec) -> LoadResult:
        """Puts a load on it.

        Raises:
            InvalidArgumentError: The load is refused, or what came back cannot be true.
            UnavailableError: The replica is lost, or its agent does not answer.
        """
        ...


OpenBench = Callable[[engine_pb2.Replica, str], AbstractAsyncContextManager[Bench]]
"""Sets a replica aside for a calibration's id, until the context ends."""


class _Conversation:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def ask(self, message: engine_pb2.CalibrateRequest, timeout_s: float) -> engine_pb2.CalibrateResponse:
        try:
            async with asyncio.timeout(timeout_s):
                await self._call.write(message)
                answer = await self._call.read()
                if not isinstance(answer, engine_pb2.CalibrateResponse):
                    await self._raise_end()
        except grpc.aio.AioRpcError as failure:
            raise from_rpc_error(failure) from failure
        except asyncio.InvalidStateError:
            await self._raise_end()
        except TimeoutError:
            raise UnavailableError(
                f"the replica's agent has not answered for {timeout_s:g} s", reason=Reason.REPLICA_LOST
            ) from None
        return cast(engine_pb2.CalibrateResponse, answer)

    async def _raise_end(self) -> None:
        """The call has ended where an answer was due."""
        code, details = await self._call.code(), await self._call.details()
        if code is not grpc.StatusCode.OK:
            trailers = await self._call.trailing_metadata()
            raise from_rpc_error(grpc.aio.AioRpcError(code, Metadata(), trailers, details, ""))
        raise UnavailableError("the replica's agent ended the calibration", reason=Reason.REPLICA_LOST)

    async def measure(self, load: LoadSpec) -> LoadResult:
        """See Bench."""
        message = engine_pb2.CalibrateRequest(load=load_to_proto(load))
        answer = await self.ask(message, load.time_max_s + SILENCE_MAX_S)
        return measurement_from_proto(answer.measurement)


@asynccontextmanager
async def open_bench(replica: engine_pb2.Replica, calibration_id: str) -> AsyncIterator[Bench]:
    """Sets a replica aside, once what is in flight there has ended.

    Args:
        replica: The replica.
        calibration_id: For the agent's log.

    Raises:
        FailedPreconditionError: It cannot be taken now.
        UnavailableError: It is lost.
    """
    async with channel(replica.address) as agent:
        # grpcio's stubs do not know a call without an iterator of requests.
        call = cast(Any, engine_pb2_grpc.EngineServiceStub(agent)).Calibrate()
        conversation = _Conversation(call)
        try:
            first = engine_pb2.CalibrateRequest(replica_id=replica.replica_id, calibration_id=calibration_id)
            await conversation.ask(first, VACATE_MAX_S)
            yield conversation
        finally:
            call.cancel()
