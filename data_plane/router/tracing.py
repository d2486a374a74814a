"""The spans of a request, by OpenTelemetry's conventions for generative AI. Never a prompt, an output or a key."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from common import telemetry as names
from data_plane.router.exchange import Receipt
from fairlead.errors import FairleadError
from fairlead.inference.v1 import inference_pb2 as pb

_FINISH_NAMES = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "cancelled",
}
_PRIORITY_NAMES = {pb.PRIORITY_BATCH: "batch", pb.PRIORITY_INTERACTIVE: "interactive", pb.PRIORITY_SYSTEM: "system"}


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
    if span.is_recording():
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


def finish_request(
    span: Span,
    receipt: Receipt,
    error: BaseException | None,
    usage: pb.Usage | None,
    finish_reason: pb.FinishReason.ValueType,
) -> None:
    """Closes the span of a whole request.

    Args:
        span: From `start_request`.
        receipt: What became of it.
        error: What ended it, or None.
        usage: The engine's counts, if it got so far.
        finish_reason: Why generation ended; unspecified where it did not end by itself.
    """
    if span.is_recording():
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
        if usage is not None:
            span.set_attribute(names.GEN_AI_INPUT_TOKENS, usage.input_tokens)
            span.set_attribute(names.GEN_AI_RESPONSE_MODEL, receipt.model_id)
            span.set_attribute(names.GEN_AI_FINISH_REASONS, [_FINISH_NAMES.get(finish_reason, "unspecified")])
        _set_error(span, error)
    span.end()


def start_attempt(
    tracer: Tracer, request_span: Span, replica_id: str, attempt: int
) -> tuple[Span, Sequence[tuple[str, str]]]:
    """Opens the span of one attempt on one replica.

    Returns:
        The span, and the metadata that lets the replica join it.
    """
    context = trace.set_span_in_context(request_span, Context())
    span = tracer.start_span("fairlead.engine.v1.EngineService/Generate", context, SpanKind.CLIENT)
    if span.is_recording():
        span.set_attributes({names.FAIRLEAD_REPLICA: replica_id, names.FAIRLEAD_ATTEMPT: attempt})
    return span, names.inject(span)


def finish_attempt(span: Span, error: BaseException | None) -> None:
    """Closes the span of an attempt."""
    if span.is_recording():
        _set_error(span, error)
    span.end()


def _set_error(span: Span, error: BaseException | None) -> None:
    if error is None:
        return
    reason = error.reason.value if isinstance(error, FairleadError) else type(error).__name__
    span.set_attribute(names.ERROR_TYPE, reason)
    span.set_status(Status(StatusCode.ERROR, reason))
