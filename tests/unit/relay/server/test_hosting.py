"""Ordinary servicers of grpc.aio on the relay's server: all four kinds of calls, and the services everybody expects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fairlead.errors import NotFoundError, Reason, from_rpc_error
from fairlead.inference.v1 import inference_pb2, inference_pb2_grpc
from tests.support.waiting import eventually
from tests.unit.relay.server.serving import failed, serving

NAME = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    """Answers by what the request's model is."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.done = 0
        self.metadata: list[Any] = []

    async def Generate(self, request: Any, context: Any) -> Any:
        context.add_done_callback(lambda _: setattr(self, "done", self.done + 1))
        self.metadata.append((context.invocation_metadata(), context.time_remaining(), context.peer()))
        match request.model:
            case "missing":
                raise NotFoundError("no such model", reason=Reason.UNKNOWN_MODEL, metadata={"model": "missing"})
            case "defect":
                raise ValueError("a secret")
            case "abort":
                await context.abort(grpc.StatusCode.DATA_LOSS, "gone äöü", (("x-why", "so"), ("x-bin", b"\0\xff")))
            case "code":
                context.set_code(grpc.StatusCode.ABORTED)
                context.set_details("busy")
            case "silence":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    assert context.cancelled()
                    self.cancelled += 1
                    raise
        await context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-last-bin", b"\1")))
        assert context.trailing_metadata()[0] == ("x-last", "2")
        return inference_pb2.GenerateResponse(text=request.prompt)

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for word in request.prompt.split():
            yield inference_pb2.StreamGenerateResponse(text=word)
        if request.model == "missing":
            raise NotFoundError("no such model", reason=Reason.UNKNOWN_MODEL)


@pytest.fixture
def inference() -> Inference:
    return Inference()


def added(inference: Inference) -> Any:
    return lambda server: server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, inference, NAME)


async def test_unary_and_streamed_answers_with_metadata(inference: Inference) -> None:
    async with serving(add=added(inference)) as served, grpc.aio.insecure_channel(served.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = inference_pb2.GenerateRequest(model="m", prompt="one two three")
        metadata = (("authorization", "Bearer k"), ("x-bytes-bin", b"\0\1\2"))
        call = stub.Generate(request, timeout=20, metadata=metadata)
        assert (await call).text == "one two three"
        assert dict(await call.initial_metadata())["x-first"] == "1"
        trailers = dict(await call.trailing_metadata())
        assert (trailers["x-last"], trailers["x-last-bin"]) == ("2", b"\1")
        ((seen, left_s, peer),) = inference.metadata
        assert dict(seen)["authorization"] == "Bearer k"
        assert dict(seen)["x-bytes-bin"] == b"\0\1\2"
        assert not {"te", "content-type", ":path", "grpc-timeout"} & dict(seen).keys()
        assert 15.0 < left_s <= 20.0
        assert peer.startswith("ipv4:127.0.0.1:")
        assert [answer.text async for answer in stub.StreamGenerate(request, timeout=20)] == ["one", "two", "three"]
        await eventually(lambda: inference.done == 1)


@pytest.mark.parametrize("streams", [False, True])
async def test_errors_of_the_tree(inference: Inference, streams: bool) -> None:
    async with serving(add=added(inference)) as served, grpc.aio.insecure_channel(served.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = inference_pb2.GenerateRequest(model="missing", prompt="one")
        call = stub.StreamGenerate(request, timeout=20) if streams else stub.Generate(request, timeout=20)
        error = from_rpc_error(await failed(call))
        assert isinstance(error, NotFoundError)
        assert error.reason is Reason.UNKNOWN_MODEL


async def test_other_ends(inference: Inference) -> None:
    """Proves abort with trailers, a code that was set, a defect that tells nothing, and a message that is none."""
    async with serving(add=added(inference)) as served, grpc.aio.insecure_channel(served.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        aborted = await failed(stub.Generate(inference_pb2.GenerateRequest(model="abort"), timeout=20))
        assert (aborted.code(), aborted.details()) == (grpc.StatusCode.DATA_LOSS, "gone äöü")
        assert dict(aborted.trailing_metadata())["x-why"] == "so"
        assert dict(aborted.trailing_metadata())["x-bin"] == b"\0\xff"
        coded = await failed(stub.Generate(inference_pb2.GenerateRequest(model="code"), timeout=20))
        assert (coded.code(), coded.details()) == (grpc.StatusCode.ABORTED, "busy")
        defect = await failed(stub.Generate(inference_pb2.GenerateRequest(model="defect"), timeout=20))
        assert defect.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(defect.details())
        none = await failed(channel.unary_unary(f"/{NAME}/Generate")(b"\xff\xff", timeout=20))
        assert none.code() is grpc.StatusCode.INTERNAL
        missing = await failed(stub.ListModels(inference_pb2.ListModelsRequest(), timeout=20))
        assert missing.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_who_gives_up_cancels_the_task(inference: Inference) -> None:
    async with serving(add=added(inference)) as served, grpc.aio.insecure_channel(served.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(inference_pb2.GenerateRequest(model="silence"), timeout=20)
        await eventually(lambda: inference.metadata)
        call.cancel()
        await eventually(lambda: inference.cancelled == 1)
        error = await failed(stub.Generate(inference_pb2.GenerateRequest(model="silence"), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: inference.cancelled == 2)


class Generic:
    """Servicer of kinds of calls that our services do not have; messages are bytes."""

    async def sum(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([request async for request in requests])

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request.upper()

    async def read_and_write(self, requests: AsyncIterator[bytes], context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request[::-1])

    async def slow(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        await self.go_on.wait()
        return b"%d" % sum([len(request) async for request in requests])

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    def add(self, server: Any) -> None:
        def add_to_server(servicer: Any, host: Any) -> None:
            host.add_registered_method_handlers(
                "test.Generic",
                {
                    "Sum": grpc.stream_unary_rpc_method_handler(servicer.sum),
                    "Chat": grpc.stream_stream_rpc_method_handler(servicer.chat),
                    "ReadAndWrite": grpc.stream_stream_rpc_method_handler(servicer.read_and_write),
                    "Slow": grpc.stream_unary_rpc_method_handler(servicer.slow),
                },
            )

        server.add(add_to_server, self, "test.Generic")


async def test_requests_that_stream() -> None:
    generic = Generic()
    async with serving(add=generic.add) as served, grpc.aio.insecure_channel(served.address) as channel:
        total = channel.stream_unary("/test.Generic/Sum")
        assert await total(iter([b"a", b"", 100_000 * b"b"]), timeout=20) == b"a" + 100_000 * b"b"
        assert await total(iter([]), timeout=20) == b""
        for method, answers in (("Chat", [b"ONE", b"TWO"]), ("ReadAndWrite", [b"eno", b"owt"])):
            call = channel.stream_stream(f"/test.Generic/{method}")(timeout=20)
            for word, answer in zip((b"one", b"two"), answers, strict=True):
                await call.write(word)
                assert await call.read() == answer
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK


async def test_a_servicer_that_does_not_read_holds_up_its_client() -> None:
    """Proves that what streams in beyond a servicer's pace waits at the client, and that it goes on from there."""
    generic = Generic()
    async with serving(add=generic.add) as served, grpc.aio.insecure_channel(served.address) as channel:
        call = channel.stream_unary("/test.Generic/Slow")(timeout=60)
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(64):
                await call.write(100_000 * b"x")
                written += 1
            await call.done_writing()

        writing = asyncio.ensure_future(write())
        await eventually(lambda: written >= 16)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.shield(writing)
        assert written < 40
        generic.go_on.set()
        assert await call == b"6400000"
        await writing


async def test_health_is_checked_and_watched() -> None:
    async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "test.Relay", "grpc.health.v1.Health"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        unknown = await failed(stub.Check(health_pb2.HealthCheckRequest(service="no.Such"), timeout=20))
        assert unknown.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await served.server.set_serving(False)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await served.server.set_serving(True)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_reflection_knows_the_services(inference: Inference) -> None:
    """Proves reflection with its own client, which asks over one stream for one thing after the other."""

    def ask(address: str) -> tuple[set[str], set[str]]:
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            found = database.FindFileContainingSymbol(NAME)
            return set(database.get_services()), {service.name for service in found.service}

    async with serving(add=added(inference)) as served:
        services, found = await asyncio.to_thread(ask, served.address)
        assert {"test.Relay", NAME, "grpc.health.v1.Health"} <= services
        assert "InferenceService" in found


async def test_a_callers_trace_goes_on(inference: Inference) -> None:
    """Proves that a traceparent gives a hosted call a span below it, and that without one there is none."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def add(server: Any) -> None:
        server._host._tracer = provider.get_tracer("test")
        added(inference)(server)

    async with serving(add=add) as served, grpc.aio.insecure_channel(served.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await stub.Generate(inference_pb2.GenerateRequest(), timeout=20)
        assert not exporter.get_finished_spans()
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await stub.Generate(inference_pb2.GenerateRequest(), timeout=20, metadata=(("traceparent", parent),))
        (span,) = exporter.get_finished_spans()
        assert span.name == f"{NAME}/Generate"
        assert span.kind is trace.SpanKind.SERVER
        assert span.parent is not None
        assert span.parent.span_id == 0xB7AD6B7169203331
    provider.shutdown()
