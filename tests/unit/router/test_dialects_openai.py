"""The OpenAI dialect against scripted servers on real sockets: what comes out, and what of it is a failure."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.clock import SystemClock
from common.generation import prompt_of, sampling_of
from common.openai import messages
from common.openai.sse import EVENT_BYTES_MAX, EventReader, EventTooLargeError
from data_plane.gateway import translate
from data_plane.relay.grpc import pieces
from data_plane.relay.http1.client import HttpPool
from data_plane.router.dialects.credentials import Credentials, origin_of
from data_plane.router.dialects.openai import OpenAIRunning, OpenAIUpstream
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import (
    DeadlineExceededError,
    FairleadError,
    InvalidArgumentError,
    QuotaExceededError,
    Reason,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.ports import free_port
from tests.support.scripted_http import HEAD, LAST, Conversation, Script, ScriptedServer, chunked
from tests.support.waiting import eventually
from tests.unit.router.dialect_lab import Noted, request_of, start

DONE = b"data: [DONE]\n\n"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def said(text: str | None = None, finish: str | None = None, **extra: Any) -> bytes:
    """A chunk of a conversation."""
    delta = {} if text is None else {"content": text}
    return event(id="c", choices=[{"index": 0, "delta": delta, "finish_reason": finish}], **extra)


def counted(prompt: int, completion: int, cached: int = 0) -> bytes:
    """The chunk of the usage."""
    details = {"cached_tokens": cached}
    return event(
        choices=[],
        usage={"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details},
    )


WHOLE = (said(""), said("Hel"), said("lo"), said(" you", "length"), counted(7, 3, 2), DONE)


class Bench:
    """An upstream and a scripted engine."""

    def __init__(self, server: ScriptedServer, upstream: OpenAIUpstream, pool: HttpPool) -> None:
        self.server = server
        self.upstream = upstream
        self.pool = pool
        self.replica = engine_pb2.Replica(
            dialect=engine_pb2.DIALECT_OPENAI,
            engine_address=f"http://127.0.0.1:{server.port}/v1",
            engine_model="llama",
        )

    @property
    def connections(self) -> int:
        return self.pool.count(origin_of(self.replica.engine_address)[0])


@asynccontextmanager
async def bench(script: Script, credentials: Credentials | None = None) -> AsyncIterator[Bench]:
    async with ScriptedServer(script) as server:
        pool = HttpPool()
        upstream = OpenAIUpstream(pool, credentials or Credentials(), SystemClock())
        try:
            yield Bench(server, upstream, pool)
        finally:
            await pool.close()


def saying(*parts: bytes, head: bytes = HEAD, end: bytes = LAST, hold: bool = False) -> Script:
    """Answers every request with events, each a chunk of its own."""

    async def script(conversation: Conversation) -> None:
        while True:
            await conversation.request()
            await conversation.say(head, *(chunked(part) for part in parts), end)
            if hold:
                await conversation.gone()
                return

    return script


async def outcome(script: Script, request: Any = None, **options: Any) -> Noted:
    """What becomes of one request."""
    async with bench(script, **options) as made:
        noted = start(made.upstream, made.replica, request)
        await noted.ended()
        return noted


async def test_a_conversation_comes_as_pieces_and_its_usage_at_the_end() -> None:
    """Shows text, tokens, finish, usage and cached prompt, the request as it is sent, and the connection kept."""
    async with bench(saying(*WHOLE)) as made:
        for number in (1, 2):
            trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
            request = request_of(chat=(("system", "Be brief."), ("user", "Hi")), temperature=0.7, seed=2**64 - 1)
            noted = start(made.upstream, made.replica, request, metadata=(("traceparent", trace),))
            await noted.ended()
            assert noted.texts == ["Hel", "lo", " you"]
            assert noted.counts == [1, 1, 1]
            assert noted.ends == [None]
            assert noted.last.finish_reason == pb.FINISH_REASON_LENGTH
            assert noted.last.usage == pb.Usage(input_tokens=7, cached_input_tokens=2, output_tokens=3)
            await eventually(lambda number=number: len(made.server.conversations[0].requests) == number)  # type: ignore[misc]
        head, body = made.server.conversations[0].requests[0]
        assert head.startswith(b"post /v1/chat/completions http/1.1\r\nhost: 127.0.0.1:")
        assert b"\r\ntraceparent: " + trace.encode() + b"\r\n" in head
        assert b"authorization" not in head
        sent = json.loads(body)
        assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert (sent["model"], sent["temperature"], sent["seed"]) == ("llama", 0.7, 2**63 - 1)
        assert len(made.server.conversations) == 1


async def test_plain_text_goes_to_completions() -> None:
    """Shows the other endpoint and its shape of chunks."""
    parts = [event(choices=[{"index": 0, "text": text, "finish_reason": None}]) for text in ("a", "b")]
    last = event(choices=[{"index": 0, "text": "", "finish_reason": "stop"}])
    async with bench(saying(*parts, last, counted(1, 2), DONE)) as made:
        noted = start(made.upstream, made.replica, request_of("once", stop=["x"], ignore_end_token=True))
        await noted.ended()
        assert noted.text == "ab"
        assert noted.last.finish_reason == pb.FINISH_REASON_STOP
        head, body = made.server.conversations[0].requests[0]
        assert head.startswith(b"post /v1/completions http/1.1\r\n")
        sent = json.loads(body)
        assert (sent["prompt"], sent["stop"], sent["ignore_eos"]) == ("once", ["x"], True)


@settings(max_examples=60, deadline=None)
@given(
    sampling=st.fixed_dictionaries(
        {"max_tokens": st.integers(1, 1000)},
        optional={
            "temperature": st.floats(0, 2, width=32),
            "top_p": st.floats(0.125, 1, width=32),
            "top_k": st.integers(1, 1000),
            "seed": st.integers(0, 2**63 - 1),
            "stop": st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3),
            "presence_penalty": st.floats(-2, 2, width=32),
            "frequency_penalty": st.floats(-2, 2, width=32),
            "repetition_penalty": st.floats(0.125, 2, width=32),
            "ignore_end_token": st.booleans(),
        },
    ),
    chat=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=9)), min_size=0, max_size=3),
)
def test_our_own_gateway_reads_what_the_dialect_writes(sampling: dict[str, Any], chat: list[tuple[str, str]]) -> None:
    """Proves over all settings that both ends of OpenAI's API mean the same; floats to seven digits."""
    request = request_of("plain", chat=tuple(chat), **sampling).request
    body = messages.request_body(prompt_of(request), sampling_of(request.sampling), "m")
    written, decoded = (translate.chat if chat else translate.completion)(body, {})
    read = pb.GenerateRequest.FromString(written)
    assert decoded.stream
    assert translate.wants_usage(decoded)
    assert read.chat == request.chat
    assert read.prompt == request.prompt
    for field in request.sampling.DESCRIPTOR.fields:
        mine, theirs = getattr(request.sampling, field.name), getattr(read.sampling, field.name)
        assert theirs == (pytest.approx(mine, rel=1e-6) if isinstance(mine, float) else mine), field.name


@pytest.mark.parametrize(
    ("parts", "pieces_told", "tokens_last", "output_tokens"),
    [
        # Three chunks for five tokens: the two others come with the last message.
        ((said("a"), said("b"), said("c", "stop"), counted(1, 5), DONE), [1, 1, 1], 2, 5),
        # Three chunks for two tokens: what was told cannot be taken back, and settlement takes the larger.
        ((said("a"), said("b"), said("c", "stop"), counted(1, 2), DONE), [1, 1, 1], 0, 2),
        # A server that tells its usage with every chunk is counted by that.
        (
            (
                said("ab", usage={"completion_tokens": 2}),
                said("c", usage={"completion_tokens": 2}),
                said("def", usage={"completion_tokens": 5}),
                said(None, "stop"),
                counted(1, 6),
                DONE,
            ),
            [2, 0, 3],
            1,
            6,
        ),
        # One that tells none at all: the router's own count.
        ((said("a"), said("b", "stop"), DONE), [1, 1], 0, 2),
        # What a model thinks before it speaks is counted and not told.
        (
            (event(choices=[{"delta": {"reasoning_content": "hm"}}]), said("a", "stop"), counted(1, 2), DONE),
            [1, 1],
            0,
            2,
        ),
    ],
)
async def test_tokens_come_to_the_servers_count(
    parts: tuple[bytes, ...], pieces_told: list[int], tokens_last: int, output_tokens: int
) -> None:
    """Proves how chunks are counted and put right."""
    noted = await outcome(saying(*parts))
    assert noted.counts == pieces_told
    assert noted.last.output_tokens == tokens_last
    assert noted.last.usage.output_tokens == output_tokens
    assert noted.tokens == max(output_tokens, sum(pieces_told))
    assert noted.ends == [None]


@pytest.mark.parametrize(
    ("parts", "end"),
    [
        (WHOLE[:5], LAST),  # no [DONE]
        (WHOLE[:5], b""),  # not even the end of the body
        (WHOLE[:4], b""),  # nor the usage
        ((*WHOLE, said("more")), LAST),
        ((WHOLE[0], *WHOLE[1:4], said("more"), *WHOLE[4:]), LAST),
    ],
)
async def test_an_answer_whose_text_is_whole_is_finished(parts: tuple[bytes, ...], end: bytes) -> None:
    """Shows that what follows the finish reason adds at most the usage, and that nothing after it is told."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(HEAD, *(chunked(part) for part in parts), end)

    noted = await outcome(script)
    assert noted.text == "Hello you"
    assert noted.ends == [None]
    assert noted.last.finish_reason == pb.FINISH_REASON_LENGTH


@pytest.mark.parametrize(
    ("parts", "end", "reason"),
    [
        ((), LAST, Reason.REPLICA_LOST),
        (WHOLE[:3], LAST, Reason.REPLICA_LOST),
        (WHOLE[:3], b"", Reason.REPLICA_LOST),
        ((*WHOLE[:3], DONE), LAST, Reason.REPLICA_LOST),
        ((*WHOLE[:3], WHOLE[3][:30]), b"", Reason.REPLICA_LOST),
        ((*WHOLE[:3], b"data: {]\n\n"), LAST, Reason.ENGINE_FAILED),
        ((*WHOLE[:3], b"data: 7\n\n"), LAST, Reason.ENGINE_FAILED),
        ((*WHOLE[:3], b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'), LAST, Reason.ENGINE_FAILED),
        ((*WHOLE[:3], b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n'), LAST, Reason.ENGINE_FAILED),
        ((*WHOLE[:3], counted(2**40, 1)), LAST, Reason.ENGINE_FAILED),
        ((*WHOLE[:3], counted(1, -1)), LAST, Reason.ENGINE_FAILED),
        ((*WHOLE[:3], b"data: " + b"a" * (EVENT_BYTES_MAX + 10)), LAST, Reason.ENGINE_FAILED),
        ((*WHOLE[:3], event(error={"message": "CUDA", "type": "server_error"})), LAST, Reason.ENGINE_FAILED),
        ((*WHOLE[:3], event(error="boom")), LAST, Reason.ENGINE_FAILED),
        ((*WHOLE[:3],), b"zz\r\n", Reason.ENGINE_FAILED),
    ],
)
async def test_a_broken_stream_is_a_typed_failure(parts: tuple[bytes, ...], end: bytes, reason: Reason) -> None:
    """Proves that cut streams count as a lost replica and nonsense as a failed engine; what came before was told."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(HEAD, *(chunked(part) for part in parts), end)
        if end:
            await conversation.gone()

    async with bench(script) as made:
        noted = start(made.upstream, made.replica)
        await noted.ended()
        assert isinstance(noted.failure, UnavailableError)
        assert noted.failure.reason is reason
        assert noted.text == ("Hello" if parts else "")
        assert not noted.messages


async def test_an_error_inside_a_stream_can_blame_the_request() -> None:
    """Shows vLLM's way to refuse a request after the head was sent."""
    error = {"message": "This model's maximum context length is 8 tokens", "type": "BadRequestError", "code": 400}
    noted = await outcome(saying(event(error=error), DONE))
    assert isinstance(noted.failure, InvalidArgumentError)
    assert noted.failure.reason is Reason.PROMPT_TOO_LONG


def refusing(status: int, body: bytes, *headers: bytes) -> Script:
    lines = b"".join(header + b"\r\n" for header in headers)
    head = b"HTTP/1.1 %d No\r\n%bcontent-length: %d\r\n\r\n" % (status, lines, len(body))
    return saying(head=head, end=body)


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (400, b'{"error":{"message":"bad stop"}}', InvalidArgumentError, Reason.INVALID_ARGUMENT),
        (400, b'{"object":"error","message":"bad stop","code":400}', InvalidArgumentError, Reason.INVALID_ARGUMENT),
        (422, b'{"detail":[{"loc":["body"]}]}', InvalidArgumentError, Reason.INVALID_ARGUMENT),
        (413, b"<html>", InvalidArgumentError, Reason.INVALID_ARGUMENT),
        (
            400,
            b'{"error":{"message":"too long","code":"context_length_exceeded"}}',
            InvalidArgumentError,
            Reason.PROMPT_TOO_LONG,
        ),
        (401, b'{"error":{"message":"Incorrect API key: sk-secret"}}', UnavailableError, Reason.ENGINE_FAILED),
        (404, b"", UnavailableError, Reason.ENGINE_FAILED),
        (302, b"", UnavailableError, Reason.ENGINE_FAILED),
        (429, b"{}", QuotaExceededError, Reason.QUEUE_FULL),
        (500, b"{}", UnavailableError, Reason.ENGINE_FAILED),
        (502, b"", UnavailableError, Reason.REPLICA_LOST),
        (503, b"", UnavailableError, Reason.NOT_READY),
        (504, b"", UnavailableError, Reason.REPLICA_LOST),
        (200, b"{}", UnavailableError, Reason.ENGINE_FAILED),
        (418, b"x" * 200_000, UnavailableError, Reason.ENGINE_FAILED),
    ],
)
async def test_refusals_are_mapped(status: int, body: bytes, kind: type, reason: Reason) -> None:
    """Proves for each status who is to blame, whether another replica may try, and that no secret is repeated."""
    noted = await outcome(refusing(status, body))
    assert type(noted.failure) is kind
    assert noted.failure.reason is reason
    assert "secret" not in noted.failure.message
    assert not noted.texts
    assert not noted.messages


@pytest.mark.parametrize(
    ("headers", "retry_s"),
    [
        ((), 1.0),
        ((b"Retry-After: 7",), 7.0),
        ((b"Retry-After: 7", b"retry-after-ms: 250"), 0.25),
        ((b"Retry-After: 999999",), messages.RETRY_S_MAX),
        ((b"Retry-After: soon",), 1.0),
        ((b"Retry-After: nan",), 1.0),
        ((b"retry-after-ms: nan",), 1.0),
        ((b"retry-after-ms: -5",), 0.0),
        ((b"Retry-After: Wed, 21 Oct 2015 07:28:00 GMT",), 0.0),
        ((b"Retry-After: Wed, 21 Oct 2515 07:28:00 GMT",), messages.RETRY_S_MAX),
    ],
)
async def test_a_full_engine_says_when_to_come_back(headers: tuple[bytes, ...], retry_s: float) -> None:
    """Shows seconds, dates, milliseconds and nonsense."""
    noted = await outcome(refusing(429, b"{}", *headers))
    assert noted.failure.retry_after_s == pytest.approx(retry_s)


async def test_nobody_there_is_not_ready_and_no_address_is_missing() -> None:
    """Shows a refused connection, on which nothing was started, and records that name no engine."""
    async with bench(saying()) as made:
        made.replica.engine_address = f"http://127.0.0.1:{free_port()}"
        noted = start(made.upstream, made.replica)
        await noted.ended()
        assert noted.failure.reason is Reason.NOT_READY
        for address in (
            "",
            "ftp://x",
            "http://",
            "http://u:p@h",
            "http://h:99999",
            "http://h/a b",
            "http://h/\r\nx: y",
        ):
            made.replica.engine_address = address
            noted = start(made.upstream, made.replica)
            await noted.ended()
            assert noted.failure.reason is Reason.ENGINE_MISSING, address


async def test_cancelling_closes_the_connection_at_once() -> None:
    """Proves that the engine sees the client go, in the middle of a read, and that nothing is told after it."""
    closed = asyncio.Event()

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(HEAD + b"".join(chunked(said(str(digit))) for digit in range(9)))
        await conversation.gone()
        closed.set()

    async with bench(script) as made:
        noted = start(made.upstream, made.replica, noted=Noted(cancel_at=3))
        await asyncio.wait_for(closed.wait(), 10)
        assert noted.texts == ["0", "1", "2"]
        assert not noted.ends
        await eventually(lambda: not made.connections)
        early = start(made.upstream, made.replica)
        early.cancel()
        await eventually(lambda: not made.connections)


async def test_cancelling_inside_an_event_hides_the_rest_of_it() -> None:
    """Proves that a server that puts several pieces into one event cannot speak to a client that has left."""
    choices = [{"index": 0, "delta": {"content": text}} for text in "abc"]
    async with bench(saying(event(choices=choices), hold=True)) as made:
        noted = start(made.upstream, made.replica, noted=Noted(cancel_at=2))
        await eventually(lambda: noted.cancelled)
        await eventually(lambda: not made.connections)
        assert noted.texts == ["a", "b"]


async def test_cancelling_at_the_end_keeps_the_connection() -> None:
    """Shows that a router which leaves with the last message costs no connection."""

    class Leaving(Noted):
        def on_message(self, message: engine_pb2.EngineGenerateResponse) -> None:
            super().on_message(message)
            self.cancel()

    async with bench(saying(*WHOLE)) as made:
        for _ in range(2):
            noted = start(made.upstream, made.replica, noted=Leaving())
            await eventually(lambda noted=noted: noted.messages)  # type: ignore[misc]
            assert not noted.ends
        assert len(made.server.conversations) == 1


async def test_the_deadline_ends_a_request() -> None:
    """Proves that an engine which hangs, before its first token or after it, is left at the deadline."""
    for parts in ((), (said("a"),)):
        async with bench(saying(*parts, end=b"", hold=True)) as made:
            hanging = start(made.upstream, made.replica, left_s=1.0)
            await hanging.ended()
            assert hanging.texts == ["a"] * len(parts)
            assert isinstance(hanging.failure, DeadlineExceededError)
            await eventually(lambda made=made: not made.connections)  # type: ignore[misc]
            late = start(made.upstream, made.replica, left_s=-1.0)
            await late.ended()
            assert isinstance(late.failure, DeadlineExceededError)


async def test_a_paused_client_holds_the_engine() -> None:
    """Proves that pausing stops the sender by the network, and loses nothing."""
    total, sent = 40_000, 0
    filler = "x" * 1000

    async def script(conversation: Conversation) -> None:
        nonlocal sent
        await conversation.request()
        await conversation.say(HEAD)
        for _ in range(total):
            await conversation.say(chunked(said(filler)))
            sent += 1
        await conversation.say(chunked(said(None, "stop")), chunked(counted(1, total)), chunked(DONE), LAST)
        await conversation.gone()

    async with bench(script) as made:
        noted = start(made.upstream, made.replica)
        await eventually(lambda: noted.texts)
        assert noted.running is not None
        noted.running.pause()
        seen = -1
        while seen != sent:
            seen = sent
            await asyncio.sleep(0.3)
        assert sent < total
        assert not noted.ends
        noted.running.resume()
        await noted.ended(60.0)
        assert noted.ends == [None]
        assert noted.tokens == total


# --- credentials


def keys(tmp_path: Any, origin: str, text: str = "sk-1\n") -> Any:
    (tmp_path / "key").write_text(text)
    settings_file = tmp_path / "credentials.toml"
    settings_file.write_text(f'[mine]\norigin = "{origin}"\nkey_file = "{tmp_path / "key"}"\n')
    return settings_file


async def test_a_key_goes_to_its_own_origin_and_nowhere_else(tmp_path: Any) -> None:
    """Proves that a record that names another address, or other credentials, never gets a key."""
    async with bench(saying(*WHOLE)) as made, bench(saying(*WHOLE)) as stranger:
        file = keys(tmp_path, f"http://127.0.0.1:{made.server.port}")
        upstream = OpenAIUpstream(made.pool, Credentials.load(file), SystemClock())
        made.replica.engine_credentials = stranger.replica.engine_credentials = "mine"
        noted = start(upstream, made.replica)
        await noted.ended()
        assert noted.ends == [None]
        assert b"\r\nauthorization: bearer sk-1\r\n" in made.server.conversations[0].requests[0][0]
        noted = start(upstream, stranger.replica)
        await noted.ended()
        assert noted.failure.reason is Reason.ENGINE_MISSING
        assert not stranger.server.conversations
        made.replica.engine_credentials = "other"
        noted = start(upstream, made.replica)
        await noted.ended()
        assert noted.failure.reason is Reason.ENGINE_MISSING
        assert "sk-1" not in noted.failure.message


@pytest.mark.parametrize(
    ("origin", "key"),
    [("http://h/v1", "k"), ("h", "k"), ("http://h", ""), ("http://h", "a b"), ("http://h", "a\r\nx: y")],
)
def test_wrong_credentials_are_refused_at_the_start(tmp_path: Any, origin: str, key: str) -> None:
    """Shows that the name is in the message and the key is not."""
    with pytest.raises(InvalidArgumentError, match=r"mine|URL|http") as caught:
        Credentials.load(keys(tmp_path, origin, key))
    assert "x: y" not in caught.value.message
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        Credentials.load(tmp_path / "nowhere.toml")


# --- pure


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_stream_is_the_same_however_it_is_cut(data: st.DataObject) -> None:
    """Proves over all cuts and line ends, with comments and other fields between, that events and text are the same."""
    texts = data.draw(st.lists(st.text(min_size=1, max_size=8), max_size=6))
    newline = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    noise = st.sampled_from([b"", b": keep-alive\n\n", b"event: x\nid: 1\n", b"retry: 5\n\n", b"\n"])
    stream = b"".join(data.draw(noise) + said(text) for text in texts)
    stream = (stream + said(None, "stop") + counted(3, len(texts)) + DONE).replace(b"\n", newline)
    reader, running = EventReader(), Noted()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    events = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += reader.feed(stream[begin:end])
    chunks = [messages.read_chunk(each) for each in events[:-1]]
    found = [choice.delta.content for chunk in chunks for choice in chunk.choices or [] if choice.delta]
    assert found == [*texts, None]
    assert events[-1] == b"[DONE]"
    assert not running.ends


STRAY = (b": hm\n", b"data: {}", b"\n")
"""What may stand between events, or begin one that goes on."""


class Told:
    """A receiver that remembers; see Receiver."""

    def __init__(self) -> None:
        self.pieces: list[tuple[bytes, int]] = []
        self.failures: list[FairleadError | None] = []

    def on_piece(self, piece: bytes, tokens: int) -> None:
        self.pieces.append((piece, tokens))

    def on_message(self, message: engine_pb2.EngineGenerateResponse) -> None:
        raise AssertionError(message)

    def on_end(self, failure: FairleadError | None) -> None:
        self.failures.append(failure)


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [b" a", b'"', b"\\", b"\\n", b"\\u0041", b"\n", b"\t", b"\xff", "é".encode(), b"content", b'","x":"']
            ),
            st.sampled_from(STRAY),
            st.text(max_size=4).map(str.encode),
        ),
        max_size=8,
    ),
    st.sampled_from(
        [b'{"choices": [{"delta": {"content": "%b"}}]}', b'{"choices":[{"text":"%b","index":0}],"id":"text"}']
    ),
    st.lists(st.integers(0, 400), max_size=4),
)
@example([b" a", b" a", b"data: {}", b" b"], b'{"choices": [{"delta": {"content": "%b"}}]}', [])
@example([b" a", b" a", b" b"], b'{"choices": [{"delta": {"content": "%b"}}]}', [70])
def test_an_event_like_the_last_but_for_its_text_is_read_as_any_other(
    texts: list[bytes], form: bytes, cuts: list[int]
) -> None:
    """Whatever stands where the text was, and wherever the bytes are cut, it comes out as by reading the JSON."""
    sent = [text if text in STRAY else b"data: %b\n\n" % (form % text) for text in texts]
    expected: list[tuple[bytes, int]] = []
    broken = False
    for each in EventReader().feed(b"".join(sent)):
        try:
            choices = messages.read_chunk(each).choices or []
        except (msgspec.DecodeError, UnicodeDecodeError):
            broken = True
            break
        for text, counts in map(messages.text_of, choices):
            expected += [(pieces.piece(text.encode(), 1), 1)] if counts else []

    async def told() -> Told:
        receiver = Told()
        running = OpenAIRunning(receiver, SystemClock(), SystemClock().monotonic_ns() + 10**12)
        running.on_head(200, {b"content-type": b"text/event-stream"})
        for data in sent:
            places = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
            for begin, end in itertools.pairwise(places):
                running.on_body(data[begin:end])
        running.cancel()
        return receiver

    receiver = asyncio.run(told())
    assert receiver.pieces == expected
    assert bool(receiver.failures) == broken


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_events_of_several_lines_and_of_nonsense_cost_no_more_than_they_hold(parts: list[bytes]) -> None:
    """Shows that any bytes are read without a failure, and that what comes out came in."""
    reader = EventReader()
    events = [event for part in parts for event in reader.feed(part)]
    assert sum(map(len, events)) <= sum(map(len, parts))


def test_lines_of_data_are_joined_and_endless_ones_refused() -> None:
    """Shows the standard's rule for several lines, and both limits."""
    assert EventReader().feed(b"data: a\ndata:b\ndata\n\ndata:\n\n") == [b"a\nb", b""]
    for endless in (b"data: " + b"a" * 1000, b"data: " + b"a" * 1000 + b"\n", b": " + b"a" * 1000):
        reader = EventReader()
        fed = 0
        with pytest.raises(EventTooLargeError):
            while fed < 3 * EVENT_BYTES_MAX:
                reader.feed(endless)
                fed += len(endless)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200) | st.just("é" * 10_000), tokens=st.integers(1, 200) | st.just(1))
def test_quick_and_large_pieces_are_what_the_relay_would_make(text: str, tokens: int) -> None:
    """Proves that the shortcut for one token makes the same bytes, and that what no piece holds goes as a message."""

    class Raw(Noted):
        def on_piece(self, piece: bytes, tokens: int) -> None:
            super().on_piece(piece, tokens)
            assert piece == pieces.piece(text.encode(), tokens)

    async def run() -> None:
        noted = Raw()
        noted.running = running = OpenAIRunning(noted, SystemClock(), SystemClock().monotonic_ns() + 10**12)
        running.piece(text.encode(), tokens)
        assert (noted.text, noted.tokens) == (text, tokens)
        assert bool(noted.messages) == (tokens > 127 or len(text.encode()) > 16_383)
        running.cancel()

    asyncio.run(run())


def test_a_request_never_tells_before_it_was_returned() -> None:
    """Shows that errors of this router's own come in a later step of the loop."""

    async def run() -> None:
        noted = Noted()
        running = OpenAIRunning(noted, SystemClock(), SystemClock().monotonic_ns() + 10**12)
        noted.running = running
        running.fail_soon(UnavailableError("x"))
        assert not noted.ends
        await noted.ended()
        assert isinstance(noted.failure, FairleadError)

    asyncio.run(run())
