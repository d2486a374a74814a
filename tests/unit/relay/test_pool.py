"""The client's end of gRPC: calls to servers of grpcio's, and to sockets that do what no server should."""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
import trustme

from common.rpc import fail
from data_plane.relay.grpc.client_end import ClientCall
from data_plane.relay.grpc.framing import framed
from data_plane.relay.grpc.pool import Pool, timeout_header
from data_plane.relay.http2 import frames
from data_plane.relay.http2.endpoint import Patience
from data_plane.relay.http2.stream import Stream
from fairlead.errors import FairleadError, InternalError, QuotaExceededError, Reason, UnavailableError
from tests.support.waiting import eventually

PATH = "/a.Service/Method"
SECOND_NS = 1_000_000_000
Behaviour = Callable[[bytes, Any], AsyncIterator[bytes]]


class Heard:
    """A reply that writes down what it is told."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.over: asyncio.Future[FairleadError | None] = asyncio.get_running_loop().create_future()

    def on_message(self, message: bytes) -> None:
        """See Reply."""
        self.messages.append(message)

    def on_end(self, failure: FairleadError | None) -> None:
        """See Reply."""
        self.over.set_result(failure)

    async def end(self) -> FairleadError | None:
        """How it ended; a call that never does is a failure."""
        return await asyncio.wait_for(self.over, 10.0)


@asynccontextmanager
async def serving(behaviour: Behaviour, *, options: Any = (), credentials: Any = None) -> AsyncIterator[str]:
    server = grpc.aio.server(options=options)
    handler = grpc.unary_stream_rpc_method_handler(behaviour)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Service", {"Method": handler}),))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        yield f"{'localhost' if credentials else '127.0.0.1'}:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def pooled(**settings: Any) -> AsyncIterator[Pool]:
    pool = Pool(**settings)
    try:
        yield pool
    finally:
        await pool.close()


def call(pool: Pool, address: str, body: bytes = b"question", *, timeout_ns: int = 10 * SECOND_NS) -> tuple[Any, Heard]:
    heard = Heard()
    return pool.open(address, PATH, timeout_header(timeout_ns), framed(body), heard), heard


async def counting(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for number in range(int(request)):
        yield b"%d" % number


async def test_messages_come_whole_in_order_and_then_the_end() -> None:
    """A hundred calls at once on one connection each get all of their own messages."""
    async with serving(counting) as address, pooled() as pool:
        calls = [call(pool, address, b"%d" % count)[1] for count in range(100)]
        for count, heard in enumerate(calls):
            assert await heard.end() is None
            assert heard.messages == [framed(b"%d" % number) for number in range(count)]
        assert pool.connected() == {address: 1}


async def test_large_messages_both_ways() -> None:
    """Three megabytes go through windows and frames and come back as they were."""

    async def echo(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request

    body = bytes(range(256)) * 12_000
    async with serving(echo, options=[("grpc.max_receive_message_length", -1)]) as address, pooled() as pool:
        _, heard = call(pool, address, body)
        assert await heard.end() is None
        assert heard.messages == [framed(body)]


async def test_an_error_arrives_with_its_details() -> None:
    """What the server raised is what the caller gets: class, reason, text and time to come back."""

    async def refuses(request: bytes, context: Any) -> AsyncIterator[bytes]:
        await fail(context, QuotaExceededError("full: 100 %", reason=Reason.QUEUE_FULL, retry_after_s=0.5))
        yield b""

    async with serving(refuses) as address, pooled() as pool:
        failure = await call(pool, address)[1].end()
    assert isinstance(failure, QuotaExceededError)
    assert (failure.reason, failure.message, failure.retry_after_s) == (Reason.QUEUE_FULL, "full: 100 %", 0.5)


async def test_metadata_and_deadline_reach_the_server() -> None:
    """The server sees how long it has."""
    left: list[float] = []

    async def tells(request: bytes, context: Any) -> AsyncIterator[bytes]:
        left.append(context.time_remaining())
        yield b""

    async with serving(tells) as address, pooled() as pool:
        assert await call(pool, address, timeout_ns=7 * SECOND_NS)[1].end() is None
    assert 4.0 < left[0] <= 7.0


async def test_a_cancelled_call_is_cancelled_there_and_says_nothing_more() -> None:
    """The server's work ends, and its connection serves on."""
    cancelled = asyncio.Event()

    async def endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"more"
                await asyncio.sleep(0.001)
        except (asyncio.CancelledError, GeneratorExit):
            cancelled.set()
            raise

    async with serving(endless) as address, pooled() as pool:
        running, heard = call(pool, address)
        await eventually(lambda: len(heard.messages) > 3)
        running.cancel()
        had = len(heard.messages)
        await asyncio.wait_for(cancelled.wait(), 10.0)
        assert len(heard.messages) == had
        assert not heard.over.done()
        _, second = call(pool, address)
        await eventually(lambda: len(second.messages) > 3)
        assert pool.connected() == {address: 1}


async def test_a_call_that_is_paused_holds_its_server_and_nobody_else() -> None:
    """A paused call takes one window's bytes; others on the connection go on; resumed, it gets all the rest."""
    sent = 0

    async def lots(request: bytes, context: Any) -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(int(request)):
            yield bytes(1_000)
            sent += 1

    async with serving(lots) as address, pooled() as pool:
        running, heard = call(pool, address, b"5000")
        running.pause()
        await eventually(lambda: heard.messages)
        _, other = call(pool, address, b"500")
        assert await other.end() is None
        assert len(heard.messages) * 1_000 < 70_000
        assert sent < 5_000
        running.resume()
        assert await heard.end() is None
        assert len(heard.messages) == 5_000


async def test_nobody_at_the_address_is_said_to_have_begun_nothing() -> None:
    """A refused connection is NOT_READY, so that another replica is tried at no cost."""
    async with pooled() as pool:
        failure = await call(pool, "127.0.0.1:1")[1].end()
        assert isinstance(failure, UnavailableError)
        assert failure.reason is Reason.NOT_READY
        assert pool.connected() == {}
        failure = await call(pool, "no address")[1].end()
        assert isinstance(failure, UnavailableError)


async def test_a_server_that_dies_breaks_its_calls_and_comes_back() -> None:
    """Open calls end with REPLICA_LOST, the next one connects anew."""

    async def hangs(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.Event().wait()

    async with pooled() as pool:
        async with serving(hangs) as address:
            _, heard = call(pool, address)
            await eventually(lambda: heard.messages)
        failure = await heard.end()
        assert isinstance(failure, UnavailableError)
        async with serving(counting) as again:
            _, heard = call(pool, again, b"2")
            assert await heard.end() is None


async def raw_server(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> Any:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    return await asyncio.start_server(accept, "127.0.0.1", 0)


def address_of(server: Any) -> str:
    return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frames.settings([]) + frames.goaway(0, 0),
        frames.settings([]) + frames.rst_stream(1, 7),
        frames.settings([]) + frames.rst_stream(1, 2),
        frames.settings([]) + frames.frame(frames.DATA, 0, 1, b"early"),
        frames.settings([]) + frames.frame(frames.HEADERS, 5, 1, b"\x88"),
    ],
)
async def test_servers_that_talk_nonsense_end_the_call(said: bytes) -> None:
    """Whatever comes instead of an answer, the call ends with an error that lets another replica be tried."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.write(said)
        await writer.drain()
        await asyncio.sleep(0.05)

    server = await raw_server(answer)
    async with server, pooled() as pool:
        failure = await call(pool, address_of(server))[1].end()
        assert isinstance(failure, UnavailableError)
        assert failure.reason in (Reason.REPLICA_LOST, Reason.NOT_READY)


async def test_a_server_that_is_frozen_is_given_up() -> None:
    """One that accepts and never says a word costs its callers the patience, and not for ever."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(10_000):
            pass

    server = await raw_server(answer)
    async with server, pooled(patience=Patience(greeting_s=1.0, silence_s=1.0, answer_s=1.0)) as pool:
        failure = await call(pool, address_of(server))[1].end()
        assert isinstance(failure, UnavailableError)


async def test_too_few_streams_on_a_connection_make_another_one() -> None:
    """Where a server takes two calls at a time, more connections carry the rest, and none waits for ever."""
    release = asyncio.Event()

    async def waits(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"in"
        await release.wait()

    async with serving(waits, options=[("grpc.max_concurrent_streams", 2)]) as address, pooled() as pool:
        first = call(pool, address)[1]
        await eventually(lambda: first.messages)
        others = [call(pool, address)[1] for _ in range(9)]
        await eventually(lambda: all(other.messages or other.over.done() for other in others))
        release.set()
        for heard in (first, *others):
            failure = await heard.end()
            # What a connection refuses before it has said how many it takes was not begun.
            assert failure is None or failure.reason is Reason.NOT_READY
        assert sum(1 for heard in others if heard.over.result() is None) >= 7


async def test_over_tls_the_server_must_prove_who_it_is() -> None:
    """A certificate of the authority is taken; one of another is not, and nothing was begun."""
    authority, stranger = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("localhost")
    credentials = grpc.ssl_server_credentials(
        [(certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())]
    )
    async with serving(counting, credentials=credentials) as address:
        for trusted, expected in ((authority, None), (stranger, Reason.NOT_READY)):
            context = ssl.create_default_context()
            trusted.configure_trust(context)
            context.set_alpn_protocols(["h2"])
            async with pooled(tls=context) as pool:
                failure = await call(pool, address, b"3")[1].end()
                assert (failure.reason if failure else None) is expected


async def cancelled_in_the_middle(pool: Pool, address: str) -> None:
    running, heard = call(pool, address, b"100000")
    await eventually(lambda: heard.messages)
    running.cancel()


async def test_calls_leave_nothing_to_the_garbage_collector() -> None:
    """Streams and calls refer to one another while they last, and no longer: a collection costs more than a call."""
    async with serving(counting) as address, pooled() as pool:
        assert await call(pool, address, b"3")[1].end() is None
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(20):
                assert await call(pool, address, b"3")[1].end() is None
            await cancelled_in_the_middle(pool, address)
            gc.collect()
            left = [each for each in gc.garbage if isinstance(each, Stream | ClientCall | Heard)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert left == []


async def test_messages_beyond_the_limit_are_not_taken() -> None:
    """A message that says it is enormous ends its call and takes no memory."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        head = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\x88")
        writer.write(frames.settings([]) + head + frames.frame(frames.DATA, 0, 1, b"\0\xff\xff\xff\xff"))
        await writer.drain()
        await asyncio.sleep(0.2)

    server = await raw_server(answer)
    async with server, pooled() as pool:
        failure = await call(pool, address_of(server))[1].end()
        assert isinstance(failure, InternalError)
