"""HTTP/2 under a peer that mostly keeps to the rules, and a program on our end that does this and that."""

from __future__ import annotations

from data_plane.relay.http2 import frames
from data_plane.relay.http2.frames import (
    END_HEADERS,
    END_STREAM,
    HEAD_BYTES,
    PREFACE,
    STREAM_MAX,
    WINDOW_START,
    Setting,
)
from data_plane.relay.http2.header_blocks import encoded, literal
from data_plane.relay.http2.stream import Stream
from tests.fuzz.chances import Chances
from tests.fuzz.http2_targets import (
    ANSWER,
    LIMITS,
    LINES_PER_BYTE,
    LINES_START,
    REQUEST,
    TRAILERS,
    begun,
    check,
)
from tests.fuzz.work import Work

LINES_PER_OWN = 250
"""Measured: an own call takes below 100."""


class Exchange:
    """A peer that mostly keeps to the rules, our end, and a program on it that does this and that.

    Args:
        client: Whether our end opens the streams.
        chances: What happens.
    """

    def __init__(self, *, client: bool, chances: Chances) -> None:
        self.chances = chances
        self.core, self.watcher = begun(client=client, eager=bool(chances.byte() & 1))
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
                check(self.core)
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
            head, flags, stream_id = frames.read_u32(out, at), out[at + 4], frames.read_u32(out, at + 5)
            length, kind = head >> 8, head & 0xFF
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
