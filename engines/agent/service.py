"""EngineService: what routers and the control plane ask of a replica."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from common.generation import FINISH_REASONS
from common.logs import get_logger
from common.telemetry import extract
from engines.agent.calibrate import Bench
from engines.agent.dispatcher import Dispatcher
from engines.agent.notices import Notices
from engines.agent.record import ReplicaRecord
from engines.agent.reports import LoadReporter
from engines.agent.requests import Produced, Requests
from engines.agent.supervisor import Supervisor
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import InvalidArgumentError, NotFoundError, Reason

log = get_logger(__name__)

SERVICE: Final = engine_pb2.DESCRIPTOR.services_by_name["EngineService"].full_name

_INTERVAL_MIN_S: Final = 0.1
_INTERVAL_MAX_S: Final = 10.0
_INTERVAL_DEFAULT_S: Final = 1.0
# Changes that come closer together than this share one report.
_PAUSE_MIN_S: Final = 0.02


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    """Translates between gRPC and the agent.

    Args:
        requests: Serves requests.
        dispatcher: Knows what is in flight.
        reporter: Makes load reports.
        supervisor: Drains.
        record: Who this replica is.
        changed: Notable changes of the load or state.
        bench: Calibrations of this replica.
    """

    def __init__(
        self,
        *,
        requests: Requests,
        dispatcher: Dispatcher,
        reporter: LoadReporter,
        supervisor: Supervisor,
        record: ReplicaRecord,
        changed: Notices,
        bench: Bench,
    ) -> None:
        self._requests = requests
        self._dispatcher = dispatcher
        self._reporter = reporter
        self._supervisor = supervisor
        self._record = record
        self._changed = changed
        self._bench = bench
        self._closing = asyncio.Event()

    async def Generate(
        self, request: engine_pb2.EngineGenerateRequest, context: Any
    ) -> AsyncIterator[engine_pb2.EngineGenerateResponse]:
        """See EngineService. Nothing, not even headers, is sent before the first token."""
        parent = extract(context.invocation_metadata() or ())
        async with aclosing(self._requests.serve(request, parent)) as pieces:
            async for piece in pieces:
                yield self._response(piece, request.router_id)

    def _response(self, piece: Produced, router_id: str) -> engine_pb2.EngineGenerateResponse:
        batch = piece.batch
        response = engine_pb2.EngineGenerateResponse(text=batch.text, output_tokens=batch.output_tokens)
        if batch.finish is not None:
            response.finish_reason = FINISH_REASONS[batch.finish]
            response.usage.CopyFrom(piece.usage)
        if piece.first or batch.finish is not None:
            response.load.CopyFrom(self._reporter.report(router_id))
        return response

    async def WatchLoad(
        self, request: engine_pb2.WatchLoadRequest, context: Any
    ) -> AsyncIterator[engine_pb2.LoadReport]:
        """See EngineService. A stream with load by key, which is much to send, comes at its interval and no faster."""
        interval_s = _INTERVAL_DEFAULT_S
        if request.HasField("interval"):
            interval_s = request.interval.ToNanoseconds() / 1e9
        if not _INTERVAL_MIN_S <= interval_s <= _INTERVAL_MAX_S:
            raise InvalidArgumentError("interval must be 100 ms to 10 s", field="interval")
        reports = self._reporter.stream(request)
        pause_s = interval_s if request.with_keys else _PAUSE_MIN_S
        with self._changed.listen() as changed:
            while not self._closing.is_set():
                changed.clear()
                yield reports.next()
                await _wait(self._closing, pause_s)
                await _wait(changed, interval_s - pause_s)

    async def Drain(self, request: engine_pb2.DrainRequest, context: Any) -> engine_pb2.DrainResponse:
        """See EngineService."""
        if request.replica_id != self._record.replica_id:
            raise NotFoundError(
                f"the replica at this address is {self._record.replica_id!r}, not {request.replica_id!r}",
                reason=Reason.UNKNOWN_REPLICA,
            )
        log.info("draining", replica=self._record.replica_id, in_flight=self._dispatcher.in_flight)
        self._supervisor.drain()
        return engine_pb2.DrainResponse(requests_in_flight=self._dispatcher.in_flight)

    async def Calibrate(
        self, request_iterator: AsyncIterator[engine_pb2.CalibrateRequest], context: Any
    ) -> AsyncIterator[engine_pb2.CalibrateResponse]:
        """See EngineService."""
        async with aclosing(self._bench.serve(aiter(request_iterator))) as answers:
            async for answer in answers:
                yield answer

    def close(self) -> None:
        """Ends the load streams, so that the server can stop."""
        self._closing.set()
        self._changed.notify()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
