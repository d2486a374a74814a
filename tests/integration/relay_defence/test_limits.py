"""Each limit of the relay's server, on real sockets: at the limit all is well, one beyond is refused as documented.

docs/relay-limits.md names the tests. Allowances do not grow with time here, so that no machine is too slow for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from hpack import Decoder

from data_plane.relay.grpc.calls import ServerCall
from data_plane.relay.grpc.framing import framed
from data_plane.relay.grpc.limits import CallLimits
from data_plane.relay.http2 import frames
from data_plane.relay.http2.frames import ACK, CONTINUATION, END_HEADERS, PRIORITY, ErrorCode, Setting
from data_plane.relay.http2.header_blocks import literal
from data_plane.relay.http2.limits import UPDATES_PER_DATA_FRAME, UPDATES_PER_STREAM, Limits
from data_plane.relay.server import ServerLimits
from tests.integration.relay_defence.calls import ONCE, SILENCE, THRICE, begin, block, call, grpc_status, works
from tests.integration.relay_defence.peer import Peer, data, headers, ping
from tests.support.waiting import eventually
from tests.unit.relay.server.serving import SERVICE, Echo, serving

WIRE = Limits(
    streams_max=8,
    header_list_bytes_max=8_192,
    continuations_max=4,
    resets_burst=20,
    resets_per_s=0.0,
    controls_burst=40,
    controls_per_s=0.0,
    answers_max=1_000,
)
CALLS = CallLimits(message_bytes_max=20_000, connection_waiting_bytes_max=50_000, process_waiting_bytes_max=80_000)
LIMITS = ServerLimits(connections_max=6, calls=CALLS, connection=WIRE)
GREETING = 2
"""Controls that a client spends on its greeting: its settings, and the acknowledgement of ours."""

CALM = ErrorCode.ENHANCE_YOUR_CALM
RESOURCE_EXHAUSTED = 8


async def _ended(peer: Peer, code: ErrorCode) -> None:
    await peer.until_closed()
    assert peer.goaway_code == code, (peer.goaway_code, peer.goaway_text)
    await peer.close()


FLOODS: dict[str, bytes] = {
    "pings": ping(),
    "acknowledged pings that nobody sent": ping(flags=ACK),
    "settings": frames.settings([(Setting.MAX_CONCURRENT_STREAMS, 7)]),
    "settings of 2,700 windows": frames.settings([(Setting.INITIAL_WINDOW_SIZE, n) for n in range(2_700)]),
    "settings of table sizes": frames.settings([(Setting.HEADER_TABLE_SIZE, n) for n in (0, 2**32 - 1, 4_096)]),
    "acknowledged settings that nobody sent": frames.frame(frames.SETTINGS, ACK, 0),
    "priorities": frames.frame(PRIORITY, 0, 1, 5 * b"\0"),
    "frames of unknown kinds": frames.frame(0x77, 0, 0, 1_000 * b"x"),
    "data without data": data(1, b""),
    "data that is all padding": data(1, b"\xff" + 255 * b"\0", flags=frames.PADDED),
    "resets of a call that is over": frames.rst_stream(3, 8),
    "data of a call that is over": data(3, b"x"),
    "headers of a call that is over": headers(3, block=ONCE),
    "goaways": frames.goaway(0, 0),
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_frames_that_only_make_work(flood: str) -> None:
    async with serving(LIMITS) as served:
        peer = await Peer.greeted(served.port)
        await peer.send(begin(1) + begin(3) + frames.rst_stream(3, 8))
        await peer.send((WIRE.controls_burst - GREETING - 1) * FLOODS[flood])
        await peer.settled()  # the last one
        assert not peer.closed
        assert peer.goaway_code is None
        await peer.send(FLOODS[flood])
        await _ended(peer, CALM)
        assert await works(served.port)


async def test_window_updates_beyond_what_was_sent() -> None:
    """Proves that they are allowed by what the client got, and a start."""
    async with serving(LIMITS) as served:
        peer = await Peer.greeted(served.port)
        await peer.send(call(1))
        await peer.answered(1)
        allowed = WIRE.controls_burst + UPDATES_PER_STREAM + UPDATES_PER_DATA_FRAME
        await peer.send(allowed * frames.window_update(0, 1))
        await peer.settled()
        assert not peer.closed
        await peer.send(frames.window_update(0, 1))
        await _ended(peer, CALM)


# What a client can do on an open call so that the server has to reset it: CVE-2025-8671.
MADE: dict[str, Callable[[int], bytes]] = {
    "a window update of 0": lambda n: begin(n) + frames.window_update(n, 0),
    "a window beyond 2 GiB": lambda n: begin(n) + frames.window_update(n, 2**31 - 1),
    "data after the end": lambda n: call(n, SILENCE) + data(n),
    "headers after the end": lambda n: call(n, SILENCE) + headers(n, block=ONCE),
    "headers that do not end it": lambda n: begin(n) + headers(n, ended=False, block=ONCE),
    "a length that is not kept": lambda n: begin(n, block("Silence", (b"content-length", b"1"))) + data(n),
    "headers that are malformed": lambda n: headers(n, block=block("Silence", (b"connection", b"close"))),
    "headers that are too many": lambda n: headers(n, block=block("Silence", (b"x", 8_192 * b"x"))),
}


@pytest.mark.parametrize("way", ["given up", *MADE])
async def test_calls_that_are_opened_to_end(way: str) -> None:
    """Proves CVE-2023-44487 (given up) and CVE-2025-8671 (made to be reset) at the limit and one beyond."""
    opened = MADE.get(way, lambda n: begin(n) + frames.rst_stream(n, 8))
    async with serving(LIMITS) as served:
        peer = await Peer.greeted(served.port)
        for number in range(WIRE.resets_burst):
            await peer.send(opened(2 * number + 1))
        await peer.settled()
        assert not peer.closed
        if way != "given up":
            assert all(peer.reset_code(2 * number + 1) is not None for number in range(WIRE.resets_burst))
        await peer.send(opened(2 * WIRE.resets_burst + 1))
        await _ended(peer, CALM)
        assert len(served.seen) <= WIRE.resets_burst + 1
        await eventually(lambda: all(each.gone == 1 for each in served.seen))
        assert await works(served.port)


@pytest.mark.parametrize("length", [0, 16_384])
async def test_a_header_block_without_end(length: int) -> None:
    """Proves CVE-2024-27316: neither many small CONTINUATIONs nor few large ones are kept."""
    more = frames.frame(CONTINUATION, 0, 3, length * b"x")
    async with serving(LIMITS) as served:
        peer = await Peer.greeted(served.port)
        parts = [ONCE[at : at + 10] for at in range(0, 10 * WIRE.continuations_max, 10)]
        rest = ONCE[10 * len(parts) :]
        await peer.send(headers(1, ended=False, block=parts[0], flags=0))
        for part in parts[1:]:
            await peer.send(frames.frame(CONTINUATION, 0, 1, part))
        await peer.send(frames.frame(CONTINUATION, END_HEADERS, 1, rest) + data(1, framed(b"token"), ended=True))
        assert await peer.answered(1)
        assert grpc_status(peer, 1) == 0
        connection = next(iter(served.server._ends)).endpoint.connection
        await peer.send(headers(3, block=b"", flags=0) + WIRE.continuations_max * more)
        await eventually(lambda: connection._block and len(connection._block[2]) == WIRE.continuations_max + 1)
        await peer.send(more)
        await peer.until_closed()
        assert connection.fault is not None
        assert connection.fault.code == CALM
        await peer.close()
        assert await works(served.port)


async def test_headers_as_large_as_allowed_and_one_byte_more() -> None:
    usual = sum(len(name) + len(value) + 32 for name, value in _fields("Once"))
    room = WIRE.header_list_bytes_max - usual - 32 - len(b"x")
    async with serving(LIMITS) as served:
        peer = await Peer.greeted(served.port)
        await peer.send(call(1, block("Once", (b"x", room * b"v"))))
        assert await peer.answered(1)
        await peer.send(headers(3, block=block("Once", (b"x", (room + 1) * b"v"))))
        await peer.settled()
        assert peer.reset_code(3) == CALM
        await peer.send(call(5))
        assert await peer.answered(5)
        await peer.close()


def _fields(method: str) -> list[tuple[bytes, bytes]]:
    return [(bytes(n), bytes(v)) for n, v in Decoder().decode(block(method), raw=True)]


async def test_a_header_block_that_grows_a_thousandfold() -> None:
    """Proves that a block of references to one large header (an HPACK bomb) is given up while it grows."""
    async with serving(LIMITS) as served:
        peer = await Peer.greeted(served.port)
        await peer.send(headers(1, block=ONCE + b"\x40" + literal(b"x-a", 3_000 * b"v")[1:]))
        await peer.send(headers(3, block=16_000 * b"\xbe"))
        await _ended(peer, CALM)
        assert await works(served.port)


@pytest.mark.parametrize("updates", [b"\x3f\xe2\x1f", b"\x3f\xff\xff\xff\xff\x0f"])
async def test_a_table_beyond_what_we_allow(updates: bytes) -> None:
    async with serving(LIMITS) as served:
        peer = await Peer.greeted(served.port)
        await peer.send(headers(1, block=1_000 * b"\x20\x3f\xe1\x1f" + ONCE) + data(1, framed(b"token"), ended=True))
        assert await peer.answered(1)
        await peer.send(headers(3, block=updates + ONCE))
        await _ended(peer, ErrorCode.COMPRESSION_ERROR)


async def test_calls_at_once_on_one_connection() -> None:
    async with serving(LIMITS) as served:
        peer = await Peer.greeted(served.port)
        for number in range(WIRE.streams_max + 1):
            await peer.send(begin(2 * number + 1))
        await peer.settled()
        codes = [peer.reset_code(2 * number + 1) for number in range(WIRE.streams_max + 1)]
        assert codes == WIRE.streams_max * [None] + [ErrorCode.REFUSED_STREAM]
        await peer.send(frames.rst_stream(1, 8) + call(101))
        assert await peer.answered(101)
        await peer.close()


async def test_connections_at_once() -> None:
    async with serving(LIMITS) as served:
        peers = [await Peer.greeted(served.port) for _ in range(LIMITS.connections_max)]
        assert served.server.gate.open == LIMITS.connections_max
        late = await Peer.connected(served.port)
        await late.until_closed()
        assert late.frames == []
        assert served.server.gate.turned_away == 1
        await peers.pop().close()
        await eventually(lambda: served.server.gate.open == LIMITS.connections_max - 1)
        assert await works(served.port)
        for peer in (late, *peers):
            await peer.close()


@pytest.mark.parametrize("declared", [CALLS.message_bytes_max + 1, 2**32 - 1])
async def test_messages_as_large_as_allowed_and_one_byte_more(declared: int) -> None:
    """Proves that a message is refused by its prefix, before it comes."""
    async with serving(LIMITS) as served:
        peer = await Peer.greeted(served.port)
        message = framed(CALLS.message_bytes_max * b"x")
        await peer.send(begin(1, ONCE) + data(1, message[:10_000]) + data(1, message[10_000:], ended=True))
        assert await peer.answered(1)
        assert peer.content(1) == message
        await peer.send(begin(3, ONCE) + data(3, b"\0" + declared.to_bytes(4, "big")))
        assert await peer.answered(3)
        assert grpc_status(peer, 3) == RESOURCE_EXHAUSTED
        await peer.close()


async def test_parts_of_messages_on_one_connection_and_on_all() -> None:
    """Proves that calls which never come whole hold little memory, and that whole ones go on beside them."""
    part = framed(CALLS.message_bytes_max * b"x")[:15_000]
    async with serving(LIMITS) as served:
        first, second = await Peer.greeted(served.port), await Peer.greeted(served.port)
        for stream_id in (1, 3, 5):  # 45,000 of 50,000
            await first.send(begin(stream_id) + data(stream_id, part))
        await first.settled()
        assert served.server.tally.waiting_bytes == 45_000
        await first.send(begin(7) + data(7, part))
        assert await first.answered(7)
        assert grpc_status(first, 7) == RESOURCE_EXHAUSTED
        for stream_id in (1, 3):  # 75,000 of 80,000
            await second.send(begin(stream_id) + data(stream_id, part))
        await second.settled()
        assert served.server.tally.waiting_bytes == 75_000
        await second.send(begin(5) + data(5, part))
        assert await second.answered(5)
        assert grpc_status(second, 5) == RESOURCE_EXHAUSTED
        assert await works(served.port)
        await first.close()
        await second.close()
        await eventually(lambda: served.server.tally.waiting_bytes == 0)


class _Holding(Echo):
    """Takes no more from the network than the window that is open."""

    def __init__(self, call: ServerCall, seen: list[Echo]) -> None:
        super().__init__(call, seen)
        call.hold()


async def test_content_beyond_the_window_of_a_call() -> None:
    wire = replace(WIRE, stream_window_bytes=65_535)
    calls = CallLimits(message_bytes_max=100_000)
    held: list[Echo] = []
    async with serving(
        replace(LIMITS, connection=wire, calls=calls),
        add=lambda server: server.serve(SERVICE, {"Hold": lambda call: _Holding(call, held)}),
    ) as served:
        peer = await Peer.greeted(served.port)
        message = framed(80_000 * b"x")
        parts = [message[at : at + 13_107] for at in range(0, 65_535, 13_107)]
        await peer.send(begin(1, block("Hold")) + b"".join(data(1, part) for part in parts))
        await peer.settled()
        assert peer.reset_code(1) is None
        await peer.send(data(1, b"x"))
        await peer.settled()
        assert peer.reset_code(1) == ErrorCode.FLOW_CONTROL_ERROR
        await eventually(lambda: held[0].gone == 1)
        assert await works(served.port)
        await peer.close()


async def test_content_beyond_the_window_of_a_connection() -> None:
    """Proves that one frame cannot be larger than what the connection has left open, however many calls share it."""
    wire = replace(WIRE, frame_bytes_max=1 << 17, connection_window_bytes=65_535)
    async with serving(replace(LIMITS, connection=wire)) as served:
        peer = await Peer.greeted(served.port)
        await peer.send(begin(1) + data(1, framed(20_000 * b"x")))
        await peer.settled()
        assert not peer.closed
        connection = next(iter(served.server._ends)).endpoint.connection
        await peer.send(begin(3) + data(3, 65_536 * b"x"))
        await peer.until_closed()
        assert connection.fault is not None
        assert connection.fault.code == ErrorCode.FLOW_CONTROL_ERROR
        await peer.close()


async def test_answers_that_wait_for_a_reader_without_a_window() -> None:
    """Proves that what waits for a client's window is what was sent, and no more is sent meanwhile."""
    settings = ((Setting.INITIAL_WINDOW_SIZE, 1),)
    async with serving(LIMITS) as served:
        peer = await Peer.greeted(served.port, settings=settings)
        await peer.send(call(1, THRICE, 10_000 * b"x"))
        await peer.settled()
        assert len(peer.content(1)) == 1
        for _ in range(30):
            await peer.send(frames.window_update(1, 1))
        await peer.settled()
        assert len(peer.content(1)) == 31
        await peer.send(frames.window_update(1, 1 << 20))
        assert await peer.answered(1)
        assert peer.content(1) == 3 * framed(10_000 * b"x")
        await peer.close()


async def test_requests_of_a_peer_that_reads_no_answers() -> None:
    """Proves that answers nobody reads are bounded: further requests are refused, then the peer is given up."""
    wire = replace(WIRE, answers_max=20, resets_burst=1_000)
    async with serving(replace(LIMITS, connection=wire)) as served:
        peer = await Peer.connected(served.port, receive_bytes=4_096)
        await peer.send(frames.PREFACE + frames.settings([(Setting.INITIAL_WINDOW_SIZE, 1 << 30)]))
        await peer.send(frames.window_update(0, 1 << 30))
        end = next(iter(served.server._ends))
        stream_id = 1

        async def asks() -> None:
            nonlocal stream_id
            while end.endpoint.connection.fault is None and not end.endpoint.lost.done():
                await peer.send(call(stream_id, THRICE, 10_000 * b"x"))
                stream_id += 2

        asking = asyncio.create_task(asks())
        await eventually(lambda: end.endpoint.connection.fault is not None, 30)
        assert end.endpoint.connection.fault is not None
        assert end.endpoint.connection.fault.code == CALM
        asking.cancel()
        await eventually(end.endpoint.lost.done)
        assert await works(served.port)
        await peer.close()
