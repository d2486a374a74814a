"""In whatever state a client leaves us, the server lets go: of its call, of its connection, of what it was given.

All of them come at once to one server with little patience, beside a client that is served all the time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trustme

from data_plane.relay.grpc.framing import framed
from data_plane.relay.grpc.limits import CallLimits
from data_plane.relay.http2 import frames
from data_plane.relay.http2.endpoint import Patience
from data_plane.relay.http2.frames import PREFACE, ErrorCode, Setting
from data_plane.relay.server import ServerLimits
from tests.integration.relay_defence.calls import ONCE, SILENCE, THRICE, begin, block, call, grpc_status, works
from tests.integration.relay_defence.peer import Peer, data, headers
from tests.support.waiting import eventually
from tests.unit.relay.server.serving import Served, serving

HURRIED = ServerLimits(
    handshake_s=1.0,
    calls=CallLimits(request_s=1.0, unread_s=1.0),
    patience=Patience(greeting_s=1.0, stuck_s=1.0, silence_s=1.0, answer_s=1.0, idle_s=2.0),
)
LET_GO_S = 30.0
"""Far beyond any patience above."""

DRIP_S = 0.1
DEADLINE_EXCEEDED = 4


async def _drip(peer: Peer, content: bytes) -> None:
    """Sends byte by byte, so that it is never silent, until the connection is closed."""
    while not peer.closed:
        for at in range(len(content)):
            await peer.send(content[at : at + 1])
            await asyncio.sleep(DRIP_S)
            if peer.closed:
                return


async def _pongs(peer: Peer) -> None:
    """Answers every ping."""
    answered = 0
    while not peer.closed:
        await asyncio.sleep(DRIP_S)
        pings = [each for each in peer.frames if each.kind == frames.PING and not each.flags & frames.ACK]
        for each in pings[answered:]:
            await peer.send(frames.frame(frames.PING, frames.ACK, 0, each.payload))
        answered = len(pings)


async def _says(peer: Peer, content: bytes) -> None:
    await peer.send(content)


GREETING = PREFACE + frames.settings(())
CLOSED: dict[str, Callable[[Peer], Awaitable[None]]] = {
    "nothing": lambda peer: _says(peer, b""),
    "half a preface": lambda peer: _says(peer, PREFACE[:10]),
    "a preface, byte by byte": lambda peer: _drip(peer, PREFACE[:-1]),
    "a preface": lambda peer: _says(peer, PREFACE),
    "half of its settings": lambda peer: _says(peer, GREETING[:-4]),
    "a greeting": lambda peer: _says(peer, GREETING),
    "half of a frame's head": lambda peer: _says(peer, GREETING + b"\0\0"),
    "half a header block": lambda peer: _says(peer, GREETING + headers(1, block=ONCE[:10], flags=0)),
    "a header block, byte by byte": lambda peer: _drip(peer, GREETING + headers(1, block=16_000 * b"x", flags=0)[:200]),
    "a call that is not answered, and no sign of life": lambda peer: _says(peer, GREETING + call(1, SILENCE)),
    "a call's headers, and no sign of life": lambda peer: _says(peer, GREETING + begin(1)),
}
"""What a client says before it says no more: its connection is closed."""


def _window(size: int) -> bytes:
    return PREFACE + frames.settings([(Setting.INITIAL_WINDOW_SIZE, size)])


ENDED: dict[str, tuple[bytes, bytes, int | None]] = {
    "a call's headers": (GREETING + begin(1), b"", DEADLINE_EXCEEDED),
    "half of a message's prefix": (GREETING + begin(1) + data(1, b"\0\0"), b"", DEADLINE_EXCEEDED),
    "half of a message": (GREETING + begin(1) + data(1, framed(b"token")[:-1]), b"", DEADLINE_EXCEEDED),
    "a message, byte by byte": (
        GREETING + begin(1) + data(1, framed(10_000 * b"x")[:5]),
        data(1, b"x"),
        DEADLINE_EXCEEDED,
    ),
    "a message, and not that it was the last": (
        GREETING + begin(1) + data(1, framed(b"token")),
        b"",
        DEADLINE_EXCEEDED,
    ),
    "a deadline, at a method that never answers": (
        GREETING + call(1, block("Silence", (b"grpc-timeout", b"500m"))),
        b"",
        DEADLINE_EXCEEDED,
    ),
    "no window for the answer": (_window(0) + call(1), b"", None),
    "a window of a byte at a time": (_window(1) + call(1, THRICE, 9_000 * b"x"), frames.window_update(1, 1), None),
}
"""What a client says, and goes on saying while it answers every ping: its call ends, by a status or by a reset."""


async def _is_closed(served: Served, say: Callable[[Peer], Awaitable[None]]) -> None:
    peer = await Peer.connected(served.port)
    saying = asyncio.create_task(say(peer))
    async with asyncio.timeout(LET_GO_S):
        await peer.until_closed()
    await saying
    await peer.close()


async def _is_ended(served: Served, said: bytes, more: bytes, status: int | None) -> None:
    peer = await Peer.connected(served.port)
    await peer.send(said)
    ponging = asyncio.create_task(_pongs(peer))
    dripping = asyncio.create_task(_goes_on(peer, more))
    async with asyncio.timeout(LET_GO_S):
        await peer.answered(1)
    assert grpc_status(peer, 1) == status
    if status is None:
        assert peer.reset_code(1) == ErrorCode.CANCEL
    dripping.cancel()
    # Without a call the connection is idle, and closed for that; a client that answers pings is not waited for longer.
    async with asyncio.timeout(LET_GO_S):
        await peer.until_closed()
    assert peer.goaway_code == ErrorCode.NO_ERROR
    await ponging
    await peer.close()


async def _goes_on(peer: Peer, more: bytes) -> None:
    while more and not peer.closed:
        await asyncio.sleep(DRIP_S)
        await peer.send(more)


async def test_every_state_is_left() -> None:
    async with serving(HURRIED) as served:
        serves = True

        async def is_served() -> None:
            while serves:
                assert await works(served.port)
                await asyncio.sleep(DRIP_S)

        beside = asyncio.create_task(is_served())
        async with asyncio.TaskGroup() as group:
            for say in CLOSED.values():
                group.create_task(_is_closed(served, say))
            for said, more, status in ENDED.values():
                group.create_task(_is_ended(served, said, more, status))
        serves = False
        await beside
        await eventually(lambda: served.server.gate.open == 0)
        assert served.server.tally.waiting_bytes == 0
        assert all(each.gone == 1 for each in served.seen if each.call.method.endswith("Silence"))


async def test_an_answer_that_nobody_reads_is_dropped_with_its_connection() -> None:
    """Proves that a client whose network takes nothing is given up, and what waited for it."""
    async with serving(replace(HURRIED, calls=CallLimits(unread_s=60.0))) as served:
        peer = await Peer.connected(served.port, receive_bytes=4_096)
        await peer.send(_window(1 << 30) + frames.window_update(0, 1 << 30))
        await eventually(lambda: served.server.gate.open == 1)
        for number in range(3):
            await peer.send(begin(2 * number + 1, THRICE))
            message = framed(3_000_000 * b"x")
            for at in range(0, len(message), 16_000):
                ended = at + 16_000 >= len(message)
                await peer.send(data(2 * number + 1, message[at : at + 16_000], ended=ended))
        await eventually(lambda: served.server.gate.open == 0, LET_GO_S)
        assert await works(served.port)
        await peer.close()


@pytest.mark.parametrize("beside", [b"", begin(1)], ids=["alone", "beside a call"])
async def test_a_header_block_that_never_ends_is_not_kept_for_long(beside: bytes) -> None:
    """Proves that parts of headers are dropped long before an idle connection is, also of a client that goes on."""
    patience = Patience(greeting_s=1.0)
    async with serving(ServerLimits(patience=patience)) as served:
        peer = await Peer.connected(served.port)
        await peer.send(GREETING + beside + headers(3, block=ONCE[:10], flags=0))
        dripping = asyncio.create_task(_drip(peer, frames.frame(frames.CONTINUATION, 0, 3, 16_000 * b"x")))
        async with asyncio.timeout(LET_GO_S):
            await peer.until_closed()
        await dripping
        await eventually(lambda: served.server.gate.open == 0)
        await peer.close()


async def test_a_client_that_says_no_more_is_left_at_once() -> None:
    """Proves that half a connection is none: whoever shuts its sending side is gone, with its calls."""
    async with serving() as served:
        peer = await Peer.greeted(served.port)
        await peer.send(begin(1))
        await eventually(lambda: served.seen)
        plain = peer.writer.get_extra_info("socket")
        plain.shutdown(socket.SHUT_WR)
        await peer.until_closed()
        await eventually(lambda: served.seen[0].gone == 1)
        await eventually(lambda: served.server.gate.open == 0)
        await peer.close()


async def test_handshakes_that_do_not_go_on() -> None:
    """Proves for TLS: connections that say nothing, say half, or say something else, are counted and closed."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    authority.issue_cert("router").configure_cert(context)
    async with serving(HURRIED, tls=context) as served:
        for said in (b"", b"\x16\x03\x01\x02\x00\x01", GREETING):
            peer = await Peer.connected(served.port)
            await peer.send(said)
            async with asyncio.timeout(LET_GO_S):
                await peer.until_closed()
            await peer.close()
        await eventually(lambda: served.server.gate.open == 0)
        assert served.server.gate.handshakes_failed == 3
