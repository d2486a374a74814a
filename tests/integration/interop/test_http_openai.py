"""OpenAI's synchronous client for Python against our HTTP endpoint, from threads; the asynchronous one is elsewhere."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.integration.interop.http_server import lab, serving
from tests.support.router_lab import KEY, MODEL
from tests.support.waiting import eventually

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
ENDLESS: Any = [{"role": "user", "content": "endless"}]


def streamed(client: openai.OpenAI) -> str:
    with client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def talk(base: str) -> None:
    """Everything a thread's client does."""
    with openai.OpenAI(api_key=KEY, base_url=base, max_retries=0, timeout=60) as client:
        whole: Any = client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert whole.choices[0].message.content == "Hello world"
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda _: streamed(client), range(40))) == ["Hello world"] * 40
        plain = client.completions.create(model=MODEL, prompt="Once", stream=True)
        assert "".join(chunk.choices[0].text for chunk in plain) == "Hello world"
        assert [model.id for model in client.models.list()] == [MODEL]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="none", messages=MESSAGES)
        with client.chat.completions.create(model=MODEL, messages=ENDLESS, stream=True) as left:
            for _, chunk in zip(range(3), left, strict=False):
                assert chunk.choices[0].delta.content
        assert streamed(client) == "Hello world"


async def test_the_synchronous_client() -> None:
    """Whole, streamed from eight threads over shared connections, refusals, and a stream that is left and cancelled."""
    router = lab()
    async with serving(router) as base:
        await asyncio.to_thread(talk, base)
        await eventually(router.received_equals_finished)
    outcomes = [outcome.value for _, _, outcome, _ in router.router.accounts.finished.elements()]
    assert (outcomes.count("completed"), outcomes.count("refused"), outcomes.count("cancelled")) == (43, 1, 1)
