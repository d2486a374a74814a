"""OpenAI's client for Node against our HTTP endpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.integration.interop.http_server import lab, run, serving
from tests.support.router_lab import KEY, MODEL
from tests.support.waiting import eventually

HERE = Path(__file__).resolve().parent / "http_node"
BUILT = Path(__file__).resolve().parents[3] / "build" / "interop" / "http_node"


@pytest.fixture
def node() -> str:
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    return found


async def installed() -> Path:
    """The client with exactly the packages its lock file names."""
    lock = (HERE / "package-lock.json").read_text()
    if not (BUILT / "node_modules").exists() or (BUILT / "package-lock.json").read_text() != lock:
        shutil.rmtree(BUILT, ignore_errors=True)
        BUILT.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, BUILT / name)
        await run("npm", "ci", "--no-audit", "--no-fund", cwd=str(BUILT))
    shutil.copy(HERE / "client.mjs", BUILT / "client.mjs")
    return BUILT / "client.mjs"


async def test_the_openai_client_for_node(node: str) -> None:
    """Whole, streamed and many at once; typed errors; a large body's refusal; a stream that is left is cancelled."""
    router = lab()
    client = await installed()
    async with serving(router) as base:
        env = {**os.environ, "BASE_URL": base, "API_KEY": KEY, "MODEL": MODEL}
        seen = json.loads(await run(node, str(client), env=env))
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
