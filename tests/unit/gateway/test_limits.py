"""The gateway at its limits: strangers, bodies too large, too slow or too many, broken text, a drain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.gateway.app import Gateway
from data_plane.gateway.render import Stream, quoted
from data_plane.gateway.server import HttpServer
from data_plane.relay.http1.limits import Limits, Patience
from data_plane.router.exchange import Receipt
from tests.support.router_lab import KEY, MODEL, RouterLab, Script
from tests.support.waiting import eventually

BODY_BYTES_MAX = 20_000
STRANGER = "fl-abcdefghijklmnop-no"


class Raw:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def head(self, length: str, *, key: str = KEY, more: str = "") -> None:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
        self.writer.write(f"{head}{length}\r\n{more}\r\n".encode())

    def ask(self, body: bytes, *, key: str = KEY) -> None:
        self.head(f"Content-Length: {len(body)}", key=key)
        self.writer.write(body)

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body of an answer with a length."""
        async with asyncio.timeout(20):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
            return int(first.split(" ")[1]), headers, json.loads(body)

    async def closed(self) -> bytes:
        async with asyncio.timeout(20):
            return await self.reader.read()


@asynccontextmanager
async def serving(lab: RouterLab, limits: Limits | None = None, patience: Patience | None = None) -> AsyncIterator[int]:
    gateway = Gateway(
        lab.router.flow, lab.tables, lab.clock, decisions=lab.router.decisions, body_bytes_max=BODY_BYTES_MAX
    )
    server = HttpServer(
        gateway, host="127.0.0.1", port=0, reuse_port=False, grace_s=5.0, limits=limits, patience=patience
    )
    port = await server.start()
    try:
        yield port
    finally:
        await server.drain_and_stop()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


def chat(size: int | None = None, **fields: object) -> bytes:
    """A request for a chat, of so many bytes."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "user": "", **fields})
    return (body if size is None else body.replace('"user": ""', f'"user": "{"u" * (size - len(body))}"')).encode()


@pytest.fixture
def lab() -> RouterLab:
    return RouterLab(["r1", "r2"])


@pytest.mark.parametrize("length", [f"Content-Length: {BODY_BYTES_MAX}", "Transfer-Encoding: chunked"])
async def test_a_stranger_is_told_before_the_body_is_read(lab: RouterLab, length: str) -> None:
    """An unknown key is refused at the head, in the usual shape, and counted; also where it waits to be asked."""
    async with serving(lab) as port:
        for more in ("", "Expect: 100-continue\r\n"):
            async with connected(port) as raw:
                raw.head(length, key=STRANGER, more=more)
                status, headers, body = await raw.answer()
                assert (status, body["error"]["code"]) == (401, "invalid_api_key")
                assert headers["x-fairlead-request-id"] == body["error"]["request_id"]
    assert lab.router.accounts.received == 2
    assert lab.received_equals_finished()


async def test_a_stranger_with_a_small_body_keeps_the_connection(lab: RouterLab) -> None:
    """Refusals of small requests cost no connection."""
    async with serving(lab) as port, connected(port) as raw:
        for key, expected in ((STRANGER, 401), (KEY, 200), (STRANGER, 401), (KEY, 200)):
            raw.ask(chat(), key=key)
            status, headers, _ = await raw.answer()
            assert (status, headers.get("connection")) == (expected, None)


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_at_the_limit_and_one_byte_beyond(lab: RouterLab, chunked: bool) -> None:
    """The largest body is served; one byte more is refused by size, counted, and can be asked about."""
    async with serving(lab) as port:
        for size, expected in ((BODY_BYTES_MAX, 200), (BODY_BYTES_MAX + 1, 413)):
            async with connected(port) as raw:
                body = chat(size)
                assert len(body) == size
                if chunked:
                    raw.head("Transfer-Encoding: chunked")
                    raw.writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (size, body))
                else:
                    raw.ask(body)
                status, headers, answer = await raw.answer()
                assert status == expected
        assert (answer["error"]["code"], headers["connection"]) == ("body_too_large", "close")
        assert str(BODY_BYTES_MAX) in answer["error"]["message"]
        async with connected(port) as raw:
            name = answer["error"]["request_id"]
            raw.writer.write(
                f"GET /v1/requests/{name}/decision HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
            )
            assert (await raw.answer())[2]["decisions"][0]["reason"] == "INVALID_ARGUMENT"
    assert lab.received_equals_finished()


async def test_too_many_bodies_at_once(lab: RouterLab) -> None:
    """Unfinished bodies of all clients have one bound; who comes beyond is told to come back, and can."""
    async with serving(lab, Limits(bodies_bytes_max=BODY_BYTES_MAX)) as port, connected(port) as slow:
        slow.head(f"Content-Length: {BODY_BYTES_MAX}")
        slow.writer.write(chat(BODY_BYTES_MAX)[:-1])
        await asyncio.sleep(0.2)
        async with connected(port) as other:
            other.ask(chat())
            status, headers, body = await other.answer()
            assert (status, body["error"]["code"], headers["retry-after"]) == (503, "overloaded", "1")
        slow.writer.write(chat(BODY_BYTES_MAX)[-1:])
        assert (await slow.answer())[0] == 200
        async with connected(port) as other:
            other.ask(chat())
            assert (await other.answer())[0] == 200
    assert lab.router.accounts.received == 3
    assert lab.received_equals_finished()


async def test_a_body_that_never_comes(lab: RouterLab) -> None:
    """It is answered 408 in the usual shape, and counted; half a head is answered too, and is no request."""
    async with serving(lab, patience=Patience(request_s=0.4)) as port:
        async with connected(port) as raw:
            raw.head("Content-Length: 100")
            raw.writer.write(b"{")
            status, headers, body = await raw.answer()
            assert (status, body["error"]["code"]) == (408, "request_timeout")
            assert headers["x-fairlead-request-id"]
            assert await raw.closed() == b""
        assert lab.router.accounts.received == 1
        async with connected(port) as raw:
            raw.writer.write(b"POST /v1/chat")
            status, headers, body = await raw.answer()
            assert (status, body["error"]["code"], body["error"]["type"]) == (408, "request_timeout", "timeout_error")
            assert headers["x-request-id"]
    assert lab.router.accounts.received == 1
    assert lab.received_equals_finished()


async def test_a_client_that_leaves_in_the_middle_of_its_body(lab: RouterLab) -> None:
    """That was no request: nothing is counted and nothing runs."""
    async with serving(lab) as port, connected(port) as raw:
        raw.head("Content-Length: 100")
        raw.writer.write(b"{")
        await raw.writer.drain()
        await asyncio.sleep(0.1)
    assert lab.router.accounts.received == 0


async def test_more_connections_than_there_may_be(lab: RouterLab) -> None:
    """The last one gets an answer in the usual shape."""
    async with serving(lab, Limits(connections_max=1)) as port, connected(port) as first:
        first.ask(chat())
        assert (await first.answer())[0] == 200
        async with connected(port) as second:
            status, _, body = await second.answer()
            assert (status, body["error"]["code"]) == (503, "overloaded")


async def test_a_drain_lets_streams_end(lab: RouterLab) -> None:
    """A stream under way when the server stops is told to its end, and its connection closed after it."""
    step = asyncio.Event()
    lab.upstream.scripts = {name: Script(pieces="abc", step=step) for name in ("r1", "r2")}
    async with serving(lab, patience=Patience(linger_s=0.2)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        raw = Raw(reader, writer)
        raw.ask(chat(stream=True))
        await eventually(lambda: lab.upstream.running == 1)
        step.set()
        await raw.reader.readuntil(b"\r\n\r\n")

        async def go_on() -> None:
            while lab.upstream.running:
                step.set()
                await asyncio.sleep(0.02)

        going = asyncio.create_task(go_on())
    rest = await raw.closed()
    assert b"[DONE]" in rest
    assert rest.endswith(b"0\r\n\r\n")
    await going
    writer.close()
    assert lab.received_equals_finished()


@given(st.lists(st.one_of(st.binary(max_size=20), st.text(max_size=20).map(str.encode)), min_size=1), st.booleans())
def test_any_text_is_valid_json(texts: list[bytes], chat: bool) -> None:
    """Whatever a replica sends, every chunk is an event of JSON with that text; what is no text is replaced."""
    stream = Stream(Receipt('"r\\'), chat=chat, created_s=1, include_usage=False)
    for index, text in enumerate(texts):
        event = stream.before + quoted(text) + stream.after if index else stream.first(text)
        assert event.startswith(b"data: ")
        assert event.endswith(b"\n\n")
        assert event.count(b"\n") == 2
        (choice,) = json.loads(event[6:])["choices"]
        assert (choice["delta"]["content"] if chat else choice["text"]) == text.decode("utf-8", "replace")
