"""The leader's side of EngineService.Calibrate: one replica, set aside for as long as the conversation lasts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol, cast

import grpc.aio
from grpc.aio import Metadata

from common.rpc import channel
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import FairleadError, Reason, UnavailableError, from_rpc_error
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.loads import load_to_proto, measurement_from_proto

# The agent itself gives requests in flight ten minutes.
VACATE_MAX_S: Final = 630.0

SILENCE_MAX_S: Final = 60.0
"""An agent that has not answered a load this long after the load's own limit has failed."""

# The status of a call that has ended is there at once.
_STATUS_MAX_S: Final = 5.0


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
    def __init__(self, call: Any, silence_max_s: float) -> None:
        self._call = call
        self._silence_max_s = silence_max_s

    async def ask(self, message: engine_pb2.CalibrateRequest, timeout_s: float) -> engine_pb2.CalibrateResponse:
        try:
            async with asyncio.timeout(timeout_s):
                await self._call.write(message)
                answer = await self._call.read()
        except TimeoutError:
            raise UnavailableError(
                f"the replica's agent has not answered for {timeout_s:g} s", reason=Reason.REPLICA_LOST
            ) from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # What a write into a call that has just ended raises depends on the moment; its status does not.
            raise await self._end() from None
        if not isinstance(answer, engine_pb2.CalibrateResponse):
            raise await self._end()
        return answer

    async def _end(self) -> FairleadError:
        """Why the call has ended where an answer was due."""
        said = ""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STATUS_MAX_S):
                code, details = await self._call.code(), await self._call.details()
                trailers = await self._call.trailing_metadata()
                if code is not grpc.StatusCode.OK:
                    error = from_rpc_error(grpc.aio.AioRpcError(code, Metadata(), trailers, details, ""))
                    if error.reason is not Reason.UNSPECIFIED:
                        return error
                    said = f": {error.message}"  # the transport's, not the agent's
        return UnavailableError(f"the replica's agent ended the calibration{said}", reason=Reason.REPLICA_LOST)

    async def measure(self, load: LoadSpec) -> LoadResult:
        """See Bench."""
        message = engine_pb2.CalibrateRequest(load=load_to_proto(load))
        answer = await self.ask(message, load.time_max_s + self._silence_max_s)
        return measurement_from_proto(answer.measurement)


@asynccontextmanager
async def open_bench(
    replica: engine_pb2.Replica, calibration_id: str, *, silence_max_s: float = SILENCE_MAX_S
) -> AsyncIterator[Bench]:
    """Sets a replica aside, once what is in flight there has ended.

    Args:
        replica: The replica.
        calibration_id: For the agent's log.
        silence_max_s: As `SILENCE_MAX_S`.

    Raises:
        FailedPreconditionError: It cannot be taken now.
        UnavailableError: It is lost.
    """
    async with channel(replica.address) as agent:
        # grpcio's stubs do not know a call without an iterator of requests.
        call = cast(Any, engine_pb2_grpc.EngineServiceStub(agent)).Calibrate()
        conversation = _Conversation(call, silence_max_s)
        try:
            first = engine_pb2.CalibrateRequest(replica_id=replica.replica_id, calibration_id=calibration_id)
            await conversation.ask(first, VACATE_MAX_S)
            yield conversation
        finally:
            call.cancel()
