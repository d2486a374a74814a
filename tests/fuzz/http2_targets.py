"""HTTP/2 under any bytes: what always holds, whatever a peer sends and however its bytes are cut.

The only exceptions are faults; the handler is told a stream's life in order and its end once; windows are never
negative on our side and never overrun on the peer's; streams, what is kept and what is sent are bounded by limits and
by what came; and so is the work.
"""

from __future__ import annotations

from hpack import Decoder

from data_plane.relay.http2 import frames
from data_plane.relay.http2.connection import Connection
from data_plane.relay.http2.frames import (
    END_HEADERS,
    END_STREAM,
    HEAD_BYTES,
    PREFACE,
    STREAM_MAX,
    WINDOW_MAX,
    WINDOW_START,
    ConnectionFaultError,
    Setting,
)
from data_plane.relay.http2.header_blocks import (
    TABLE_BYTES_MAX,
    Fields,
    HeaderDecoder,
    Pairs,
    TooLargeError,
    encoded,
    literal,
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
LINES_PER_OWN = 250
"""Measured: a header of one byte costs the most, about 25 lines; an own call below 100."""

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


def _connection(*, client: bool, eager: bool) -> tuple[Connection, Watcher]:
    watcher = Watcher(eager=eager)
    watcher.connection = Connection(watcher, LIMITS, client=client, now_s=0.0)
    return watcher.connection, watcher


def _check(connection: Connection) -> None:
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
    core, _ = _connection(client=client, eager=bool(first & 16))
    if client:
        for _ in range(3):
            core.end(core.open(encoded(REQUEST)))
    sent = len(core.take())
    came = b"" if client or not greeted else PREFACE
    came += (frames.settings(()) if greeted else b"") + chances.rest()
    with Work() as work:
        for at in range(0, len(came), cut):
            core.receive(came[at : at + cut], at / 1_000.0)
            _check(core)
            if first & 32:
                sent += len(core.take())
    sent += len(core.take())
    assert sent <= OUTPUT_START + OUTPUT_PER_BYTE * len(came), (sent, len(came))
    # Every piece costs some, and every check's look at `finished`.
    pieces = len(came) // cut + 1
    assert work.lines <= LINES_START + LINES_PER_BYTE * len(came) + 60 * pieces, (work.lines, len(came))


class Exchange:
    """A peer that mostly keeps to the rules, our end, and a program on it that does this and that.

    Args:
        client: Whether our end opens the streams.
        chances: What happens.
    """

    def __init__(self, *, client: bool, chances: Chances) -> None:
        self.chances = chances
        self.core, self.watcher = _connection(client=client, eager=bool(chances.byte() & 1))
        self.client = client
        self.now_s = 0.0
        self.came = self.own = self.own_bytes = 0
        self.paused = False
        self.next_id = 1
        self.last = b""
        self.windows: dict[int, int] = {}  # what we may send, as the peer knows it
        self.window = self.start = WINDOW_START
        self.core.take()  # the greeting
        self.actions = (
            self._request, self._request, self._head, self._data, self._settings, self._window_update, self._rst_stream,
            self._ping, self._odd, self._again, self._open, self._answer, self._send, self._send_much, self._end,
            self._reset, self._network, self._time, self._hold, self._drain,
        )  # fmt: skip

    def run(self) -> None:
        with Work() as work:
            self._receive((b"" if self.client else PREFACE) + frames.settings(()))
            while self.chances.left and self.core.fault is None:
                self.actions[self.chances.byte() % len(self.actions)]()
                self._take()
                _check(self.core)
        budget = LINES_START + LINES_PER_BYTE * self.came + LINES_PER_OWN * self.own + self.own_bytes // 20
        assert work.lines <= budget, (work.lines, budget)

    # --- what the peer does

    def _receive(self, data: bytes) -> None:
        cut = 1 + self.chances.byte() if self.came % 3 == 0 else 1 << 20
        for at in range(0, len(data), cut):
            self.came += len(data[at : at + cut])
            self.core.receive(data[at : at + cut], self.now_s)
        self.own += len(data) // cut

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self.last = frames.frame(kind, flags, stream_id, payload)
        self._receive(self.last)

    def _stream_id(self) -> int:
        known = sorted(self.core.streams)
        choice = self.chances.byte()
        if choice < 200 and known:
            return known[choice % len(known)]
        return choice & 0x0F

    def _block(self) -> bytes:
        choice = self.chances.byte()
        if choice < 160:
            return encoded((REQUEST, ANSWER, TRAILERS)[choice % 3])
        if choice < 200:
            return literal(b"x-" + self.chances.some().hex().encode(), self.chances.some().hex().encode())
        if choice < 220:
            return b"\x40" + literal(b"x-a", self.chances.some())[1:]  # it enters the table
        return self.chances.some()

    def _request(self) -> None:
        count = 1 + (self.chances.byte() & 15)
        for _ in range(count):
            if self.client:
                self._frame(frames.HEADERS, END_HEADERS, self._stream_id(), encoded(ANSWER))
            else:
                self._frame(frames.HEADERS, END_HEADERS | count & END_STREAM, self.next_id, encoded(REQUEST))
                self.next_id += 2

    def _head(self) -> None:
        flags = self.chances.byte() & (END_STREAM | END_HEADERS | frames.PADDED | frames.PRIORITIZED)
        stream_id, block = self._stream_id(), self._block()
        if not flags & END_HEADERS:
            cut = self.chances.byte() % (len(block) + 1)
            self._frame(frames.HEADERS, flags, stream_id, block[:cut])
            self._frame(frames.CONTINUATION, self.chances.byte() & END_HEADERS, stream_id, block[cut:])
        else:
            self._frame(frames.HEADERS, flags, stream_id, block)

    def _data(self) -> None:
        length = self.chances.one_of(5, 16_384, 16_384, 1_000, 0, min(self.chances.number(), 16_384))
        self._frame(frames.DATA, self.chances.byte() & 9, self._stream_id(), b"\x05" * length)

    def _settings(self) -> None:
        name = self.chances.byte() % 8
        value = self.chances.number()
        parameters = [(name, value)] * (1 + self.chances.byte() % 40)
        before = self.core.fault
        self._frame(frames.SETTINGS, 0, 0, b"".join(n.to_bytes(2, "big") + v.to_bytes(4, "big") for n, v in parameters))
        if before is None and self.core.fault is None and name == Setting.INITIAL_WINDOW_SIZE:
            for stream_id in self.windows:
                self.windows[stream_id] += value - self.start
            self.start = value

    def _window_update(self) -> None:
        stream_id = self._stream_id() if self.chances.byte() & 1 else 0
        increment = self.chances.one_of(1, 100, 40_000, self.chances.number())
        if stream_id:
            if stream_id in self.core.streams:
                self._window_of(stream_id)
                self.windows[stream_id] += increment
        else:
            self.window += increment
        self._receive(frames.window_update(stream_id, increment & 0xFFFFFFFF))

    def _rst_stream(self) -> None:
        self._receive(frames.rst_stream(self._stream_id(), 8))

    def _ping(self) -> None:
        payload = b"draining" if self.chances.byte() & 1 else 8 * b"p"
        self._frame(frames.PING, self.chances.byte() & frames.ACK, 0, payload)

    def _odd(self) -> None:
        kind, flags = self.chances.byte() % 12, self.chances.byte()
        if kind not in (frames.SETTINGS, frames.WINDOW_UPDATE):
            self._frame(kind, flags, self._stream_id(), self.chances.some())

    def _again(self) -> None:
        for _ in range(self.chances.byte() % 64):
            if self.last and self.last[3] != frames.SETTINGS:
                self._receive(self.last)

    # --- what our program does

    def _some(self) -> Stream | None:
        known = sorted(self.core.streams)
        self.own += 1
        return self.core.streams[known[self.chances.byte() % len(known)]] if known else None

    def _open(self) -> None:
        if self.client and self.core.can_open and len(self.core.streams) < LIMITS.streams_max:
            self.own += 1
            ended = bool(self.chances.byte() & 1)
            stream = self.core.open(encoded(REQUEST), ended=ended)
            self._window_of(stream.id)

    def _answer(self) -> None:
        stream = self._some()
        if stream is not None and not self.client:
            self.core.send_head(stream, encoded(ANSWER))

    def _send(self) -> None:
        stream = self._some()
        if stream is not None:
            for _ in range(1 + (self.chances.byte() & 7)):
                self.own += 1
                self.core.send_data(stream, b"token")

    def _send_much(self) -> None:
        stream = self._some()
        if stream is not None:
            length = self.chances.one_of(70_000, 20_000, 100, min(self.chances.number(), 100_000))
            self.own += 1 + length // 1_000
            self.own_bytes += length
            self.core.send_data(stream, length * b"x")

    def _end(self) -> None:
        stream = self._some()
        if stream is not None:
            self.core.end(stream, encoded(TRAILERS) if self.chances.byte() & 1 and not self.client else b"")

    def _reset(self) -> None:
        stream = self._some()
        if stream is not None:
            self.core.reset(stream)
            self.watcher.over.add(stream.id)

    def _network(self) -> None:
        self.own += 1 + len(self.core.streams)
        self.paused = bool(self.chances.byte() & 1)
        if self.paused:
            self.core.pause()
        else:
            self.core.resume()

    def _time(self) -> None:
        self.now_s += self.chances.byte() / 10.0

    def _hold(self) -> None:
        stream = self._some()
        if stream is not None and self.chances.byte() & 1:
            self.core.release(stream)
        elif stream is not None:
            self.core.hold(stream)

    def _drain(self) -> None:
        self.own += 1
        self.core.drain()

    # --- what goes out

    def _window_of(self, stream_id: int) -> int:
        return self.windows.setdefault(stream_id, self.start)

    def _take(self) -> None:
        if self.paused and self.core.fault is None:
            return
        out = self.core.take()
        if self.core.fault is None:
            # What waited goes on as soon as what was before it is written.
            while more := self.core.take():
                out += more
        at = 0
        while at < len(out):
            length, kind, flags, stream_id = frames.read_head(out, at)
            assert length <= max(frames.FRAME_BYTES_START, self.core._peer_frame_bytes)
            if kind == frames.DATA and length and self.core.fault is None:
                self.window -= length
                assert self.window >= 0
                self.windows[stream_id] = self._window_of(stream_id) - length
                assert self.windows[stream_id] >= 0
            assert kind != frames.WINDOW_UPDATE or frames.read_u32(out, at + HEAD_BYTES) & STREAM_MAX
            assert flags & ~(END_STREAM | END_HEADERS) == 0
            at += HEAD_BYTES + length
        assert at == len(out)


def frames_of_a_peer(data: bytes) -> None:
    """Frames that mostly make sense, and a program that answers, waits, gives up and drains in between."""
    chances = Chances(data)
    Exchange(client=bool(chances.byte() & 1), chances=chances).run()


def headers(data: bytes) -> None:
    """Header blocks, one after the other: what is understood is what the `hpack` package understands."""
    chances = Chances(data)
    ours, reference = HeaderDecoder(LIMITS.header_list_bytes_max), Decoder(1 << 30)
    reference.max_allowed_table_size = TABLE_BYTES_MAX
    came = 0
    with Work() as work:
        while chances.left:
            choice = chances.byte()
            block = chances.take(choice & 0x3F)
            # The same block again means the same again.
            for _ in range(2 if choice & 0x40 else 1):
                came += 1 + len(block)
                try:
                    fields = ours.decode(block)
                except TooLargeError:
                    reference.decode(block, raw=True)
                    continue
                except ConnectionFaultError:
                    _check_work(work, came)
                    return
                assert [tuple(field) for field in reference.decode(block, raw=True)] == list(fields.pairs)
                assert ours._table_bytes == sum(len(n) + len(v) + 32 for n, v in ours._table) <= TABLE_BYTES_MAX
    _check_work(work, came)


def _check_work(work: Work, came: int) -> None:
    assert work.lines <= LINES_START + LINES_PER_BYTE * came, (work.lines, came)
