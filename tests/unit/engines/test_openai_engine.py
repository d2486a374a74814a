"""The agent's adapter for OpenAI's API, against scripted servers on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.config import EngineConfig
from engines.engine import EngineRequest, Finish, Prompt, Sampling, TokenBatch
from engines.openai.adapter import OpenAIEngine, OpenAISettings
from engines.wiring import build_engine
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, InvalidArgumentError, QuotaExceededError, Reason, UnavailableError
from tests.support.ports import free_port
from tests.support.scripted_http import HEAD, LAST, Conversation, ScriptedServer, chunked
from tests.support.waiting import eventually

REQUEST = EngineRequest("r", Prompt(messages=(("user", "Hi"),)), Sampling(5, temperature=0.0))


def event(**fields: Any) -> bytes:
    return chunked(b"data: " + json.dumps(fields).encode() + b"\n\n")


def said(text: str, finish: str | None = None) -> bytes:
    return event(choices=[{"delta": {"content": text}, "finish_reason": finish}])


USAGE = event(choices=[], usage={"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": None})
DONE = chunked(b"data: [DONE]\n\n")


def plain(status: int, body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nserver: test/1\r\n%bcontent-length: %d\r\n\r\n%b" % (status, more, len(body), body)


MODELS = plain(200, b'{"object":"list","data":[{"id":"llama","object":"model","max_model_len":512}]}')


@asynccontextmanager
async def engine(
    *answer: bytes, models: bytes = MODELS, left: asyncio.Event | None = None, **settings: Any
) -> AsyncIterator[tuple[Any, ScriptedServer]]:
    async def script(conversation: Conversation) -> None:
        while True:
            head, _ = await conversation.request()
            if head.startswith(b"get /v1/models"):
                await conversation.say(models)
            else:
                await conversation.say(*answer)
                if left is not None:
                    await conversation.gone()
                    left.set()

    async with ScriptedServer(script) as server:
        made = OpenAIEngine(OpenAISettings(f"http://127.0.0.1:{server.port}/v1/", **settings))
        try:
            yield made, server
        finally:
            await made.stop()


async def collect(made: OpenAIEngine, request: EngineRequest = REQUEST) -> list[TokenBatch]:
    return [batch async for batch in made.generate(request)]


async def test_it_describes_itself_and_answers() -> None:
    """Shows what the server says of its model, text in batches, the usage put right at the end, and the key."""
    answer = (HEAD, said("Hel"), said("lo"), said("", "stop"), USAGE, DONE + LAST)
    async with engine(*answer, key="k-1") as (made, server):
        assert not made.alive()
        description = await made.start()
        assert (description.engine, description.version, description.context_tokens) == ("openai", "test/1", 512)
        assert description.direct is not None
        assert description.direct.dialect == engine_pb2.DIALECT_OPENAI
        assert description.direct.address == f"http://127.0.0.1:{server.port}/v1"
        assert description.direct.model == "llama"
        batches = await collect(made)
        assert "".join(batch.text for batch in batches) == "Hello"
        assert sum(batch.output_tokens for batch in batches) == 4 == made.progress_tokens
        assert batches[-1] == TokenBatch("", 2, Finish.STOP, 9)
        assert made.kv_used_tokens == 0
        asked = [each for conversation in server.conversations for each in conversation.requests]
        assert all(b"authorization: bearer k-1" in head for head, _ in asked)
        assert json.loads(asked[-1][1])["model"] == "llama"


async def test_plain_text_and_a_full_measure() -> None:
    """Shows the other endpoint, and a server that tells no usage."""
    answer = (HEAD, event(choices=[{"text": "a", "finish_reason": "length"}]), DONE + LAST)
    async with engine(*answer) as (made, server):
        await made.start()
        batches = await collect(made, EngineRequest("r", Prompt("hi"), Sampling(1)))
        assert batches == [TokenBatch("a", 1), TokenBatch("", 0, Finish.LENGTH)]
        assert server.conversations[-1].requests[-1][0].startswith(b"post /v1/completions ")


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        ((plain(400, b'{"error":{"message":"no"}}'),), InvalidArgumentError, Reason.INVALID_ARGUMENT),
        ((plain(429, b"{}", b"retry-after: 3\r\n"),), QuotaExceededError, Reason.QUEUE_FULL),
        ((plain(500, b"{}"),), UnavailableError, Reason.ENGINE_FAILED),
        ((plain(200, b"{}"),), UnavailableError, Reason.ENGINE_FAILED),
        ((HEAD, said("a"), LAST), UnavailableError, Reason.ENGINE_FAILED),
        ((HEAD, said("a"), chunked(b"data: {\n\n"), LAST), UnavailableError, Reason.ENGINE_FAILED),
        ((HEAD, said("a"), event(error={"message": "x"}), LAST), UnavailableError, Reason.ENGINE_FAILED),
        ((HEAD, said("a"), b"zz\r\n" + LAST), UnavailableError, Reason.ENGINE_FAILED),
    ],
)
async def test_failures_are_raised(answer: tuple[bytes, ...], kind: type, reason: Reason) -> None:
    """Proves that refusals, cut streams and nonsense are typed errors."""
    async with engine(*answer) as (made, _):
        await made.start()
        with pytest.raises(FairleadError) as caught:
            await collect(made)
        assert type(caught.value) is kind
        assert caught.value.reason is reason


async def test_leaving_cancels_the_request() -> None:
    """Proves that the server sees the client go when the iterator is closed."""
    left = asyncio.Event()
    async with engine(HEAD, said("a"), said("b"), left=left) as (made, _):
        await made.start()
        async with aclosing(made.generate(REQUEST)) as batches:
            assert (await anext(batches)).text == "a"
            assert made.kv_used_tokens >= 1
        await asyncio.wait_for(left.wait(), 10)
        await eventually(lambda: made.kv_used_tokens == 0)


@pytest.mark.parametrize(
    ("models", "name", "reason"),
    [
        (plain(200, b'{"data":[]}'), "", Reason.ENGINE_MISSING),
        (plain(200, b'{"data":[{"id":"a"},{"id":"b"}]}'), "", Reason.ENGINE_MISSING),
        (MODELS, "other", Reason.ENGINE_MISSING),
        (plain(200, b"<html>"), "", Reason.ENGINE_MISSING),
        (plain(401, b"{}"), "", Reason.ENGINE_FAILED),
    ],
)
async def test_a_start_that_fails_says_why(models: bytes, name: str, reason: Reason) -> None:
    """Shows servers without the model, with too many, and with none of the API."""
    async with engine(LAST, models=models, model_name=name) as (made, _):
        with pytest.raises(UnavailableError) as caught:
            await made.start()
        assert caught.value.reason is reason
        assert not made.alive()


async def test_nobody_there_is_a_failed_start() -> None:
    """Shows the message that names the address."""
    made = OpenAIEngine(OpenAISettings(f"http://127.0.0.1:{free_port()}/v1"))
    with pytest.raises(UnavailableError, match="does not answer"):
        await made.start()
    with pytest.raises(UnavailableError, match="not running"):
        await collect(made)


def test_its_settings(tmp_path: Path) -> None:
    """Shows the settings of an agent, and those that are refused."""
    key = tmp_path / "key"
    key.write_text("k\n")
    config = EngineConfig(model_id="m", engine="openai", endpoint="http://h/v1", endpoint_key_file=str(key))
    assert isinstance(build_engine(config, tmp_path), OpenAIEngine)
    assert config.hardware_label == "external"
    with pytest.raises(InvalidArgumentError, match="base URL"):
        EngineConfig(model_id="m", engine="openai")
    missing = EngineConfig(model_id="m", engine="openai", endpoint="http://h", endpoint_key_file=str(tmp_path / "x"))
    with pytest.raises(InvalidArgumentError, match="endpoint_key_file"):
        build_engine(missing, tmp_path)
