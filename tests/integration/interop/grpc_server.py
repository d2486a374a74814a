"""What clients of gRPC in other languages and libraries ask a relay server for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from data_plane.relay.grpc.framing import framed
from data_plane.relay.http2.header_blocks import literal
from data_plane.relay.server import RelayServer, ServerLimits
from tests.unit.relay.server.serving import Echo, Served, serving

INTEROP = "test.Interop"
HOSTED = "test.Hosted"
KSERVE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class Counting(Echo):
    """Answers a number with as many messages, no faster than the client takes them."""

    def on_half_closed(self) -> None:
        self.left = int(self.messages[0])
        self.on_writable()

    def on_writable(self) -> None:
        while self.left and not self.call.blocked:
            self.left -= 1
            self.call.send(framed(b"%d" % self.left))
        if not self.left and not self.call.over:
            self.call.finish()


class Telling(Echo):
    """Answers with the request's metadata, and says something behind it."""

    def on_half_closed(self) -> None:
        told = {name.decode(): value.decode() for name, value in self.call.fields.pairs if name.startswith(b"x-")}
        self.call.send(framed(json.dumps(told).encode()))
        self.call.finish(literal(b"x-last", b"last"))


async def _both(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield b"heard " + request


async def _collect(requests: AsyncIterator[bytes], _context: Any) -> bytes:
    return b"%d" % sum([len(request) async for request in requests])


class KServe(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The protocol of Triton's clients: gives back what it is given."""

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=True)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        return _answer(request)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            for _ in range(3):
                yield service_pb2.ModelStreamInferResponse(infer_response=_answer(request))


def _answer(request: Any) -> Any:
    tensor = request.inputs[0]
    output = service_pb2.ModelInferResponse.InferOutputTensor(name="out", datatype=tensor.datatype, shape=tensor.shape)
    return service_pb2.ModelInferResponse(
        model_name=request.model_name, id=request.id, outputs=[output], raw_output_contents=request.raw_input_contents
    )


def _add_hosted(_servicer: object, server: Any) -> None:
    handlers = {
        "Both": grpc.stream_stream_rpc_method_handler(_both),
        "Collect": grpc.stream_unary_rpc_method_handler(_collect),
    }
    server.add_registered_method_handlers(HOSTED, handlers)


def interop(limits: ServerLimits | None = None) -> AbstractAsyncContextManager[Served]:
    """The server."""
    counted: list[Echo] = []

    def added(server: RelayServer) -> None:
        methods = {"Count": lambda call: Counting(call, counted), "Metadata": lambda call: Telling(call, counted)}
        server.serve(INTEROP, methods)
        server.add(_add_hosted, None, HOSTED)
        server.add(service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server, KServe(), KSERVE)

    return serving(limits, add=added)
