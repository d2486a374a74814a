"""OpenAI's client for Node against our HTTP endpoint."""

from __future__ import annotations

import json
import os

from tests.integration.interop.http_server import lab, run, serving
from tests.integration.interop.node import installed, node
from tests.support.router_lab import KEY, MODEL
from tests.support.waiting import eventually


async def test_the_openai_client_for_node() -> None:
    """Whole, streamed and many at once; typed errors; a large body's refusal; a stream that is left is cancelled."""
    router = lab()
    program, client = node(), await installed("http_node")
    async with serving(router) as base:
        env = {**os.environ, "BASE_URL": base, "API_KEY": KEY, "MODEL": MODEL}
        seen = json.loads(await run(program, str(client), env=env))
        await eventually(router.received_equals_finished)
    assert seen["whole"] == ["Hello world", "stop", 10]
    assert seen["streamed"] == ["Hello world", 10]
    assert seen["many"] == [["Hello world", 10]] * 50
    assert seen["plain"] == "Hello world"
    assert seen["models"] == [MODEL]
    assert seen["stranger"] == ["AuthenticationError", 401, "invalid_api_key"]
    assert seen["unknown"] == ["NotFoundError", 404, "model_not_found"]
    assert seen["large"] == ["APIError", 413, "body_too_large"]
    assert seen["left"].startswith("xxx")
    assert {outcome.value for _, _, outcome, _ in router.router.accounts.finished} == {
        "completed",
        "refused",
        "cancelled",
    }
