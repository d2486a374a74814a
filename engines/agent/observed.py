"""What is recorded of each request: one span, one outcome, its times and token counts. Never its text."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context

from common.clock import NS_PER_S, Clock
from common.telemetry import (
    ERROR_TYPE,
    FAIRLEAD_PRIORITY,
    FAIRLEAD_REPLICA,
    FAIRLEAD_REQUEST,
    FAIRLEAD_TENANT,
    GEN_AI_FINISH_REASONS,
    GEN_AI_INPUT_TOKENS,
    GEN_AI_OPERATION,
    GEN_AI_OUTPUT_TOKENS,
    GEN_AI_REQUEST_MAX_TOKENS,
    GEN_AI_REQUEST_MODEL,
    inject,
)
from engines.agent.core.queue import Priority
from engines.agent.metrics import AgentMetrics, Outcome
from engines.engine import TokenBatch
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, InvalidArgumentError, NotFoundError, Reason, UnavailableError

QUEUE_WAIT_S = "fairlead.agent.queue_wait_s"
TTFT_S = "fairlead.agent.time_to_first_token_s"

_OUTCOME_BY_REASON = {
    Reason.QUEUE_FULL: Outcome.QUEUE_FULL,
    Reason.NOT_READY: Outcome.NOT_SERVING,
    Reason.SHUTTING_DOWN: Outcome.NOT_SERVING,
    Reason.REPLICA_LOST: Outcome.REPLICA_LOST,
}


def outcome_of(error: BaseException | None) -> Outcome:
    """Classifies the end of a request; every exception has an outcome."""
    if error is None:
        return Outcome.COMPLETED
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return Outcome.CANCELLED
    if not isinstance(error, FairleadError):
        return Outcome.INTERNAL
    if error.reason in _OUTCOME_BY_REASON:
        return _OUTCOME_BY_REASON[error.reason]
    if isinstance(error, InvalidArgumentError | NotFoundError):
        return Outcome.INVALID
    return Outcome.ENGINE_FAILED if isinstance(error, UnavailableError) else Outcome.INTERNAL


class ObservedRequest:
    """The notes on one request; see `observe`."""

    def __init__(self, span: trace.Span, metrics: AgentMetrics, clock: Clock) -> None:
        self._span = span
        self._metrics = metrics
        self._clock = clock
        self._began_ns = clock.monotonic_ns()
        self._first_ns = 0
        self._last_ns = 0
        self._last: TokenBatch | None = None
        self.output_tokens = 0

    @property
    def traceparent(self) -> str:
        """Trace context for the engine, or empty."""
        return dict(inject(self._span)).get("traceparent", "")

    def admitted(self, waited_s: float) -> None:
        """The request went into the engine."""
        self._metrics.queue_wait_s.observe(waited_s)
        self._span.set_attribute(QUEUE_WAIT_S, waited_s)
        self._span.add_event("admitted")

    def batch(self, batch: TokenBatch) -> bool:
        """Notes a batch; returns whether it holds the first token."""
        self._last_ns = self._clock.monotonic_ns()
        self.output_tokens += batch.output_tokens
        if batch.finish is not None:
            self._last = batch
        if self._first_ns or not batch.output_tokens:
            return False
        self._first_ns = self._last_ns
        ttft_s = (self._first_ns - self._began_ns) / NS_PER_S
        self._metrics.ttft_s.observe(ttft_s)
        self._span.set_attribute(TTFT_S, ttft_s)
        self._span.add_event("first token")
        return True

    def end(self) -> None:
        """Notes what the whole request came to."""
        self._metrics.output_tokens.inc(self.output_tokens)
        self._span.set_attribute(GEN_AI_OUTPUT_TOKENS, self.output_tokens)
        if self.output_tokens > 1:
            self._metrics.tpot_s.observe((self._last_ns - self._first_ns) / NS_PER_S / (self.output_tokens - 1))
        if self._last is not None and self._last.finish is not None:
            self._metrics.input_tokens.inc(self._last.input_tokens)
            self._span.set_attribute(GEN_AI_INPUT_TOKENS, self._last.input_tokens)
            self._span.set_attribute(GEN_AI_FINISH_REASONS, (self._last.finish.value,))


class Observer:
    """Opens the notes on each request.

    Args:
        replica_id: For the spans.
        tracer: For the spans.
        metrics: Counts.
        clock: Times.
    """

    def __init__(self, replica_id: str, tracer: trace.Tracer, metrics: AgentMetrics, clock: Clock) -> None:
        self._replica_id = replica_id
        self._tracer = tracer
        self._metrics = metrics
        self._clock = clock

    @contextmanager
    def observe(
        self, request: engine_pb2.EngineGenerateRequest, priority: Priority, parent: Context
    ) -> Iterator[ObservedRequest]:
        """Notes one request from its arrival to its end, however it ends.

        Args:
            request: The request.
            priority: Its class.
            parent: Trace context of the caller.
        """
        label = priority.name.lower()
        self._metrics.received.labels(label).inc()
        attributes: dict[str, str | int] = {
            GEN_AI_OPERATION: "text_completion" if request.request.HasField("prompt") else "chat",
            GEN_AI_REQUEST_MODEL: request.request.model,
            GEN_AI_REQUEST_MAX_TOKENS: request.request.sampling.max_tokens,
            FAIRLEAD_REQUEST: request.request_id,
            FAIRLEAD_TENANT: request.tenant_id,
            FAIRLEAD_PRIORITY: label,
            FAIRLEAD_REPLICA: self._replica_id,
        }
        span = self._tracer.start_span("agent generate", parent, trace.SpanKind.SERVER, attributes)
        notes = ObservedRequest(span, self._metrics, self._clock)
        error: BaseException | None = None
        try:
            yield notes
        except BaseException as raised:
            error = raised
            raise
        finally:
            outcome = outcome_of(error)
            self._metrics.requests.labels(label, outcome).inc()
            notes.end()
            if outcome is not Outcome.COMPLETED:
                span.set_attribute(
                    ERROR_TYPE, error.reason.value if isinstance(error, FairleadError) else outcome.value
                )
                if outcome is not Outcome.CANCELLED:
                    span.set_status(trace.StatusCode.ERROR, outcome.value)
            span.end()
