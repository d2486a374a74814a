"""The OpenAI dialect against scripted servers on real sockets: what is a failure, and whose."""

from __future__ import annotations

import pytest

from common.openai import messages
from common.openai.sse import EVENT_BYTES_MAX
from fairlead.errors import (
    InvalidArgumentError,
    QuotaExceededError,
    Reason,
    UnavailableError,
)
from tests.support.ports import free_port
from tests.support.scripted_http import HEAD, LAST, Conversation, Script, chunked
from tests.unit.router.dialect_lab import start
from tests.unit.router.openai_lab import DONE, WHOLE, bench, counted, event, outcome, saying


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
