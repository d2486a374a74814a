"""The Triton dialect against a server made of grpcio and Triton's own client package, with scripts for answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2_grpc

from common.clock import SystemClock
from common.triton.wire import REQUEST_TO_BLAME, Dialect
from data_plane.relay.grpc.pool import Pool
from data_plane.router.dialects.dispatch import Engines
from data_plane.router.dialects.triton import TritonUpstream
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import DeadlineExceededError, InvalidArgumentError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.ports import free_port
from tests.support.waiting import eventually
from tests.unit.router.dialect_lab import Noted, request_of, start
from tests.unit.router.triton_lab import Response, record_of, response, text, token

Answer = Callable[[Any, Any], AsyncIterator[Any]]


def saying(*messages: Any, hold: bool = False) -> Answer:
    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        for message in messages:
            yield message
        if hold:
            await asyncio.Event().wait()

    return answer


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Does what a script says.

    Attributes:
        requests: With their metadata.
        left: How each stream was left: "ended" or "cancelled".
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: list[tuple[Any, dict[str, Any]]] = []
        self.left: list[str] = []
        self.address = ""

    async def ModelStreamInfer(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for request in request_iterator:
                self.requests.append((request, dict(context.invocation_metadata() or ())))
                async for message in self._answer(request, context):
                    yield message
            self.left.append("ended")
        except (asyncio.CancelledError, GeneratorExit):
            self.left.append("cancelled")
            raise


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[FakeTriton, TritonUpstream]]:
    fake, server, pool = FakeTriton(answer), grpc.aio.server(), Pool()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield fake, TritonUpstream(pool, SystemClock())
    finally:
        await pool.close()
        await server.stop(None)


async def outcome(answer: Answer, dialect: Dialect = Dialect.ENSEMBLE, request: Any = None) -> Noted:
    async with serving(answer) as (fake, upstream):
        noted = start(upstream, record_of(dialect, fake.address), request)
        await noted.ended()
        return noted


async def test_the_ensemble_dialect_comes_token_by_token() -> None:
    """Shows text, the server's own counts, a whole measure as length, and the request that Triton's package reads."""
    answer = saying(token("Hel"), token("lo", 2), token(" é"), token("!", final=True))
    async with serving(answer) as (fake, upstream):
        trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        record = record_of(Dialect.ENSEMBLE, fake.address, status_errors=True)
        noted = start(upstream, record, request_of("hi", max_tokens=5), metadata=(("traceparent", trace), ("x", "y")))
        await noted.ended()
        assert noted.texts == ["Hel", "lo", " é"]
        assert noted.counts == [1, 2, 1]
        assert noted.text == "Hello é!"
        assert noted.last.finish_reason == pb.FINISH_REASON_LENGTH
        assert noted.last.usage == pb.Usage(input_tokens=7, output_tokens=5)
        assert noted.tokens == 5
        assert noted.ends == [None]
        request, metadata = fake.requests[0]
        assert request.model_name == "ensemble"
        assert request.id == "r-1"
        assert metadata["traceparent"] == trace
        assert metadata["triton_grpc_error"] == "true"
        assert "x" not in metadata
        quiet = start(
            upstream, record_of(Dialect.ENSEMBLE, fake.address), metadata=(("traceparent", trace[:-1] + "0"),)
        )
        await quiet.ended()
        assert not {"traceparent", "triton_grpc_error"} & set(fake.requests[1][1])


async def test_the_llm_api_dialect_is_cut_into_what_is_new() -> None:
    """Shows whole texts, an unfinished character held back, and a finish reason of the server's own."""
    going: Any = {"finish_reason": text("None")}
    noted = await outcome(
        saying(
            response(text_output=text("a\ufffd"), **going),
            response(text_output=text("aé"), **going),
            response(True, text_output=text("aé!"), finish_reason=text("stop")),
        ),
        Dialect.LLMAPI,
    )
    assert noted.texts == ["a", "é"]
    assert noted.text == "aé!"
    assert noted.tokens == noted.last.usage.output_tokens == 3
    assert noted.last.finish_reason == pb.FINISH_REASON_STOP


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        # The end is known only after the last token, in a response of its own.
        ((token("a"), token("b"), response(True)), "ab"),
        # Older servers say nothing of the end.
        ((token("a"), token("b")), "ab"),
        # Responses whose beginnings differ, and one without tensors between them.
        ((token("a"), response(text_output=text("b")), response(), token("c", final=True)), "abc"),
        # Bytes that are no text.
        ((token("a"), token(b"\xff"), token("b", final=True)), "a\ufffdb"),
        # A tensor of several texts: the first.
        ((token("a"), response(text_output=text("b") + text("x")), token("c", final=True)), "abc"),
        # A long one.
        ((token("a"), token("é" * 20_000, 300), token("b", final=True)), "a" + "é" * 20_000 + "b"),
    ],
)
async def test_ends_and_shapes_of_streams(messages: tuple[Any, ...], told: str) -> None:
    """Proves that whatever a stream looks like, its text is told once and in order, and it is finished."""
    noted = await outcome(saying(*messages), request=request_of(max_tokens=1_000))
    assert noted.text == told
    assert noted.ends == [None]
    assert noted.last.finish_reason == pb.FINISH_REASON_STOP
    assert noted.last.usage.output_tokens == noted.tokens


async def test_conversations_are_rendered_by_the_template_in_the_record() -> None:
    """Shows the template with its tokens, and that a model without one refuses conversations."""
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    async with serving(saying(token("a", final=True))) as (fake, upstream):
        record = record_of(Dialect.ENSEMBLE, fake.address, chat_template=template)
        record.triton.template_tokens["bos_token"] = "<s>"
        chat = request_of(chat=(("user", "Hi {{ 7 }}"),))
        noted = start(upstream, record, chat)
        await noted.ended()
        assert noted.ends == [None]
        request, _ = fake.requests[0]
        at = [tensor.name for tensor in request.inputs].index("text_input")
        assert request.raw_input_contents[at] == text("<s>[user] Hi {{ 7 }}\n[assistant]")
        for broken, kind in (("", InvalidArgumentError), ("{% for %}", UnavailableError)):
            record = record_of(Dialect.ENSEMBLE, fake.address, chat_template=broken)
            noted = start(upstream, record, chat)
            await noted.ended()
            assert isinstance(noted.failure, kind)
        assert len(fake.requests) == 1


def aborting(code: grpc.StatusCode, message: str, *before: Any) -> Answer:
    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        for each in before:
            yield each
        await context.abort(code, message)

    return answer


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (aborting(grpc.StatusCode.INVALID_ARGUMENT, "bad shape"), InvalidArgumentError, Reason.INVALID_ARGUMENT),
        (
            aborting(grpc.StatusCode.INTERNAL, "Prompt length (9) exceeds maximum input length (8)"),
            InvalidArgumentError,
            Reason.PROMPT_TOO_LONG,
        ),
        (aborting(grpc.StatusCode.INTERNAL, "stub is gone", token("a")), UnavailableError, Reason.ENGINE_FAILED),
        (aborting(grpc.StatusCode.UNAVAILABLE, "no model"), UnavailableError, Reason.ENGINE_FAILED),
        (saying(Response(error_message="boom")), UnavailableError, Reason.ENGINE_FAILED),
        (saying(token("a"), Response(error_message="boom")), UnavailableError, Reason.ENGINE_FAILED),
        (
            saying(Response(error_message=REQUEST_TO_BLAME + "empty")),
            InvalidArgumentError,
            Reason.INVALID_ARGUMENT,
        ),
        (saying(token("a"), token("b", -1)), UnavailableError, Reason.ENGINE_FAILED),
        (saying(token("a"), response(text_output=text("b"), num_output_tokens=b"\1")), UnavailableError, None),
    ],
)
async def test_failures_are_the_agents(answer: Answer, kind: type, reason: Reason | None) -> None:
    """Proves for each way to fail who is to blame, as the agent in between would have said it."""
    noted = await outcome(answer)
    assert type(noted.failure) is kind
    assert noted.failure.reason is (reason or Reason.ENGINE_FAILED)
    assert not noted.messages


async def test_broken_connections_are_lost_replicas_and_none_is_not_ready() -> None:
    """Shows nobody there, one that speaks no gRPC, and a server that ends in the middle."""
    pool = Pool()
    upstream = TritonUpstream(pool, SystemClock())
    noted = start(upstream, record_of(Dialect.ENSEMBLE, f"127.0.0.1:{free_port()}"))
    await noted.ended()
    assert noted.failure.reason is Reason.NOT_READY

    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.close()

    server = await asyncio.start_server(closing, "127.0.0.1", 0)
    noted = start(upstream, record_of(Dialect.ENSEMBLE, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    await noted.ended()
    assert noted.failure.reason is Reason.NOT_READY
    server.close()
    await pool.close()

    async with serving(saying(token("a"), hold=True)) as (fake, upstream):
        noted = start(upstream, record_of(Dialect.ENSEMBLE, fake.address))
        await eventually(lambda: noted.texts)
    await noted.ended()
    assert noted.failure.reason is Reason.REPLICA_LOST


async def test_a_record_that_does_not_describe_its_model_is_refused() -> None:
    """Shows an agent that is older or mistaken, and a setting the model has no tensor for."""
    upstream = TritonUpstream(Pool(), SystemClock())
    noted = start(upstream, engine_pb2.Replica(replica_id="m-1", engine_address="h:1", engine_model="x"))
    await noted.ended()
    assert noted.failure.reason is Reason.ENGINE_MISSING
    record = record_of(Dialect.ENSEMBLE)
    kept = [each for each in record.triton.inputs if each.name != "repetition_penalty"]
    del record.triton.inputs[:]
    record.triton.inputs.extend(kept)
    noted = start(upstream, record, request_of(repetition_penalty=1.5))
    await noted.ended()
    assert isinstance(noted.failure, InvalidArgumentError)
    assert noted.failure.field == "sampling.repetition_penalty"


async def test_cancelling_reaches_triton_at_once() -> None:
    """Proves that the stream is reset in the middle, and that nothing is told after it."""
    async with serving(saying(*(token(str(digit)) for digit in range(9)), hold=True)) as (fake, upstream):
        noted = start(upstream, record_of(Dialect.ENSEMBLE, fake.address), noted=Noted(cancel_at=3))
        await eventually(lambda: fake.left == ["cancelled"])
        assert noted.texts == ["0", "1", "2"]
        assert not noted.ends


@pytest.mark.parametrize("last", [token("b", final=True), Response(error_message="boom")])
async def test_a_stream_that_has_said_all_is_not_cancelled(last: Any) -> None:
    """Proves that between the last response, or an error in its place, and the end no reset is sent (Triton 2.51)."""
    may_end = asyncio.Event()

    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        yield token("a")
        yield last
        await may_end.wait()

    async with serving(answer) as (fake, upstream):
        noted = start(upstream, record_of(Dialect.ENSEMBLE, fake.address))
        await noted.ended()
        noted.cancel()
        other = start(upstream, record_of(Dialect.ENSEMBLE, fake.address))
        await other.ended()  # a round trip later
        assert not fake.left
        may_end.set()
        await eventually(lambda: fake.left == ["ended", "ended"])


async def test_the_deadline_ends_a_request() -> None:
    """Proves that a Triton which hangs is left at the deadline, and told so."""
    async with serving(saying(token("a"), hold=True)) as (fake, upstream):
        noted = start(upstream, record_of(Dialect.ENSEMBLE, fake.address), left_s=1.0)
        await noted.ended()
        assert isinstance(noted.failure, DeadlineExceededError)
        await eventually(lambda: fake.left == ["cancelled"])


async def test_a_triton_that_is_silent_for_long_keeps_its_stream() -> None:
    """Proves that a long prefill is left alone: grpc's servers, Triton among them, end connections that ping often."""
    async with serving(saying(token("a"), hold=True)) as (fake, _):
        engines = Engines(SystemClock())
        noted = start(engines.ways[engine_pb2.DIALECT_TRITON], record_of(Dialect.ENSEMBLE, fake.address))
        await eventually(lambda: noted.texts)
        await asyncio.sleep(7.0)  # with pings every two seconds it would have ended after four
        assert not noted.ends
        assert not fake.left
        await engines.close()
        await noted.ended()


async def test_a_paused_client_holds_triton() -> None:
    """Proves that HTTP/2's windows stop the server while the client waits, and that nothing is lost."""
    total, sent = 3_000, 0
    filler = "x" * 1_000

    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        nonlocal sent
        for _ in range(total):
            yield token(filler)
            sent += 1
        yield response(True)

    async with serving(answer) as (fake, upstream):
        noted = start(upstream, record_of(Dialect.ENSEMBLE, fake.address))
        await eventually(lambda: noted.texts)
        assert noted.running is not None
        noted.running.pause()
        seen = -1
        while seen != sent:
            seen = sent
            await asyncio.sleep(0.3)
        assert sent < total
        noted.running.resume()
        await noted.ended(60.0)
        assert noted.ends == [None]
        assert noted.tokens == total
