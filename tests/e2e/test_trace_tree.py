"""One trace across every hop, as a collector receives it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from engines.triton import environment
from fairlead import AsyncClient
from tests.e2e.make_run import MakeRun
from tests.support.otlp import Collector, ReceivedSpan, collector
from tests.support.waiting import eventually

CANARY = "canary-7f3a prompt that no span may carry"


def services(spans: list[ReceivedSpan]) -> set[str]:
    return {span.service for span in spans}


async def ask(keeper: Collector, run: MakeRun) -> tuple[str, str]:
    """Sends one request as an application that traces; returns the trace id and the answer."""
    provider = TracerProvider(resource=Resource.create({"service.name": "my-application"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=keeper.grpc_endpoint, insecure=True)))
    facts = run.document()
    tenant = facts["tenants"]["acme"]
    async with AsyncClient(facts["grpc"], api_key=tenant["key"], tracer_provider=provider) as client:
        with provider.get_tracer("test").start_as_current_span("application") as root:
            trace_id = format(root.get_span_context().trace_id, "032x")
            async with client.stream_generate(
                CANARY, model=tenant["model"], max_tokens=24, frequency_penalty=1.0
            ) as stream:
                output = "".join([piece.text async for piece in stream])
    await asyncio.to_thread(provider.shutdown)
    assert output
    return trace_id, output


@pytest.mark.triton
@pytest.mark.skipif(
    not environment.is_current(environment.default_directory()),
    reason=environment.unsupported_reason() or "no Triton environment: make test makes it",
)
@pytest.mark.timeout(240)
async def test_client_router_agent_and_triton_are_one_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real run's spans arrive over OTLP as one tree, client to Triton, with GenAI attributes and without any text."""
    async with collector() as keeper:
        monkeypatch.setenv("FAIRLEAD_OTLP_ENDPOINT", keeper.grpc_endpoint)
        monkeypatch.setenv("FAIRLEAD_ENGINES_OTLP_TRACES_URL", keeper.http_endpoint)
        run = MakeRun(tmp_path / "run", engine="triton", replicas=1)
        try:
            await run.serving()
            trace_id, output = await ask(keeper, run)
            await eventually(lambda: len(services(keeper.trace(trace_id))) >= 4, 20, "spans of every hop")
            run.process.send_signal(signal.SIGTERM)
            await run.ends()
        finally:
            run.kill()
        spans = keeper.trace(trace_id)
    by_id = {span.span_id: span for span in spans}
    roots = [span for span in spans if span.parent_id not in by_id]
    assert [root.name for root in roots] == ["application"], spans
    chain = _ancestry(next(span for span in spans if "triton" in span.service.lower()), by_id)
    order = list(dict.fromkeys(span.service for span in reversed(chain)))
    assert order[0] == "my-application"
    assert order.index("fairlead-router") < order.index("fairlead-engines") < len(order) - 1, order
    router = next(
        span for span in spans if span.service == "fairlead-router" and "gen_ai.request.model" in span.attributes
    )
    assert router.attributes["gen_ai.usage.output_tokens"] == 24
    assert router.attributes["fairlead.tenant.id"] == "acme"
    assert router.attributes["fairlead.settled_milli_mu"] > 0
    for span in spans:
        assert "canary" not in repr(span), span.name
        assert output not in repr(span), span.name


def _ancestry(span: ReceivedSpan, by_id: dict[str, ReceivedSpan]) -> list[ReceivedSpan]:
    """The span and all above it."""
    chain = [span]
    while chain[-1].parent_id in by_id:
        chain.append(by_id[chain[-1].parent_id])
    return chain
