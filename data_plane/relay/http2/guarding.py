"""The guarded half of a connection: what a peer may send, and what becomes of one that sends too much.

Three kinds of too much: data beyond the windows that were opened to it; frames that are allowed but only make work, and
answers to them that it does not read; streams that end for nothing, be it that it gives them up or that its mistakes
make us do so.
"""

from __future__ import annotations

from typing import Final

from data_plane.relay.http2 import frames
from data_plane.relay.http2.frames import (
    END_STREAM,
    FRAME_BYTES_START,
    HEAD_BYTES,
    PADDED,
    WINDOW_MAX,
    ConnectionFaultError,
    ErrorCode,
    Setting,
)
from data_plane.relay.http2.limits import UPDATES_PER_DATA_FRAME, UPDATES_PER_STREAM, Allowance, Limits
from data_plane.relay.http2.sending import Handler, Sending
from data_plane.relay.http2.stream import Stream

_SENT_FRAME_BYTES_MAX: Final = 1 << 16
"""Longer frames are not sent to a peer that takes them: the others on its connection wait for each."""


class Guarding(Sending):
    """See the module.

    Args:
        handler: Whom the connection tells.
        limits: What the peer may cost.
        client: Whether this end opens the streams.
        now_s: Monotonic now.

    Attributes:
        now_s: When something came last.
        data_frames: So many came.
    """

    def __init__(self, handler: Handler, limits: Limits, *, client: bool, now_s: float) -> None:
        super().__init__(handler, client=client, receive_window=limits.stream_window_bytes)
        self._limits = limits
        self.now_s = now_s
        self._last_id = 0  # the highest stream that the peer has opened
        self.data_frames = 0
        self._receive_window = limits.connection_window_bytes
        self._credit_below = limits.connection_window_bytes // 2 + 1
        self._stream_credit_below = limits.stream_window_bytes // 2 + 1
        self._updates = self._sent_before = 0
        self._resets = Allowance(limits.resets_burst, limits.resets_per_s, now_s)
        self._controls = Allowance(limits.controls_burst, limits.controls_per_s, now_s)

    def hold(self, stream: Stream) -> None:
        """The peer may send no more on a stream than its window is open now."""
        stream.held = True
        stream.quick = False

    def release(self, stream: Stream) -> None:
        """And now it may again."""
        stream.held = False
        stream.quick = stream.headed and not stream.remote_ended and stream.content_left < 0
        if not stream.remote_ended and stream.receive_window < self._stream_credit_below:
            self._credit_stream(stream)

    def _came(self, count: int, length: int) -> None:
        """So many frames of data came, of so many bytes."""
        self.data_frames += count
        if length > self._receive_window:
            raise ConnectionFaultError(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        self._receive_window -= length
        if self._receive_window < self._credit_below:
            self._credit()

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        length = len(payload)
        self._came(1, length)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id)
            self._late_bytes = min(self._late_bytes, self._limits.connection_window_bytes) - length - HEAD_BYTES
            if self._late_bytes < 0:
                self._late_bytes = 0
                self._control("data on streams that are over")
            return
        if stream.remote_ended or not stream.headed:
            self._reset_for_fault(stream, ErrorCode.STREAM_CLOSED if stream.headed else ErrorCode.PROTOCOL_ERROR)
            return
        stream.receive_window -= length
        if stream.receive_window < 0:
            self._reset_for_fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        if flags & PADDED:
            padding = payload[0] + 1 if payload else 1
            if padding > length:
                raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
            payload = payload[1 : length - padding + 1]
        ended = flags & END_STREAM != 0
        if stream.content_left >= 0:
            stream.content_left -= len(payload)
            if stream.content_left < 0 or (ended and stream.content_left):
                self._reset_for_fault(stream, ErrorCode.PROTOCOL_ERROR)
                return
        if ended:
            self._remote_end(stream)
        elif not stream.held and stream.receive_window < self._stream_credit_below:
            self._credit_stream(stream)
        if not payload and not ended:
            self._control("data frames without data")
            return
        self._handler.on_data(stream, payload, ended)

    def _remote_end(self, stream: Stream) -> None:
        stream.remote_ended = True
        stream.quick = False
        if stream.local_ended and stream.ending is None:
            self._close(stream)

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "settings belong to the connection")
        if len(payload) % 6 or (flags & frames.ACK and payload):
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "settings are of six bytes each")
        self._control("settings")
        if flags & frames.ACK:
            return
        window = self._peer_window
        for name, value in frames.read_parameters(payload):
            if name == Setting.INITIAL_WINDOW_SIZE:
                window = value
                if value > WINDOW_MAX:
                    raise ConnectionFaultError(ErrorCode.FLOW_CONTROL_ERROR, "a window of 2 GiB and more")
            elif name == Setting.MAX_FRAME_SIZE:
                if not FRAME_BYTES_START <= value <= frames.FRAME_BYTES_MAX:
                    raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, f"a MAX_FRAME_SIZE of {value}")
                self._peer_frame_bytes = min(value, _SENT_FRAME_BYTES_MAX)
            elif name == Setting.MAX_CONCURRENT_STREAMS:
                self._peer_streams = value
            elif name == Setting.ENABLE_PUSH and (value > 1 or (self._client and value)):
                raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, f"an ENABLE_PUSH of {value}")
        # First of all: what a wider window lets out would be too much for a peer that has not read this.
        self._answer(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if window != self._peer_window:
            self._resize_windows(window)

    def _resize_windows(self, size: int) -> None:
        difference, self._peer_window = size - self._peer_window, size
        for stream in list(self.streams.values()):
            stream.send_window += difference
            if stream.send_window > WINDOW_MAX:
                raise ConnectionFaultError(ErrorCode.FLOW_CONTROL_ERROR, "a window of 2 GiB and more")
            if stream.queue and stream.id not in self._blocked:
                self._push(stream)

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "a window update is four bytes")
        self._updates += 1
        opened = (self._next_id if self._client else self._last_id + 1) // 2
        allowed = UPDATES_PER_STREAM * opened + UPDATES_PER_DATA_FRAME * self._sent_frames
        if self._updates > self._limits.controls_burst + allowed:
            raise ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "too many window updates")
        increment = frames.read_u32(payload) & WINDOW_MAX
        if not stream_id:
            whole = not self._beyond  # no burst has used up its share of the window
            self._beyond += increment
            if not increment or self._room + self._beyond > WINDOW_MAX:
                code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                raise ConnectionFaultError(code, "a window update of nothing, or beyond 2 GiB")
            if whole:
                self._make_room()
            return
        self._check_known(stream_id)
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        stream.send_window += increment
        if not increment or stream.send_window > WINDOW_MAX:
            self._reset_for_fault(stream, ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR)
        elif stream.queue and stream_id not in self._blocked:
            self._push(stream)

    def _on_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "a priority belongs to a stream")
        if len(payload) != 5:
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "a priority is five bytes")
        self._control("priorities")

    def _reset_for_fault(self, stream: Stream, code: ErrorCode, *, told: bool = True) -> None:
        """Ends a stream for the peer's mistake. Making us do so is as cheap for him as giving up himself."""
        if not self._resets.spend(self.now_s):
            raise ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "too many streams end for mistakes")
        self._answer(frames.rst_stream(stream.id, code))
        self._close(stream)
        if told:
            self._handler.on_reset(stream, code)

    def _check_known(self, stream_id: int) -> None:
        """A frame may come late for a stream that is over, but not for one that never was."""
        opened = self._next_id - 2 if self._client else self._last_id
        if not stream_id & 1 or stream_id > opened:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, f"there is no stream {stream_id}")

    def _credit(self) -> None:
        """Opens the connection's window again."""
        used = self._limits.connection_window_bytes - self._receive_window
        self._out.append(frames.window_update(0, used))
        self._receive_window += used

    def _credit_stream(self, stream: Stream) -> None:
        used = self._limits.stream_window_bytes - stream.receive_window
        self._out.append(frames.window_update(stream.id, used))
        stream.receive_window += used

    def _control(self, what: str) -> None:
        earned, self._sent_before = self._sent_frames - self._sent_before, self._sent_frames
        if not self._controls.spend(self.now_s, earned):
            raise ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, f"too many {what}")

    def _answer(self, answer: bytes) -> None:
        self._answers += 1
        if self._answers > self._limits.answers_max:
            raise ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "too many answers wait to be read")
        self._out.append(answer)
