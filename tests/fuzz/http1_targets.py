"""HTTP/1.1 under any bytes: what is a request, and what becomes of the rest, does not hang on how the network cuts it.

Every request is told to one who serves it once, whole or with a fault; room for bodies is given back; what is answered
and what is done is bounded by what came.
"""

from __future__ import annotations

import asyncio

from data_plane.relay.http1.connection import Connection, Shared
from data_plane.relay.http1.limits import BodyRoom, Limits, Patience
from data_plane.relay.outbox import Outbox
from tests.fuzz.chances import Chances
from tests.fuzz.transport import Transport, within_loop
from tests.fuzz.work import Work
from tests.unit.relay.http1.app import App

LIMITS = Limits(head_bytes_max=400, headers_max=10, body_bytes_max=1_000, bodies_bytes_max=3_000, ahead_bytes_max=2_000)
LINES_START = 4_000
LINES_PER_BYTE = 60
LINES_PER_PIECE = 250
ANSWER_BYTES_MAX = 1_500
CONTENT_BYTES_MAX = 4_000
PIECES_MAX = 200

PARTS: tuple[bytes, ...] = (
    b"POST /echo HTTP/1.1\r\nHost: a\r\n",
    b"GET /echo HTTP/1.1\r\nHost: a\r\n",
    b"POST /stream HTTP/1.1\r\nHost: a\r\n",
    b"POST /nowhere HTTP/1.0\r\n",
    b"HEAD /echo HTTP/1.1\r\nHost: a\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 1001\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: keep-alive, upgrade\r\nUpgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"X-Long: " + 300 * b"v" + b"\r\n",
    b"X-A: b\r\n",
    b"\r\n",
    b"\r\n",
    b"hello",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"0\r\nX-Trailer: t\r\n\r\n",
    b"5;extension=x\r\nhello\r\n",
    b"fffffffffffffffff\r\n",
    b" ",
    b"\n",
    b"\r",
    b"\0",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n",
)

Told = list[tuple[str, str, bytes | None, int | None]]


def _content(chances: Chances) -> bytes:
    content = b""
    while chances.left and len(content) < CONTENT_BYTES_MAX:
        choice = chances.byte()
        content += PARTS[choice % 32] if choice % 32 < len(PARTS) else chances.take(choice >> 5)
    return content


def endpoint(data: bytes) -> None:
    """Parts of requests in any order, and bytes between them, whole and in pieces."""
    chances = Chances(data)
    size, content = 1 + chances.byte() % 64, _content(chances)
    size = max(size, len(content) // PIECES_MAX)
    told: list[Told] = []
    for cut in (len(content) or 1, size):
        within_loop(lambda cut=cut: told.append(_serve(content, cut)))  # type: ignore[misc]
    assert told[0] == told[1], told


def _serve(content: bytes, cut: int) -> Told:
    app, room = App(), BodyRoom(LIMITS.bodies_bytes_max)
    shared = Shared(app, LIMITS, Patience(), room, Outbox.here())
    connection, transport = Connection(shared), Transport()
    pieces = [content[at : at + cut] for at in range(0, len(content), cut)]
    with Work() as work:
        connection.connection_made(transport)
        for piece in pieces:
            connection.data_received(piece)
            assert room.taken <= LIMITS.bodies_bytes_max
            assert connection._waiting_bytes <= LIMITS.ahead_bytes_max + len(piece)
            connection.check(asyncio.get_running_loop().time())
    lines_max = LINES_START + LINES_PER_BYTE * len(content) + LINES_PER_PIECE * len(pieces)
    assert work.lines <= lines_max, (work.lines, lines_max)
    told = [
        (seen.call.method, seen.call.path, seen.body, seen.fault.status if seen.fault else None) for seen in app.calls
    ]
    assert len(transport.written) <= ANSWER_BYTES_MAX * (len(app.calls) + 1) + 3 * len(content)
    assert transport.written.count(b"HTTP/1.1 ") <= 2 * len(app.calls) + 1
    connection.connection_lost(None)
    assert room.taken == 0
    for seen in app.calls:
        assert seen.body is None or seen.fault is None
    # Whoever was neither told all nor that it would not come was told that his client is gone.
    assert all(seen.gone or seen.body is not None or seen.fault is not None for seen in app.calls)
    return told
