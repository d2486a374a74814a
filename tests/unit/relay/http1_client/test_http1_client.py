"""The HTTP/1.1 client on real sockets: whole answers, kept connections, and servers that break every rule."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio
import trustme

from data_plane.relay.http1.client import ALPN, HttpPool
from data_plane.relay.http1.client_calls import Fault, HttpCall, HttpLimits, Origin
from tests.support.ports import free_port
from tests.support.scripted_http import HEAD, LAST, Conversation, Script, ScriptedServer, chunked
from tests.support.waiting import eventually

REQUEST = b"POST /x HTTP/1.1\r\nhost: engine\r\ncontent-length: 2\r\n\r\nhi"
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"


class Told:
    """Writes down what a call was told."""

    def __init__(self) -> None:
        self.status = 0
        self.fields: Mapping[bytes, bytes] = {}
        self.body = b""
        self.ends: list[Fault | None] = []
        self.call: HttpCall | None = None
        self.cancel_at: int | None = None

    def on_head(self, status: int, fields: Mapping[bytes, bytes]) -> None:
        assert not self.ends
        self.status, self.fields = status, dict(fields)

    def on_body(self, data: bytes) -> None:
        assert not self.ends
        self.body += data
        if self.cancel_at is not None and len(self.body) >= self.cancel_at:
            assert self.call is not None
            self.call.cancel()

    def on_end(self, fault: Fault | None) -> None:
        self.ends.append(fault)


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[HttpPool]:
    made = HttpPool()
    yield made
    await made.close()


async def ask(pool: HttpPool, port: int, *, request: bytes = REQUEST) -> Told:
    """Sends a request and waits for its end."""
    told = Told()
    told.call = pool.send(Origin("127.0.0.1", port), request, told)
    assert not told.ends, "told before it had returned"
    await eventually(lambda: told.ends, what="the end of a request")
    return told


def answering(*parts: bytes) -> Script:
    """Answers every request on a connection with these bytes."""

    async def script(conversation: Conversation) -> None:
        while True:
            await conversation.request()
            await conversation.say(*parts)

    return script


async def test_answers_of_every_length_and_a_kept_connection(pool: HttpPool) -> None:
    """Shows bodies by length, in chunks with trailers, after an interim answer and empty, all on one connection."""
    answers = [
        (PLAIN, b"hello"),
        (HEAD + chunked(b"hel") + chunked(b"lo") + b"0\r\nx-trailer: 1\r\n\r\n", b"hello"),
        (b"HTTP/1.1 100 Continue\r\nx-a: 1\r\n\r\n" + PLAIN, b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", b""),
    ]

    async def script(conversation: Conversation) -> None:
        for answer, _ in answers:
            head, body = await conversation.request()
            assert head.startswith(b"post /x http/1.1")
            assert body == b"hi"
            await conversation.say(answer)
        await conversation.gone()

    async with ScriptedServer(script) as server:
        for answer, body in answers:
            told = await ask(pool, server.port)
            assert (told.body, told.ends) == (body, [None]), answer
            assert b"x-a" not in told.fields
        assert told.status == 404
        assert len(server.conversations) == 1
        assert pool.count(Origin("127.0.0.1", server.port)) == 1


async def test_a_body_without_a_length_ends_with_its_connection(pool: HttpPool) -> None:
    """Shows HTTP/1.0's way, and that such a connection is not used again."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(b"HTTP/1.0 200 OK\r\n\r\nall of it")

    async with ScriptedServer(script) as server:
        for _ in range(2):
            told = await ask(pool, server.port)
            assert (told.body, told.ends) == (b"all of it", [None])
        assert len(server.conversations) == 2
        assert not pool.count(Origin("127.0.0.1", server.port))


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (b"", Fault.LOST),
        (b"HTTP/1.1 200 O", Fault.LOST),
        (HEAD, Fault.LOST),
        (HEAD + chunked(b"a") + b"5\r\nab", Fault.LOST),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", Fault.LOST),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Fault.GARBAGE),
        (HEAD + b"zz\r\n", Fault.GARBAGE),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", Fault.GARBAGE),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000, Fault.GARBAGE),
        (HEAD + b"0\r\nx-trailer: " + b"a" * 70_000, Fault.GARBAGE),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 4_000, Fault.GARBAGE),
        (b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n\0\0", Fault.GARBAGE),
    ],
)
async def test_what_is_no_whole_answer_is_a_fault(pool: HttpPool, said: bytes, fault: Fault) -> None:
    """Proves that cut, false and endless answers end with the fault they are, and leave no connection behind."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(said)
        if fault is Fault.GARBAGE:
            await conversation.gone()

    async with ScriptedServer(script) as server:
        told = await ask(pool, server.port)
        assert told.ends == [fault]
        await eventually(lambda: not pool.count(Origin("127.0.0.1", server.port)))


async def test_bytes_one_at_a_time_make_the_same_answer(pool: HttpPool) -> None:
    """Shows that nothing depends on how the network cuts."""
    whole = HEAD + chunked(b"hello ") + chunked(b"you") + LAST
    async with ScriptedServer(answering(*(whole[at : at + 1] for at in range(len(whole))))) as server:
        told = await ask(pool, server.port)
        assert (told.body, told.ends) == (b"hello you", [None])


async def test_nobody_there_is_unreachable(pool: HttpPool) -> None:
    """Shows a refused connection, a name that is none, and a pool that is full: nothing was sent."""
    assert (await ask(pool, free_port())).ends == [Fault.UNREACHABLE]
    told = Told()
    pool.send(Origin("no-such-host.invalid", 80), REQUEST, told)
    await eventually(lambda: told.ends, 30.0)
    assert told.ends == [Fault.UNREACHABLE]
    small = HttpPool(HttpLimits(connections_max=1))
    async with ScriptedServer(Conversation.gone) as server:
        waiting = Told()
        small.send(Origin("127.0.0.1", server.port), REQUEST, waiting)
        assert (await ask(small, server.port)).ends == [Fault.UNREACHABLE]
        assert not waiting.ends
        await small.close()
        await eventually(lambda: waiting.ends == [Fault.LOST])


async def test_a_request_on_a_connection_closed_under_it_is_sent_again(pool: HttpPool) -> None:
    """Proves that the race of a kept connection is not seen: the second connection answers."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(PLAIN)
        if conversation.number == 1:
            await conversation.request()
            conversation.cut()
        await conversation.gone()

    async with ScriptedServer(script) as server:
        for _ in range(2):
            assert (await ask(pool, server.port)).body == b"hello"
        assert len(server.conversations) == 2


async def test_a_request_whose_server_is_gone_after_it_counts_as_lost(pool: HttpPool) -> None:
    """Proves that a request which may have ended its server is not taken for one that was never sent."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(PLAIN)
        await conversation.request()
        server.stop()
        conversation.cut()

    async with ScriptedServer(script) as server:
        assert (await ask(pool, server.port)).ends == [None]
        assert (await ask(pool, server.port)).ends == [Fault.LOST]


async def test_a_request_lost_on_a_fresh_connection_is_not_repeated(pool: HttpPool) -> None:
    """Shows that only the race is healed: the server sees such a request once."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()

    async with ScriptedServer(script) as server:
        assert (await ask(pool, server.port)).ends == [Fault.LOST]
        assert len(server.conversations) == 1


async def test_idle_connections_are_closed_in_time() -> None:
    """Proves that a connection which nobody uses ends, and one that says something unasked at once."""
    pool = HttpPool(HttpLimits(idle_s=0.0))
    async with ScriptedServer(answering(PLAIN)) as server:
        await ask(pool, server.port)
        assert pool.count(Origin("127.0.0.1", server.port)) == 1
        await eventually(lambda: not pool.count(Origin("127.0.0.1", server.port)))
    await pool.close()


@pytest.mark.parametrize("late", [False, True])
async def test_more_than_an_answer_is_never_taken_for_the_next(pool: HttpPool, late: bool) -> None:
    """Proves that bytes after an answer, with it or later, close the connection and reach no other request."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        if late:
            await conversation.say(PLAIN)
            await conversation.say(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        else:
            await conversation.say(PLAIN + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        await conversation.gone()

    async with ScriptedServer(script) as server:
        first = await ask(pool, server.port)
        await eventually(lambda: not pool.count(Origin("127.0.0.1", server.port)))
        second = await ask(pool, server.port)
        assert first.body == second.body == b"hello"
        assert first.ends == second.ends == [None]


async def test_cancelling_closes_the_connection_and_tells_nothing_more(pool: HttpPool) -> None:
    """Shows a request given up in the middle of a read, while it waits, and while its connection is being opened."""

    async def script(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.say(HEAD + b"".join(chunked(b"%d" % digit) for digit in range(9)))
        await conversation.gone()
        closed.set()

    closed = asyncio.Event()
    async with ScriptedServer(script) as server:
        told = Told()
        told.cancel_at = 3
        told.call = pool.send(Origin("127.0.0.1", server.port), REQUEST, told)
        await asyncio.wait_for(closed.wait(), 10)
        assert told.body == b"012"
        early = Told()
        pool.send(Origin("127.0.0.1", server.port), REQUEST, early).cancel()
        await eventually(lambda: not pool.count(Origin("127.0.0.1", server.port)))
        assert not told.ends
        assert not early.ends
        assert not early.status


async def test_a_paused_request_holds_its_sender(pool: HttpPool) -> None:
    """Proves that a server cannot send more than the network holds while the receiver waits, and all of it after."""
    total = 64 << 20
    sent = 0

    async def script(conversation: Conversation) -> None:
        nonlocal sent
        await conversation.request()
        await conversation.say(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            await conversation.say(bytes(1 << 20))
            sent += 1 << 20
        await conversation.gone()

    class Counting(Told):
        received = 0

        def on_body(self, data: bytes) -> None:
            self.received += len(data)
            if self.received == len(data):
                assert self.call is not None
                self.call.pause()

    async with ScriptedServer(script) as server:
        told = Counting()
        told.call = pool.send(Origin("127.0.0.1", server.port), REQUEST, told)
        await eventually(lambda: told.received)
        seen = -1
        while seen != sent:
            seen = sent
            await asyncio.sleep(0.3)
        assert sent < total
        assert told.received < 1 << 20
        told.call.resume()
        await eventually(lambda: told.ends, 30.0)
        assert told.received == total


async def test_tls_is_verified_and_speaks_http1() -> None:
    """Proves that a certificate for another name is refused, and that the right one is talked to by ALPN."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    trusting = ssl.create_default_context()
    trusting.set_alpn_protocols(ALPN)
    authority.configure_trust(trusting)
    async with ScriptedServer(answering(PLAIN), context) as server:
        for tls, host, end in (
            (trusting, "127.0.0.1", None),
            (trusting, "localhost", Fault.UNREACHABLE),
            (None, "127.0.0.1", Fault.UNREACHABLE),
        ):
            pool, told = HttpPool(tls=tls), Told()
            pool.send(Origin(host, server.port, tls=True), REQUEST, told)
            await eventually(lambda told=told: told.ends)  # type: ignore[misc]
            assert told.ends == [end]
            await pool.close()
