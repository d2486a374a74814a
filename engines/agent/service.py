"""EngineService: what routers and the control plane ask of a replica."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from common.logs import get_logger
from common.shard_map import Generation
from common.telemetry import extract
from engines.agent.assignments import AssignmentHolder
from engines.agent.calibrate import Bench
from engines.agent.dispatcher import Dispatcher
from engines.agent.job import Job
from engines.agent.metrics import AgentMetrics
from engines.agent.notices import Notices
from engines.agent.observed import ObservedRequest, Observer
from engines.agent.record import ReplicaRecord
from engines.agent.reports import LoadReporter
from engines.agent.supervisor import Supervisor
from engines.agent.translate import FINISH_REASONS, engine_request, origin, priority
from engines.engine import TokenBatch
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import InvalidArgumentError, NotFoundError, Reason
from fairlead.inference.v1 import inference_pb2

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
        model_id: The model this replica serves.
        dispatcher: Runs requests.
        reporter: Makes load reports.
        supervisor: Drains.
        record: Who this replica is.
        observer: Records each request.
        changed: Notable changes of the load or state.
        bench: Calibrations of this replica.
        assignments: The assignment held.
        metrics: Counts requests that belong elsewhere.
    """

    def __init__(
        self,
        *,
        model_id: str,
        dispatcher: Dispatcher,
        reporter: LoadReporter,
        supervisor: Supervisor,
        record: ReplicaRecord,
        observer: Observer,
        changed: Notices,
        bench: Bench,
        assignments: AssignmentHolder,
        metrics: AgentMetrics,
    ) -> None:
        self._model_id = model_id
        self._dispatcher = dispatcher
        self._reporter = reporter
        self._supervisor = supervisor
        self._record = record
        self._observer = observer
        self._changed = changed
        self._bench = bench
        self._assignments = assignments
        self._metrics = metrics
        self._closing = asyncio.Event()

    async def Generate(
        self, request: engine_pb2.EngineGenerateRequest, context: Any
    ) -> AsyncIterator[engine_pb2.EngineGenerateResponse]:
        """See EngineService. Nothing, not even headers, is sent before the first token."""
        self._count_misrouted(request)
        parent = extract(context.invocation_metadata() or ())
        with self._observer.observe(request, priority(request), parent) as notes:
            job = Job(
                engine_request(request, self._model_id, notes.traceparent),
                tenant_id=request.tenant_id,
                prefill_milli_mu=request.prefill_milli_mu,
                decode_milli_mu=request.decode_milli_mu,
                weight=request.weight,
                origin=origin(request),
                on_admitted=notes.admitted,
            )
            async with aclosing(self._dispatcher.run(job)) as stream:
                async for batch in stream:
                    yield self._response(batch, notes, request.router_id)

    def _count_misrouted(self, request: engine_pb2.EngineGenerateRequest) -> None:
        generation = Generation.of(request.assignment) if request.HasField("assignment") else None
        why = self._assignments.misrouting(request.shard_key, generation)
        if why is not None:
            self._metrics.misrouted.labels(why).inc()

    def _response(self, batch: TokenBatch, notes: ObservedRequest, router_id: str) -> engine_pb2.EngineGenerateResponse:
        first = notes.batch(batch)
        response = engine_pb2.EngineGenerateResponse(text=batch.text, output_tokens=batch.output_tokens)
        if batch.finish is not None:
            response.finish_reason = FINISH_REASONS[batch.finish]
            response.usage.CopyFrom(
                inference_pb2.Usage(
                    input_tokens=batch.input_tokens,
                    cached_input_tokens=batch.cached_input_tokens,
                    output_tokens=notes.output_tokens,
                )
            )
        if first or batch.finish is not None:
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
