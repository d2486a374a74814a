"""Traces and metrics of one process.

Traces go out over OTLP where an endpoint is configured; W3C `traceparent` joins the hops. Metrics are a Prometheus
registry of the process's own, rendered at scrape. Prompts, outputs and keys are never recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from common.config import CommonConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# OpenTelemetry semantic conventions for generative AI (gen_ai.*), and our own (fairlead.*).
GEN_AI_OPERATION = "gen_ai.operation.name"
GEN_AI_PROVIDER = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_RESPONSE_ID = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ERROR_TYPE = "error.type"
FAIRLEAD_TENANT = "fairlead.tenant.id"
FAIRLEAD_PRIORITY = "fairlead.priority"
FAIRLEAD_REPLICA = "fairlead.replica.id"
FAIRLEAD_REQUEST = "fairlead.request.id"
FAIRLEAD_ESTIMATED_MILLI_MU = "fairlead.estimated_milli_mu"
FAIRLEAD_SETTLED_MILLI_MU = "fairlead.settled_milli_mu"
FAIRLEAD_ATTEMPT = "fairlead.attempt"

_PROPAGATOR = TraceContextTextMapPropagator()
TRACEPARENT = "traceparent"
TRACE_FIELDS = frozenset({TRACEPARENT, "tracestate"})
"""Names, in lower case, under which a trace context travels."""

# version-trace id-parent id-flags: https://www.w3.org/TR/trace-context/
_TRACEPARENT_CHARS = 55
_TRACESTATE_CHARS_MAX = 512


class Telemetry:
    """The tracer and the metrics registry of this process.

    Args:
        service: Service name, becomes service.name "fairlead-{service}".
        config: Where traces go and how many are recorded.
        drawn_by_hand: The service itself draws the traces that it begins, by `sample_ratio`.

    Attributes:
        sample_ratio: Share of the traces that begin here and are to be recorded; 0 where nothing is exported.
    """

    def __init__(self, service: str, config: CommonConfig, *, drawn_by_hand: bool = False) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        exports = bool(config.otlp_endpoint)
        self.sample_ratio = config.trace_sample_ratio if exports else 0.0
        self._provider = (
            _exporting_provider(service, config, 1.0 if drawn_by_hand else self.sample_ratio) if exports else None
        )
        self.tracer = self._provider.get_tracer("fairlead") if self._provider is not None else trace.NoOpTracer()

    def shutdown(self) -> None:
        """Sends what is left and stops the exporter; to be called before the event loop closes."""
        if self._provider is not None:
            self._provider.shutdown()


def _exporting_provider(service: str, config: CommonConfig, ratio: float) -> TracerProvider:
    # Imported here: a fifth of a process's start is spent on these, and most processes export nothing.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    names = {"service.name": f"fairlead-{service}", "service.instance.id": config.instance_id or service}
    sampler = ParentBased(TraceIdRatioBased(ratio))
    provider = TracerProvider(resource=Resource.create(names), sampler=sampler, shutdown_on_exit=False)
    insecure = not config.otlp_endpoint.startswith("https://")
    exporter = OTLPSpanExporter(endpoint=config.otlp_endpoint, insecure=insecure, timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    return provider


def extract(metadata: Iterable[tuple[str, str | bytes]] | Mapping[str, str]) -> Context:
    """Reads the trace context of incoming gRPC metadata or HTTP headers.

    Args:
        metadata: Pairs, or a mapping; names are compared in lower case.

    Returns:
        A context to start the server span in; empty where there is none.
    """
    pairs = metadata.items() if isinstance(metadata, Mapping) else metadata
    carrier = {key.lower(): value for key, value in pairs if key.lower() in TRACE_FIELDS and isinstance(value, str)}
    return _PROPAGATOR.extract(carrier, Context())


def trace_fields(metadata: Iterable[tuple[str, str | bytes]]) -> tuple[tuple[str, str], ...]:
    """The trace context of incoming metadata or headers, as it came, to be looked at and passed on.

    Args:
        metadata: Pairs; names are compared in lower case.
    """
    return tuple(
        (name.lower(), value)
        for name, value in metadata
        if name.lower() in TRACE_FIELDS
        and isinstance(value, str)
        and len(value) <= _TRACESTATE_CHARS_MAX
        and value.isascii()
        and value.isprintable()
    )


def is_sampled(metadata: Iterable[tuple[str, str]]) -> bool | None:
    """Whether a caller records its trace.

    Args:
        metadata: Pairs, names in lower case.

    Returns:
        None where it has none, or one that cannot be read.
    """
    for name, value in metadata:
        if name == TRACEPARENT and len(value) == _TRACEPARENT_CHARS:
            try:
                return bool(int(value[-2:], 16) & 1)
            except ValueError:
                return None
    return None


def inject(span: trace.Span) -> Sequence[tuple[str, str]]:
    """Writes a span's context as gRPC metadata or HTTP headers.

    Args:
        span: The parent of what the receiver will record.

    Returns:
        Lower-case pairs; empty where the span has no valid context.
    """
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, Context()))
    return tuple(carrier.items())
