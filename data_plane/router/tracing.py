"""The spans of a request, by OpenTelemetry's conventions for generative AI. Never a prompt, an output or a key."""

from __future__ import annotations

from random import Random

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from common import telemetry as names
from common.telemetry import TRACEPARENT, Telemetry, extract, is_sampled
from data_plane.router.exchange import Finished, Receipt
from data_plane.router.upstream import Metadata
from fairlead.errors import FairleadError
from fairlead.inference.v1 import inference_pb2 as pb

_FINISH_NAMES = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "cancelled",
}
_PRIORITY_NAMES = {pb.PRIORITY_BATCH: "batch", pb.PRIORITY_INTERACTIVE: "interactive", pb.PRIORITY_SYSTEM: "system"}


class RequestTrace:
    """How one request is traced.

    Args:
        span: Of the whole request; None for one that is not recorded.
        passed_on: What replicas are told where it is None: the caller's context, as it came.
    """

    __slots__ = (
        "passed_on",
        "span",
    )

    def __init__(self, span: Span | None, passed_on: Metadata) -> None:
        self.span = span
        self.passed_on = passed_on


class Tracing:
    """Decides which requests are recorded, and records those.

    The decision is made by hand, because a span that nobody wants costs as much as picking a replica.

    Args:
        telemetry: Tracer and share of this process.
        random: Draws the requests that are recorded.
    """

    def __init__(self, telemetry: Telemetry, random: Random) -> None:
        self._telemetry = telemetry
        self._random = random
        # Told to replicas for what is not recorded, so that they do not begin traces of their own.
        self._unrecorded: Metadata = (
            (TRACEPARENT, f"00-{random.getrandbits(128) | 1:032x}-{random.getrandbits(64) | 1:016x}-00"),
        )

    def request(self, caller: Metadata, request: pb.GenerateRequest, receipt: Receipt) -> RequestTrace:
        """Begins a request.

        Args:
            caller: Its traceparent and tracestate, as they came.
            request: What is asked.
            receipt: Its id.
        """
        ratio = self._telemetry.sample_ratio
        if not ratio:
            return RequestTrace(None, caller)
        recorded = is_sampled(caller)
        if recorded is None:
            recorded = self._random.random() < ratio
        if not recorded:
            return RequestTrace(None, caller or self._unrecorded)
        return RequestTrace(start_request(self._telemetry.tracer, extract(caller), request, receipt), ())

    def attempt(self, trace_: RequestTrace, replica_id: str, attempt: int) -> tuple[Span | None, Metadata]:
        """Begins an attempt on a replica.

        Args:
            trace_: Of the request.
            replica_id: The replica.
            attempt: Counts them, from 1.

        Returns:
            The span, or None; and the metadata that lets the replica join it.
        """
        if trace_.span is None:
            return None, trace_.passed_on
        context = trace.set_span_in_context(trace_.span, Context())
        span = self._telemetry.tracer.start_span("fairlead.engine.v1.EngineService/Generate", context, SpanKind.CLIENT)
        span.set_attributes({names.FAIRLEAD_REPLICA: replica_id, names.FAIRLEAD_ATTEMPT: attempt})
        return span, names.inject(span)

    @staticmethod
    def attempt_ended(span: Span, error: BaseException | None) -> None:
        """Closes the span of an attempt."""
        _set_error(span, error)
        span.end()


def start_request(tracer: Tracer, parent: Context, request: pb.GenerateRequest, receipt: Receipt) -> Span:
    """Opens the span of a whole request.

    Args:
        tracer: Of this process.
        parent: The caller's context.
        request: What is asked.
        receipt: Its id.
    """
    operation = "chat" if request.HasField("chat") else "text_completion"
    span = tracer.start_span(f"{operation} {request.model[:128]}", parent, SpanKind.SERVER)
    span.set_attributes(
        {
            names.GEN_AI_OPERATION: operation,
            names.GEN_AI_PROVIDER: "fairlead",
            names.GEN_AI_REQUEST_MODEL: request.model[:128],
            names.FAIRLEAD_REQUEST: receipt.request_id,
            names.FAIRLEAD_PRIORITY: _PRIORITY_NAMES.get(request.priority, "interactive"),
        }
    )
    if request.sampling.HasField("max_tokens"):
        span.set_attribute(names.GEN_AI_REQUEST_MAX_TOKENS, request.sampling.max_tokens)
    return span


def finish_request(span: Span, receipt: Receipt, error: BaseException | None, finished: Finished | None) -> None:
    """Closes the span of a whole request.

    Args:
        span: From `start_request`.
        receipt: What became of it.
        error: What ended it, or None.
        finished: The end of the answer, if it got so far.
    """
    span.set_attributes(
        {
            names.FAIRLEAD_TENANT: receipt.tenant_id,
            names.FAIRLEAD_REPLICA: receipt.replica_id,
            names.FAIRLEAD_ESTIMATED_MILLI_MU: receipt.estimated_milli_mu,
            names.FAIRLEAD_SETTLED_MILLI_MU: receipt.settled_milli_mu,
            names.GEN_AI_RESPONSE_ID: receipt.request_id,
            names.GEN_AI_OUTPUT_TOKENS: receipt.output_tokens,
        }
    )
    if finished is not None:
        span.set_attribute(names.GEN_AI_INPUT_TOKENS, finished.usage.input_tokens)
        span.set_attribute(names.GEN_AI_RESPONSE_MODEL, receipt.model_id)
        span.set_attribute(names.GEN_AI_FINISH_REASONS, [_FINISH_NAMES.get(finished.finish_reason, "unspecified")])
    _set_error(span, error)
    span.end()


def _set_error(span: Span, error: BaseException | None) -> None:
    if error is None:
        return
    reason = error.reason.value if isinstance(error, FairleadError) else type(error).__name__
    span.set_attribute(names.ERROR_TYPE, reason)
    span.set_status(Status(StatusCode.ERROR, reason))
