"""Our HTTP/1.1 server on real sockets, with both event loops: answers, their order, back pressure, drain, TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import closing

import aiohttp
import pytest
import trustme

from data_plane.relay.http1.calls import HttpCall
from data_plane.relay.http1.connection import UNREAD_BYTES_MAX, WRITE_BYTES_MAX
from data_plane.relay.http1.limits import Limits, Patience
from data_plane.relay.http1.server import Server
from tests.support.waiting import eventually
from tests.unit.relay.http1.app import TEXT, App, Lab, Seen, request, serving


async def test_answers_on_one_connection() -> None:
    """Whole and streamed answers follow each other on one connection, with the headers of HTTP."""
    async with serving() as lab, await lab.client() as client:
        for body in (b"hello", b"", b"x" * 300_000):
            client.ask("/echo", body)
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, body)
            assert answer.headers["content-type"] == "text/plain"
            assert answer.headers["date"].endswith("GMT")
            assert "connection" not in answer.headers
        client.ask("/stream", b"one\ntwo")
        answer = await client.answer()
        assert (answer.body, answer.headers["transfer-encoding"]) == (b"onetwo", "chunked")
        assert lab.server.connections == 1


async def test_a_client_of_a_library() -> None:
    """aiohttp's client gets what it asks for, with large bodies in chunks and a hundred requests at once."""
    async with serving() as lab, aiohttp.ClientSession(f"http://127.0.0.1:{lab.port}") as http:

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"y" * 1000

        async with http.post("/echo", data=chunks()) as response:
            assert await response.read() == b"y" * 100_000

        async def one(number: int) -> bytes:
            async with http.post("/stream", data=f"{number}\n" * 10) as response:
                return await response.read()

        assert await asyncio.gather(*map(one, range(100))) == [f"{number}".encode() * 10 for number in range(100)]


async def test_requests_sent_ahead() -> None:
    """They are answered in order, and none is begun before the answer to the one before it has ended."""
    async with serving() as lab, await lab.client() as client:
        client.send(request("/held", b"1") + request("/echo", b"2") + request("/held", b"3") + request("/echo", b"4"))
        await eventually(lambda: lab.app.calls)
        for begun in (1, 3):
            assert len(lab.app.calls) == begun
            assert lab.app.calls[-1].call.path == "/held"
            lab.app.calls[-1].call.respond(200, TEXT, b"held")
            assert [(await client.answer()).body for _ in range(2)] == [b"held", b"24"[begun // 2 :][:1]]


async def test_thousands_of_requests_sent_ahead_wait_for_a_client_that_reads() -> None:
    """No more answers are made than the client takes, and all are answered in the end."""
    count, body = 3_000, b"z" * 1000
    async with serving(Limits(ahead_bytes_max=10_000)) as lab, await lab.client() as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket's transport
        client.send(request("/echo", body) * count)
        made = -1
        while made != len(lab.app.calls):
            made = len(lab.app.calls)
            await asyncio.sleep(0.2)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]  # of a socket's transport
        for _ in range(count):
            assert (await client.answer()).body == body
        assert len(lab.app.calls) == count


async def test_what_waits_for_the_answer_under_way_is_bounded() -> None:
    """While an answer is under way no more is read than the limit and one read; then everything is answered."""
    async with serving(Limits(ahead_bytes_max=10_000)) as lab, await lab.client() as client:
        client.ask("/held")
        await eventually(lambda: lab.app.calls)
        client.send(request("/echo", b"x" * 1000) * 5_000)
        await eventually(lambda: client.writer.transport.get_write_buffer_size() > 0)
        await asyncio.sleep(0.2)
        assert client.writer.transport.get_write_buffer_size() > 0
        lab.app.calls[0].call.respond(200, TEXT, b"held")
        assert (await client.answer()).body == b"held"
        for _ in range(5_000):
            assert (await client.answer()).body == b"x" * 1000


async def test_head_and_old_http() -> None:
    """HEAD has no body; HTTP/1.0 gets no chunks and no connection that goes on unless it asks for one."""
    async with serving() as lab:
        async with await lab.client() as client:
            client.ask("/echo", b"abc", method="HEAD")
            answer = await client.answer(head_only=True)
            assert (answer.status, answer.headers["content-length"]) == (200, "3")
            client.send(b"POST /echo HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na")
            answer = await client.answer()
            assert (answer.headers["connection"], answer.body) == ("keep-alive", b"a")
            client.send(b"POST /stream HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\na\nb")
            answer = await client.answer()
            assert "transfer-encoding" not in answer.headers
            assert (answer.headers["connection"], answer.body) == ("close", b"ab")
        async with await lab.client() as client:
            client.send(b"GET /echo HTTP/1.0\r\n\r\n")
            assert (await client.answer()).headers["connection"] == "close"
            assert await client.closed() == b""


async def test_a_client_that_wants_to_close() -> None:
    """`Connection: close` is answered by the same, and what comes after the answer is an end."""
    async with serving() as lab, await lab.client() as client:
        client.ask("/stream", b"abc", headers="Connection: close\r\n")
        answer = await client.answer()
        assert (answer.headers["connection"], answer.body) == ("close", b"abc")
        assert await client.closed() == b""


async def test_a_client_that_asks_before_it_sends() -> None:
    """100 Continue comes when the body is wanted; a refusal comes instead of it, and ends the connection."""
    async with serving() as lab, await lab.client() as client:
        head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        client.send(head)
        assert (await client.answer()).status == 100
        client.send(b"abc")
        assert (await client.answer()).body == b"abc"
        client.send(head + b"def")
        assert (await client.answer()).body == b"def"
        client.send(head.replace(b"/echo", b"/early"))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        assert await client.closed() == b""


async def test_an_answer_before_the_body() -> None:
    """A body that nobody wants is not kept; the connection goes on if little of it is to come, and ends otherwise."""
    async with serving() as lab:
        async with await lab.client() as client:
            whole = request("/early", b"x" * UNREAD_BYTES_MAX)
            client.send(whole[:-UNREAD_BYTES_MAX])
            answer = await client.answer()
            assert (answer.status, "connection" in answer.headers) == (401, False)
            client.send(whole[-UNREAD_BYTES_MAX:] + request("/echo", b"next"))
            assert (await client.answer()).body == b"next"
        for body in (b"Content-Length: %d\r\n\r\n" % (UNREAD_BYTES_MAX + 1), b"Transfer-Encoding: chunked\r\n\r\n"):
            async with await lab.client() as client:
                client.send(b"POST /early HTTP/1.1\r\nHost: x\r\n" + body)
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (401, "close")
                client.send(b"x" * 200_000)
                assert await client.closed() == b""
        assert lab.server.bodies_bytes == 0
        assert all(seen.body is None and not seen.gone for seen in lab.app.calls if seen.call.path == "/early")


async def test_a_large_body_is_refused_and_the_answer_read() -> None:
    """A client that goes on sending what was refused still gets to read the refusal."""
    async with serving(Limits(body_bytes_max=1000)) as lab:
        for data in (
            request("/echo", b"x" * 3_000_000),
            b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n" + b"x" * 1000 + b"\r\n"
            b"2dc6c0\r\n" + b"x" * 3_000_000 + b"\r\n0\r\n\r\n",
        ):
            async with await lab.client() as client:
                client.send(data)
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (413, "close")
                assert answer.body.startswith(b"call: ")
        async with await lab.client() as client:
            client.ask("/echo", b"x" * 1000)
            assert (await client.answer()).status == 200


async def test_broken_http_after_a_good_request() -> None:
    """The good one is answered first, then the broken one, and the connection ends."""
    async with serving() as lab, await lab.client() as client:
        client.send(request("/held", b"a") + b"no http at all\r\n\r\n")
        await eventually(lambda: lab.app.calls)
        await asyncio.sleep(0)
        lab.app.calls[0].call.respond(200, TEXT, b"good")
        assert (await client.answer()).body == b"good"
        answer = await client.answer()
        assert (answer.status, answer.body[:6], answer.headers["connection"]) == (400, b"line: ", "close")
        assert await client.closed() == b""
        assert not lab.app.calls[0].gone


async def test_a_broken_body_is_told_to_who_serves_it() -> None:
    """A chunk that is none ends the request under way, once, with an answer of its server's own."""
    async with serving() as lab, await lab.client() as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await eventually(lambda: lab.server.bodies_bytes == 3)
        client.send(b"zz\r\n")
        answer = await client.answer()
        assert (answer.status, answer.body[:6]) == (400, b"call: ")
        assert await client.closed() == b""
        (seen,) = lab.app.calls
        assert (seen.body, seen.gone) == (None, False)


@pytest.mark.parametrize("how", ["close", "half", "reset"])
@pytest.mark.parametrize("path", ["/held", "/open"])
async def test_a_client_that_is_gone(how: str, path: str) -> None:
    """Who serves it is told at once, once, and nothing can be said any more: closed, half closed or reset."""
    async with serving() as lab, await lab.client() as client:
        client.ask(path, b"abc")
        await eventually(lambda: lab.app.calls and lab.app.calls[0].body is not None)
        if how == "half":
            client.writer.write_eof()
        elif how == "reset":
            plain = client.writer.get_extra_info("socket")
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            client.writer.transport.abort()
        else:
            client.writer.close()
        (seen,) = lab.app.calls
        await eventually(lambda: seen.gone)
        seen.call.write(b"x")
        seen.call.end()
        seen.call.respond(200, TEXT, b"")
        await eventually(lambda: lab.server.connections == 0)


async def open_stream(lab: Lab) -> tuple[socket.socket, Seen]:
    """A stream under way to a client that does not read, on a socket that takes little."""
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", lab.port))
    plain.send(request("/open", b"abc"))
    await eventually(lambda: lab.app.calls and lab.app.calls[0].body is not None)
    return plain, lab.app.calls[0]


async def fill(call: HttpCall) -> int:
    """Streams until the client does not keep up."""
    for sent in range(1, 10_000):
        call.write(b"x" * 10_000)
        await asyncio.sleep(0)
        if call.blocked:
            return sent
    raise AssertionError("nothing ever waits")


async def test_a_client_that_does_not_keep_up() -> None:
    """Who serves sees it, is told when there is room again, and nothing is lost."""
    async with serving() as lab:
        plain, seen = await open_stream(lab)
        with closing(plain):
            sent = await fill(seen.call)
            assert seen.writable == 0
            seen.call.write(b"y")  # what was under way is taken all the same
            reader, writer = await asyncio.open_connection(sock=plain)
            body = (await reader.readuntil(b"\r\n\r\n"))[:0]
            while len(body) < sent * 10_000 + 1:
                size = int(await reader.readline(), 16)
                body += (await reader.readexactly(size + 2))[:-2]
            assert body == b"x" * (sent * 10_000) + b"y"
            await eventually(lambda: seen.writable == 1)
            assert not seen.call.blocked
            writer.transport.abort()


async def test_a_server_that_does_not_stop() -> None:
    """What waits for one client is bounded even where nobody heeds `blocked`: at the limit it goes on, then it ends."""
    limit = 4 * WRITE_BYTES_MAX
    async with serving(Limits(answer_bytes_max=limit)) as lab:
        plain, seen = await open_stream(lab)
        with closing(plain):
            await fill(seen.call)
            (connection,) = lab.server.shared.open
            framing = len(b"10000\r\n\r\n")
            seen.call.write(b"x" * (limit - connection.queued_bytes - framing))
            await asyncio.sleep(0.05)
            assert connection.queued_bytes == limit
            assert not seen.gone
            seen.call.write(b"x")
            await eventually(lambda: seen.gone)
            await eventually(lambda: lab.server.connections == 0)


async def test_so_many_connections_and_no_more() -> None:
    """At the limit everybody is served; one beyond is told so and closed; a place that is free is given away again."""
    async with serving(Limits(connections_max=2)) as lab:
        async with await lab.client() as first, await lab.client() as second:
            for client in (first, second):
                client.ask("/echo", b"a")
                assert (await client.answer()).status == 200
            async with await lab.client() as third:
                assert (await third.answer()).status == 503
                assert await third.closed() == b""
            first.ask("/echo", b"a")
            assert (await first.answer()).status == 200
        await eventually(lambda: lab.server.connections == 0)
        async with await lab.client() as client:
            client.ask("/echo", b"a")
            assert (await client.answer()).status == 200


async def test_a_drain() -> None:
    """Answers under way end, connections close once nothing comes on them for a while, and nobody new gets in."""
    async with serving() as lab:
        idle, held, streaming, half = [await lab.client() for _ in range(4)]
        held.ask("/held", b"a")
        streaming.ask("/open", b"b")
        half.send(b"POST /echo HTTP/1.1\r\nHo")
        await eventually(lambda: len(lab.app.calls) == 2 and lab.server.connections == 4)
        draining = asyncio.create_task(lab.server.drain_and_stop(10.0))
        await eventually(lambda: lab.server.shared.draining)
        with pytest.raises(ConnectionRefusedError):
            await lab.client()
        half.send(b"st: x\r\nContent-Length: 1\r\n\r\nz")
        answer = await half.answer()
        assert (answer.body, answer.headers["connection"]) == (b"z", "close")
        by_path = {seen.call.path: seen.call for seen in lab.app.calls}
        by_path["/open"].write(b"last")
        by_path["/open"].end()
        assert (await streaming.answer()).body == b"last"
        # Whoever could not know may send once more, on a connection with an answer behind it and on a new one.
        for client in (streaming, idle):
            client.ask("/echo", b"once more")
            answer = await client.answer()
            assert (answer.body, answer.headers["connection"]) == (b"once more", "close")
        assert not draining.done()
        by_path["/held"].respond(200, TEXT, b"done")
        answer = await held.answer()
        assert (answer.body, answer.headers["connection"]) == (b"done", "close")
        for client in (held, streaming, idle, half):
            client.writer.close()
        await draining


async def test_a_drain_closes_what_is_idle() -> None:
    """A connection on which nothing comes any more does not hold up the end until the grace is over."""
    async with serving() as lab:
        idle, answered = await lab.client(), await lab.client()
        answered.ask("/echo", b"a")
        assert (await answered.answer()).status == 200
        draining = asyncio.create_task(lab.server.drain_and_stop(60.0))
        for client in (idle, answered):
            assert await client.closed() == b""
            client.writer.close()
        await draining


async def test_a_drain_does_not_wait_for_ever() -> None:
    """After its grace what is left is cut off, and who serves it is told."""
    async with serving() as lab, await lab.client() as client:
        client.ask("/held", b"a")
        await eventually(lambda: lab.app.calls)
        await lab.server.drain_and_stop(0.1)
        assert lab.app.calls[0].gone
        assert lab.server.connections == 0


async def test_sockets_that_were_bound_before() -> None:
    """A server listens on sockets it is given, as many as there are."""
    app = App()
    server = Server(app, Limits(), Patience())
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [each.getsockname()[1] for each in sockets]
    assert await server.listen_on(sockets) == ports[0]
    for port in ports:
        async with await Lab(app, server, port).client() as client:
            client.ask("/echo", b"hi")
            assert (await client.answer()).body == b"hi"
    async with await Lab(app, server, ports[0]).client() as client:
        await eventually(lambda: server.connections == 1)
        await server.leave(sockets[:1])
        client.ask("/echo", b"still here")
        assert (await client.answer()).body == b"still here"
        with pytest.raises(ConnectionRefusedError):
            await Lab(app, server, ports[0]).client()
    await server.drain_and_stop(1.0)


async def test_tls() -> None:
    """https with HTTP/1.1 by ALPN: answers, early refusals, and a client that is gone."""
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    ours.set_alpn_protocols(["h2", "http/1.1"])
    async with (
        serving(tls=tls) as lab,
        aiohttp.ClientSession(
            f"https://127.0.0.1:{lab.port}", connector=aiohttp.TCPConnector(ssl=ours, limit=1)
        ) as http,
    ):
        for body in (b"abc", b"x" * 1_000_000):
            async with http.post("/stream", data=body) as response:
                assert await response.read() == body
        async with http.post("/early", data=b"x" * 1_000_000) as response:
            assert (response.status, await response.read()) == (401, b"no")
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port, ssl=ours)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        writer.write(request("/held", b"a"))
        await eventually(lambda: lab.app.calls[-1].call.path == "/held")
        writer.transport.abort()
        await eventually(lambda: lab.app.calls[-1].gone)
        del reader


async def test_a_peer_whose_machine_is_gone_is_noticed() -> None:
    """Sockets are asked for signs of life, bounded in what stays unacknowledged, and never wait to fill a packet."""
    async with serving(patience=Patience(stuck_s=12.0)) as lab, await lab.client() as client:
        client.ask("/held")
        await eventually(lambda: lab.app.calls)
        (connection,) = lab.server.shared.open
        assert connection.transport is not None
        plain = connection.transport.get_extra_info("socket")
        assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_000
