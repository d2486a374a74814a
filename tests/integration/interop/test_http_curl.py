"""curl against our HTTP endpoint: streams as they come, bodies it asks about before it sends them, a hundred reuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.integration.interop.http_server import BODY_BYTES_MAX, lab, run, serving
from tests.support.router_lab import KEY, MODEL
from tests.support.waiting import eventually

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def curl() -> list[str]:
    found = shutil.which("curl")
    if found is None:
        pytest.skip("curl is not installed")
    return [found, "-sS", "--http1.1", "--max-time", "60", "-H", f"Authorization: Bearer {KEY}"]


def body(**fields: object) -> str:
    return json.dumps({"model": MODEL, "messages": MESSAGES, **fields})


async def test_whole_and_streamed(curl: list[str]) -> None:
    """A whole answer, and a stream that ends by itself; with HTTP/1.0 and with a wish for HTTP/2 as well."""
    async with serving(lab()) as base:
        url = base + "/chat/completions"
        for how in ("--http1.1", "--http1.0", "--http2"):
            whole = json.loads(await run(*curl, how, url, "-d", body()))
            assert whole["choices"][0]["message"]["content"] == "Hello world"
            stream = await run(*curl, how, "-N", url, "-d", body(stream=True))
            events = [line.removeprefix("data: ") for line in stream.split("\n\n") if line]
            assert events[-1] == "[DONE]"
            texts = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
            assert "".join(texts) == "Hello world"


async def test_bodies_it_asks_about_first(curl: list[str], tmp_path: Path) -> None:
    """A large body is sent after our word; one that is too large, or from nobody we know, is refused before."""
    ask = [*curl, "-w", "%{http_code} %{size_upload}", "-o", "/dev/null", "-H", "Expect: 100-continue"]
    fits, large = tmp_path / "fits", tmp_path / "large"
    padding = BODY_BYTES_MAX - len(body(user=""))
    fits.write_text(body(user="x" * padding))
    large.write_text(body(user="x" * (padding + 1)))
    router = lab()
    async with serving(router) as base:
        url = base + "/chat/completions"
        assert await run(*ask, "--expect100-timeout", "30", url, "-d", f"@{fits}") == f"200 {BODY_BYTES_MAX}"
        assert await run(*ask, "--expect100-timeout", "30", url, "-d", f"@{large}") == "413 0"
        stranger = [*ask, "-H", "Authorization: Bearer fl-abcdefghijklmnop-no", "--expect100-timeout", "30"]
        stranger.remove(f"Authorization: Bearer {KEY}")
        stranger.remove("-H")
        assert await run(*stranger, url, "-d", f"@{fits}") == "401 0"
        sent = await run(*ask, "-H", "Transfer-Encoding: chunked", url, "-d", f"@{fits}")
        assert sent.startswith("200 ")


async def test_one_connection_for_many_requests(curl: list[str]) -> None:
    """A hundred requests of one run of curl take one connection."""
    async with serving(lab()) as base:
        urls = ["-o", "/dev/null", base + "/models"] * 100
        out = await run(*curl, "-w", "%{num_connects} %{http_code}\n", *urls)
    assert out.splitlines() == ["1 200"] + ["0 200"] * 99


async def test_an_interrupted_stream(curl: list[str]) -> None:
    """curl that gives up in the middle of a stream cancels the request."""
    router = lab()
    messages = [{"role": "user", "content": "endless"}]
    async with serving(router) as base:
        command = [*curl, "-N", "--max-time", "2", base + "/chat/completions", "-d"]
        with pytest.raises(AssertionError, match="data: "):
            await run(*command, body(stream=True, messages=messages))
        await eventually(router.received_equals_finished)
    assert {outcome.value for _, _, outcome, _ in router.router.accounts.finished} == {"cancelled"}
