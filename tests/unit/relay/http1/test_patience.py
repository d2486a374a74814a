"""Nobody is waited for for ever: half a head, half a body, nothing at all, no reading, no closing.

Times are short and bounds are wide: that something ends is proved, and that it does not end before its time.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import replace

import pytest
import trustme

from data_plane.relay.http1.limits import Limits, Patience
from tests.support.waiting import eventually
from tests.unit.relay.http1.app import TEXT, request, serving
from tests.unit.relay.http1.test_server import fill, open_stream

LONG = Patience(request_s=1000.0, idle_s=1000.0, stuck_s=1000.0, linger_s=1000.0)
SHORT_S = 0.4
HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "prefix"),
    [(HEAD[:20], b"line: "), (HEAD + b"ab", b"call: "), (HEAD, b"call: "), (request("/echo", b"a") + b"P", b"line: ")],
    ids=["half a head", "half a body", "no body", "after another"],
)
async def test_a_request_that_never_becomes_whole(first: bytes, prefix: bytes) -> None:
    """It is answered 408, by its server where there is one; dribbling does not help."""
    patience = replace(LONG, request_s=SHORT_S, linger_s=SHORT_S)
    async with serving(patience=patience) as lab, await lab.client() as client:
        client.send(first)
        if first.endswith(b"P"):
            assert (await client.answer()).body == b"a"
        begun_s = time.monotonic()
        answer = asyncio.create_task(client.answer())
        rest = (
            b"OST /" + b"a" * 2000 if first.endswith(b"P") else (HEAD + b"abcd")[len(first) :] if first == HEAD else b""
        )
        for at in range(len(rest)):
            if answer.done():
                break
            client.send(rest[at : at + 1])
            await asyncio.sleep(SHORT_S / 3)
        got = await answer
        assert time.monotonic() - begun_s >= SHORT_S * 0.9
        assert (got.status, got.body[:6], got.headers["connection"]) == (408, prefix, "close")
        await eventually(lambda: lab.server.connections == 0)
        assert lab.server.bodies_bytes == 0


async def test_a_body_that_nobody_wants_and_that_never_comes() -> None:
    """After an answer that came before the body, the rest of the body is waited for no longer than any other."""
    async with (
        serving(patience=replace(LONG, request_s=SHORT_S, linger_s=SHORT_S)) as lab,
        await lab.client() as client,
    ):
        client.send(HEAD.replace(b"/echo", b"/early") + b"a")
        assert (await client.answer()).status == 401
        assert await client.closed() == b""
        await eventually(lambda: lab.server.connections == 0)


async def test_a_slow_answer_is_no_slow_request() -> None:
    """The time for a request ends with its last byte, and that of one sent ahead begins with the last answer."""
    async with serving(patience=replace(LONG, request_s=SHORT_S, idle_s=SHORT_S)) as lab, await lab.client() as client:
        client.send(request("/held", b"a") + HEAD)
        await eventually(lambda: lab.app.calls)
        await asyncio.sleep(3 * SHORT_S)
        lab.app.calls[0].call.respond(200, TEXT, b"held")
        assert (await client.answer()).body == b"held"
        client.send(b"hello")
        assert (await client.answer()).body == b"hello"


@pytest.mark.parametrize("used", [False, True])
async def test_a_connection_that_is_not_used(used: bool) -> None:
    """It is closed after a while: one that never said anything, and one that has its answer."""
    async with serving(patience=replace(LONG, idle_s=SHORT_S)) as lab, await lab.client() as client:
        if used:
            client.ask("/echo", b"a")
            assert (await client.answer()).body == b"a"
        begun_s = time.monotonic()
        client.send(b"\r\n")
        assert await client.closed() == b""
        assert time.monotonic() - begun_s >= SHORT_S / 2
        await eventually(lambda: lab.server.connections == 0)


async def test_a_client_that_does_not_read() -> None:
    """A stream whose client takes nothing for a while is given up, and who serves it is told."""
    async with serving(patience=replace(LONG, stuck_s=SHORT_S)) as lab:
        plain, seen = await open_stream(lab)
        await fill(seen.call)
        await eventually(lambda: seen.gone)
        await eventually(lambda: lab.server.connections == 0)
        plain.close()


async def test_a_client_that_does_not_read_the_end() -> None:
    """An answer that has ended, and whose client does not read it, does not keep its connection either."""
    async with serving(Limits(answer_bytes_max=1 << 30), replace(LONG, stuck_s=SHORT_S)) as lab:
        plain, seen = await open_stream(lab)
        await fill(seen.call)
        seen.call.end()
        await eventually(lambda: lab.server.connections == 0)
        assert not seen.gone
        plain.close()


async def test_a_client_that_reads_slowly() -> None:
    """A little now and then is progress: the stream goes on far beyond the time for none."""
    async with serving(patience=replace(LONG, stuck_s=3.0)) as lab:
        plain, seen = await open_stream(lab)
        await fill(seen.call)
        loop = asyncio.get_running_loop()
        end_s = time.monotonic() + 5.0
        while time.monotonic() < end_s:
            for _ in range(8):
                await loop.sock_recv(plain, 65_536)
            if not seen.call.blocked:
                await fill(seen.call)
            await asyncio.sleep(0.2)
        assert not seen.gone
        plain.close()
        await eventually(lambda: seen.gone)


async def test_a_client_that_does_not_close() -> None:
    """After the last answer it has a moment to close; then the connection is closed here."""
    async with serving(patience=replace(LONG, linger_s=SHORT_S)) as lab, await lab.client() as client:
        client.ask("/echo", b"a", headers="Connection: close\r\n")
        assert (await client.answer()).body == b"a"
        assert await client.closed() == b""
        await eventually(lambda: lab.server.connections == 0)


async def test_a_handshake_that_never_comes() -> None:
    """A client of TLS that says nothing, or only its first words, is closed as well."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    async with serving(patience=replace(LONG, handshake_s=SHORT_S), tls=tls) as lab:
        for words in (b"", b"\x16\x03\x01\x02\x00\x01\x00"):
            async with await lab.client() as client:
                client.send(words)
                assert await client.closed() == b""
        assert lab.server.connections == 0
