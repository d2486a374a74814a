"""HTTP/2 under any bytes: what always holds, whatever a peer sends and however its bytes are cut.

The only exceptions are faults; the handler is told a stream's life in order and its end once; windows are never
negative on our side and never overrun on the peer's; streams, what is kept and what is sent are bounded by limits and
by what came; and so is the work.
"""

from __future__ import annotations

from data_plane.relay.http2 import frames
from data_plane.relay.http2.connection import Connection
from data_plane.relay.http2.frames import (
    PREFACE,
    WINDOW_MAX,
)
from data_plane.relay.http2.header_blocks import (
    TABLE_BYTES_MAX,
    Fields,
    Pairs,
    encoded,
)
from data_plane.relay.http2.limits import Limits
from data_plane.relay.http2.stream import Stream
from tests.fuzz.chances import Chances
from tests.fuzz.work import Work

LIMITS = Limits(
    streams_max=40,
    header_block_bytes_max=2_000,
    header_list_bytes_max=4_000,
    continuations_max=3,
    stream_window_bytes=65_535,
    connection_window_bytes=100_000,
    resets_burst=20,
    controls_burst=40,
    answers_max=20,
)
"""So small that a fuzzer reaches them."""

LINES_START = 4_000
LINES_PER_BYTE = 60
"""Measured: a header of one byte costs the most, about 25 lines."""

OUTPUT_START = 600
OUTPUT_PER_BYTE = 3
KEPT_BYTES_MAX = 1 << 20

REQUEST: Pairs = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C"), (b"te", b"trailers"))
ANSWER: Pairs = ((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS: Pairs = ((b"grpc-status", b"0"),)


class Watcher:
    """A handler that fails when it is told a stream's life in the wrong order.

    Args:
        eager: Takes content as it comes; else each stream is held at first.

    Attributes:
        headed: Whose headers came for good.
        streams: Those that are open, as the handler knows it.
    """

    def __init__(self, *, eager: bool) -> None:
        self.eager = eager
        self.connection: Connection | None = None
        self.headed: set[int] = set()
        self.streams: dict[int, Stream] = {}
        self.over: set[int] = set()

    def on_head(self, stream: Stream, fields: Fields, ended: bool) -> None:
        assert stream.id not in self.over
        interim = (fields.header(b":status") or b"")[:1] == b"1"
        assert stream.id not in self.headed
        assert fields.pairs
        self.streams[stream.id] = stream
        if not interim:
            self.headed.add(stream.id)
        if not self.eager and self.connection is not None:
            self.connection.hold(stream)
        self._ended(stream, ended)

    def on_data(self, stream: Stream, data: bytes, ended: bool) -> None:
        assert stream.id not in self.over
        assert stream.id in self.headed
        assert data or ended
        self._ended(stream, ended)

    def on_trailers(self, stream: Stream, fields: Fields) -> None:
        assert stream.id not in self.over
        assert stream.id in self.headed
        assert not any(name[:1] == b":" for name, _ in fields.pairs)
        self._ended(stream, True)

    def on_reset(self, stream: Stream, code: int) -> None:
        assert stream.closed
        assert 0 <= code < 1 << 32
        self.over.add(stream.id)
        assert self.streams.pop(stream.id, stream) is stream

    def on_sent(self, stream: Stream) -> None:
        assert not stream.queue

    def on_pong(self, payload: bytes) -> None:
        assert len(payload) == 8

    def _ended(self, stream: Stream, ended: bool) -> None:
        if ended:
            self.over.add(stream.id)


def begun(*, client: bool, eager: bool) -> tuple[Connection, Watcher]:
    watcher = Watcher(eager=eager)
    watcher.connection = Connection(watcher, LIMITS, client=client, now_s=0.0)
    return watcher.connection, watcher


def check(connection: Connection) -> None:
    """What holds between any two calls."""
    assert connection.fault is None or (connection.finished and not connection.streams)
    assert 0 <= connection._receive_window <= LIMITS.connection_window_bytes
    assert len(connection.streams) <= LIMITS.streams_max
    assert connection._blocked.keys() <= connection.streams.keys()
    for stream_id, stream in connection.streams.items():
        assert stream.id == stream_id
        assert not stream.closed
        assert not (stream.local_ended and stream.remote_ended) or stream.queue
        assert stream.send_window <= WINDOW_MAX
        assert stream.queued_bytes == sum(map(len, stream.queue))
        # What waits, waits for the stream's window or in turn for the connection's.
        assert not stream.queue or stream_id in connection._blocked or stream.send_window <= 0
        assert 0 <= stream.receive_window <= LIMITS.stream_window_bytes
        # Whoever is not held is never left without room to send.
        assert stream.held or stream.remote_ended or 2 * stream.receive_window >= LIMITS.stream_window_bytes
        assert not (stream.quick and (stream.held or stream.remote_ended or not stream.headed))
    assert _kept(connection) <= KEPT_BYTES_MAX


def _kept(connection: Connection) -> int:
    """Bytes that a connection keeps of what its peer sent."""
    decoder = connection._decoder
    assert decoder._table_bytes <= TABLE_BYTES_MAX
    blocks = sum(len(block) + sum(len(n) + len(v) for n, v in fields.pairs) for block, fields in decoder.known.items())
    strings = sum(len(raw) + len(plain) for raw, plain in decoder._strings.items())
    parts = sum(map(len, connection._block[2])) if connection._block is not None else 0
    return len(connection._tail) + blocks + strings + parts


def connection(data: bytes) -> None:
    """Any bytes in any pieces, at either end."""
    chances = Chances(data)
    first = chances.byte()
    client, greeted, cut = bool(first & 1), bool(first & 2), (1, 7, 64, 1 << 20)[first >> 2 & 3]
    core, _ = begun(client=client, eager=bool(first & 16))
    if client:
        for _ in range(3):
            core.end(core.open(encoded(REQUEST)))
    sent = len(core.take())
    came = b"" if client or not greeted else PREFACE
    came += (frames.settings(()) if greeted else b"") + chances.rest()
    with Work() as work:
        for at in range(0, len(came), cut):
            core.receive(came[at : at + cut], at / 1_000.0)
            check(core)
            if first & 32:
                sent += len(core.take())
    sent += len(core.take())
    assert sent <= OUTPUT_START + OUTPUT_PER_BYTE * len(came), (sent, len(came))
    # Every piece costs some, and every check's look at `finished`.
    pieces = len(came) // cut + 1
    assert work.lines <= LINES_START + LINES_PER_BYTE * len(came) + 60 * pieces, (work.lines, len(came))
