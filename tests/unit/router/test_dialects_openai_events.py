"""The OpenAI dialect without sockets: events however they are cut, and pieces however they are made."""

from __future__ import annotations

import asyncio
import itertools
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
from data_plane.router.dialects.openai import OpenAIRunning
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb
from tests.unit.router.dialect_lab import Noted, request_of
from tests.unit.router.openai_lab import DONE, counted, said


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


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_stream_is_the_same_however_it_is_cut(data: st.DataObject) -> None:
    """Proves over all cuts and line ends, with comments and other fields between, that events and text are the same."""
    texts = data.draw(st.lists(st.text(min_size=1, max_size=8), max_size=6))
    newline = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    noise = st.sampled_from([b"", b": keep-alive\n\n", b"event: x\nid: 1\n", b"retry: 5\n\n", b"\n"])
    stream = b"".join(data.draw(noise) + said(text) for text in texts)
    stream = (stream + said(None, "stop") + counted(3, len(texts)) + DONE).replace(b"\n", newline)
    reader = EventReader()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    events = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += reader.feed(stream[begin:end])
    chunks = [messages.read_chunk(each) for each in events[:-1]]
    found = [choice.delta.content for chunk in chunks for choice in chunk.choices or [] if choice.delta]
    assert found == [*texts, None]
    assert events[-1] == b"[DONE]"


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
