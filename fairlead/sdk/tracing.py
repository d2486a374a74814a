"""One client span per request, through opentelemetry-api: free where no SDK is configured.

Attributes follow the GenAI semantic conventions. Prompts and outputs are never recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from fairlead.errors import FairleadError
from fairlead.inference.v1 import inference_pb2
from fairlead.sdk.results import Generation
from fairlead.version import __version__

_SAMPLING_ATTRIBUTES = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
}


class CallSpan:
    """The span of one request.

    Args:
        span: The span, already started.
    """

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        propagate.inject(carrier, context=trace.set_span_in_context(span))
        self.metadata = tuple(carrier.items())
        """Trace context to send along."""

    def retried(self, error: FairleadError, attempts: int, delay_s: float) -> None:
        """Notes that try number `attempts` failed with `error` and the next follows in `delay_s` seconds."""
        self._span.add_event(
            "fairlead.retry",
            {"fairlead.reason": error.reason.value, "fairlead.attempts": attempts, "fairlead.delay_s": delay_s},
        )

    def sent_to(self, address: str) -> None:
        """Notes the address of the current try, host:port."""
        host, _, port = address.rpartition(":")
        self._span.set_attributes({"server.address": host, "server.port": int(port)})

    def first_token(self) -> None:
        """Notes that the first token arrived."""
        self._span.add_event("fairlead.first_token")

    def answered(self, generation: Generation) -> None:
        """Notes the answer."""
        self._span.set_attributes(
            {
                "gen_ai.response.model": generation.model,
                "gen_ai.response.id": generation.request_id,
                "gen_ai.response.finish_reasons": (generation.finish_reason.value,),
                "gen_ai.usage.input_tokens": generation.usage.input_tokens,
                "gen_ai.usage.output_tokens": generation.usage.output_tokens,
                "fairlead.replica.id": generation.replica_id,
                "fairlead.estimated_milli_mu": generation.cost.estimated_milli_mu,
                "fairlead.settled_milli_mu": generation.cost.settled_milli_mu,
                "fairlead.attempts": generation.attempts,
            }
        )


class Tracing:
    """Makes the spans of one client.

    Args:
        provider: Where spans go; the global provider when None.
    """

    def __init__(self, provider: trace.TracerProvider | None) -> None:
        self._tracer = trace.get_tracer("fairlead.sdk", __version__, tracer_provider=provider)

    @contextmanager
    def call(self, request: inference_pb2.GenerateRequest | None) -> Iterator[CallSpan]:
        """Opens the span of one request and closes it with the outcome.

        The span is never made the current one: a stream's consumer runs between its pieces.

        Args:
            request: What is sent; None for a list of models.
        """
        span = self._tracer.start_span(*_name_and_kind(request), attributes=_attributes(request))
        try:
            yield CallSpan(span)
        except FairleadError as error:
            span.set_attributes({"error.type": error.reason.value, "rpc.grpc.status_code": error.code.value[0]})
            span.set_status(Status(StatusCode.ERROR, error.reason.value))
            raise
        except GeneratorExit:
            span.set_attribute("fairlead.cancelled", True)
            raise
        finally:
            span.end()


def _operation(request: inference_pb2.GenerateRequest) -> str:
    return "chat" if request.WhichOneof("input") == "chat" else "text_completion"


def _name_and_kind(request: inference_pb2.GenerateRequest | None) -> tuple[str, None, SpanKind]:
    name = "list_models" if request is None else f"{_operation(request)} {request.model}"
    return name, None, SpanKind.CLIENT


def _attributes(request: inference_pb2.GenerateRequest | None) -> dict[str, str | int | float]:
    if request is None:
        return {"gen_ai.provider.name": "fairlead"}
    attributes: dict[str, str | int | float] = {
        "gen_ai.provider.name": "fairlead",
        "gen_ai.operation.name": _operation(request),
        "gen_ai.request.model": request.model,
        "fairlead.request.id": request.request_id,
        "fairlead.priority": inference_pb2.Priority.Name(request.priority).removeprefix("PRIORITY_").lower(),
    }
    for field, attribute in _SAMPLING_ATTRIBUTES.items():
        if request.sampling.HasField(field):  # type: ignore[arg-type]
            attributes[attribute] = getattr(request.sampling, field)
    if request.session_id:
        attributes["gen_ai.conversation.id"] = request.session_id
    return attributes
