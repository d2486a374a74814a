"""An OTLP collector for tests: receives spans over gRPC and over HTTP and keeps them."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from aiohttp import web
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """What tests look at of a span; ids are hexadecimal."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any] = field(compare=False)


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def _hex_ids_to_base64(item: dict[str, Any]) -> dict[str, Any]:
    """OTLP's JSON writes ids as hexadecimal where protobuf's JSON wants base64."""
    for name in ("traceId", "spanId", "parentSpanId"):
        if name in item:
            item[name] = base64.b64encode(bytes.fromhex(item[name])).decode()
    return item


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span it is sent.

    Attributes:
        spans: All spans so far.
        grpc_endpoint: http://host:port for OTLP/gRPC exporters.
        http_endpoint: http://host:port/v1/traces for OTLP/HTTP exporters.
    """

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self.grpc_endpoint = ""
        self.http_endpoint = ""

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """The spans of one trace, in the order they arrived."""
        return [span for span in self.spans if span.trace_id == trace_id]

    def accept(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        """Keeps the spans of one export."""
        for group in request.resource_spans:
            resource = {item.key: _value(item.value) for item in group.resource.attributes}
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        ReceivedSpan(
                            str(resource.get("service.name", "")),
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            {item.key: _value(item.value) for item in span.attributes},
                        )
                    )

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """OTLP/gRPC."""
        self.accept(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    async def receive_http(self, request: web.Request) -> web.Response:
        """OTLP/HTTP, as protobuf or as JSON (what Triton sends)."""
        body = await request.read()
        if request.content_type == "application/json":
            message = json.loads(body, object_hook=_hex_ids_to_base64)
            self.accept(json_format.ParseDict(message, trace_service_pb2.ExportTraceServiceRequest()))
        else:
            self.accept(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
        return web.Response(
            body=trace_service_pb2.ExportTraceServiceResponse().SerializeToString(),
            content_type="application/x-protobuf",
        )


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """Runs a collector on free ports of the loopback interface."""
    keeper = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(keeper, server)  # type: ignore[no-untyped-call]
    keeper.grpc_endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/traces", keeper.receive_http)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    keeper.http_endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    try:
        yield keeper
    finally:
        await runner.cleanup()
        await server.stop(0)
