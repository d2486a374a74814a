"""Our server on real sockets with clients of grpcio, and with peers that never come to the point."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest

from data_plane.relay.http2 import frames
from data_plane.relay.http2.endpoint import Endpoint, Patience
from data_plane.relay.http2.frames import PREFACE
from data_plane.relay.http2.header_blocks import encoded
from data_plane.relay.http2.limits import Limits
from data_plane.relay.http2.stream import Stream
from tests.support.waiting import eventually
from tests.unit.relay.peers import ANSWER, TRAILERS, Recorder, request

PATIENT = Patience()
HURRIED = Patience(greeting_s=0.5, stuck_s=0.5, silence_s=0.5, answer_s=0.5, idle_s=0.5)


@dataclass
class Echo(Recorder):
    """Answers every call with what came, as often as its path says; never to /silence.

    Attributes:
        endpoint: Its connection's.
    """

    endpoint: Endpoint | None = None

    def on_data(self, stream: Stream, data: bytes, ended: bool) -> None:
        super().on_data(stream, data, ended)
        seen, connection = self.of(stream), self.connection
        path = dict(seen.fields)[b":path"]
        if ended and path != b"/echo/silence":
            assert connection is not None
            connection.send_head(stream, encoded(ANSWER))
            for _ in range(int(path.rpartition(b"/")[2])):
                connection.send_data(stream, seen.data)
            connection.end(stream, encoded(TRAILERS))

    @property
    def resets(self) -> list[int]:
        """Codes of the streams that were given up."""
        return [seen.reset for seen in self.seen.values() if seen.reset is not None]


@dataclass
class Server:
    """An echo and where it is."""

    address: str
    port: int
    handlers: list[Echo]


@asynccontextmanager
async def serving(patience: Patience = PATIENT) -> AsyncIterator[Server]:
    """The echo on a free port."""
    handlers: list[Echo] = []

    def connected() -> Endpoint:
        handler = Echo()
        handler.endpoint = Endpoint(handler, Limits(), patience, client=False)
        handler.connection = handler.endpoint.connection
        handlers.append(handler)
        return handler.endpoint

    server = await asyncio.get_running_loop().create_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Server(f"127.0.0.1:{port}", port, handlers)
    finally:
        server.close()
        for handler in handlers:
            assert handler.endpoint is not None
            handler.endpoint.connection.lost()


async def test_grpcio_asks_and_hears() -> None:
    """Proves calls of grpcio's asyncio client: small and large, many at once, with metadata and deadlines."""
    async with serving() as server, grpc.aio.insecure_channel(server.address) as channel:
        once, often = channel.unary_unary("/echo/1"), channel.unary_stream("/echo/1000")
        assert await once(b"hello", timeout=20, metadata=[("x-tenant", "t"), ("x-bytes-bin", b"\0\xff")]) == b"hello"
        fields = dict(server.handlers[0].seen[1].fields)
        assert fields[b"x-tenant"] == b"t"
        assert b"grpc-timeout" in fields
        large = bytes(range(256)) * 8_000
        assert await once(large, timeout=20) == large
        answers = await asyncio.gather(*(once(b"%d" % number, timeout=20) for number in range(100)))
        assert answers == [b"%d" % number for number in range(100)]
        assert [answer async for answer in often(b"token", timeout=20)] == 1_000 * [b"token"]
        assert not server.handlers[0].endpoint.connection.streams  # type: ignore[union-attr]
    assert len(server.handlers) == 1


async def test_grpcio_reads_slowly() -> None:
    """Proves that what a slow reader does not take waits in its stream, and that others go on beside it."""
    async with serving() as server, grpc.aio.insecure_channel(server.address) as channel:
        slow = channel.unary_stream("/echo/3000")(10_000 * b"x", timeout=60)
        assert await slow.read() == 10_000 * b"x"
        assert await channel.unary_unary("/echo/1")(b"quick", timeout=20) == b"quick"
        received = 1
        while await slow.read() is not grpc.aio.EOF:
            received += 1
        assert received == 3_000


async def test_grpcio_gives_up() -> None:
    """Proves that a deadline and a cancellation end the stream here too."""
    async with serving() as server, grpc.aio.insecure_channel(server.address) as channel:
        silent = channel.unary_unary("/echo/silence")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await silent(b"", timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        call = silent(b"", timeout=20)
        await eventually(lambda: len(server.handlers[0].seen) == 2)
        call.cancel()
        await eventually(lambda: server.handlers[0].resets == [frames.ErrorCode.CANCEL] * 2)


async def test_grpcio_is_sent_elsewhere_without_an_error() -> None:
    """Proves that a connection that drains finishes what it has, and that the client goes on on a new one."""
    async with serving() as server, grpc.aio.insecure_channel(server.address) as channel:
        once = channel.unary_unary("/echo/1")
        for number in range(50):
            assert await once(b"%d" % number, timeout=20) == b"%d" % number
            if number % 10 == 5:
                endpoint = server.handlers[-1].endpoint
                assert endpoint is not None
                endpoint.connection.drain()
                endpoint.flush()
        assert len(server.handlers) == 6


async def _closed(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(20):
        try:
            while await reader.read(1 << 16):
                pass
        except ConnectionError:
            pass
        return True


@pytest.mark.parametrize(
    "said",
    [
        b"",  # nothing at all
        PREFACE + frames.settings(()),  # and then nothing
        PREFACE + frames.settings(()) + request(1),  # a request, and no sign of life any more
    ],
)
async def test_who_never_comes_to_the_point_is_given_up(said: bytes) -> None:
    async with serving(HURRIED) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(said)
        assert await _closed(reader)
        writer.close()


async def test_half_a_greeting_is_none() -> None:
    async with serving(Patience(greeting_s=0.5)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(PREFACE[:-1])
        assert await _closed(reader)
        writer.close()


async def test_who_does_not_read_is_given_up() -> None:
    """Proves that neither an answer nor answers to pings pile up for somebody who reads nothing."""
    async with serving(HURRIED) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
        path = encoded(((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/echo/2000")))
        windows = frames.settings([(4, 2**31 - 1)]) + frames.window_update(0, 2**31 - 1 - frames.WINDOW_START)
        content = frames.frame(frames.DATA, frames.END_STREAM, 1, 16_000 * b"x")
        writer.write(PREFACE + windows + request(1, block=path) + content)
        await eventually(lambda: server.handlers and server.handlers[0].endpoint.lost.done(), 20)  # type: ignore[union-attr]
        writer.close()
