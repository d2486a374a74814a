"""The OpenAI dialect against scripted servers on real sockets: what comes out, and who stops whom."""

from __future__ import annotations

import asyncio
import json

import pytest

from fairlead.engine.v1 import engine_pb2
from fairlead.errors import (
    DeadlineExceededError,
)
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.scripted_http import HEAD, LAST, Conversation, chunked
from tests.support.waiting import eventually
from tests.unit.router.dialect_lab import Noted, request_of, start
from tests.unit.router.openai_lab import DONE, WHOLE, bench, counted, event, outcome, said, saying


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
