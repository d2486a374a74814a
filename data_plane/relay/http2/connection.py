"""One connection of HTTP/2, at either end, without I/O.

    what came  -> receive() -> calls of the handler
    what to do -> open(), send_head(), send_data(), end(), reset(), hold() ... -> take() -> what is to be sent

Nothing here waits or looks at a clock. Whoever owns the connection writes what `take` returns, as soon as the network
accepts it, and closes when `finished` says so.

Data is credited to the peer as it comes, unless the handler holds the stream: then the peer may send what the stream's
window has room for, so a slow reader holds up its own sender and nobody else.

A peer's mistake on a stream ends that stream (RST_STREAM), one on the connection ends that (GOAWAY); what is allowed
but only makes work is counted (`Limits`), and too much of it is a mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from data_plane.relay.http2 import frames
from data_plane.relay.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD_BYTES,
    HEADERS,
    PADDED,
    PREFACE,
    PRIORITIZED,
    STREAM_MAX,
    WINDOW_START,
    ConnectionFaultError,
    ErrorCode,
    Setting,
    read_u32,
)
from data_plane.relay.http2.guarding import Guarding
from data_plane.relay.http2.header_blocks import Fields, HeaderDecoder, TooLargeError
from data_plane.relay.http2.limits import Limits
from data_plane.relay.http2.message_rules import request_fault, response_fault, trailers_fault
from data_plane.relay.http2.sending import Handler
from data_plane.relay.http2.stream import Stream

_DRAIN_PING: Final = b"draining"
_PLAIN: Final = END_HEADERS | PADDED | PRIORITIZED  # of these flags the usual block of headers has the first only


class Connection(Guarding):
    """See the module.

    Args:
        handler: Whom it tells.
        limits: What the peer may cost.
        client: Whether this end opens the streams.
        now_s: Monotonic now.

    Attributes:
        fault: Why the connection is over; None while it is not.
        greeted: The peer has begun with its settings.
        on_greeted: Called then, where somebody waits for it.
    """

    def __init__(self, handler: Handler, limits: Limits, *, client: bool, now_s: float) -> None:
        super().__init__(handler, limits, client=client, now_s=now_s)
        self.fault: ConnectionFaultError | None = None
        self._decoder = HeaderDecoder(limits.header_list_bytes_max)
        self._tail = b""
        self._preface_left = b"" if client else PREFACE
        self.greeted = False
        self.on_greeted: Callable[[], None] | None = None
        self._block: tuple[int, int, list[bytes]] | None = None  # stream, flags, parts of a header block that goes on
        self._block_bytes = 0
        self._last_served = STREAM_MAX  # the highest one that is served after GOAWAY
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {
            HEADERS: self._on_headers,
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_rst_stream,
            frames.SETTINGS: self._on_settings,
            frames.PUSH_PROMISE: self._on_push_promise,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window_update,
            frames.CONTINUATION: self._on_continuation,
        }
        self._greet()

    def _greet(self) -> None:
        limits = self._limits
        parameters = [
            (Setting.INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
            (Setting.MAX_FRAME_SIZE, limits.frame_bytes_max),
            (Setting.MAX_HEADER_LIST_SIZE, limits.header_list_bytes_max),
        ]
        if self._client:
            parameters.insert(0, (Setting.ENABLE_PUSH, 0))
            self._out.append(PREFACE)
        else:
            parameters.insert(0, (Setting.MAX_CONCURRENT_STREAMS, limits.streams_max))
        self._out.append(frames.settings(parameters))
        if limits.connection_window_bytes > WINDOW_START:
            self._out.append(frames.window_update(0, limits.connection_window_bytes - WINDOW_START))

    # --- its end and its windows

    @property
    def finished(self) -> bool:
        """Whether the connection is to be closed once everything is sent."""
        return self.fault is not None or (
            self.leaving and not self.streams and (self._client or self._last_served < STREAM_MAX)
        )

    @property
    def heard_out(self) -> bool:
        """Whether a server that drains knows the last request that it serves."""
        return self._last_served < STREAM_MAX

    @property
    def unfinished(self) -> object:
        """The header block that has not come whole, always the same one; None while there is none."""
        return self._block

    def drain(self) -> None:
        """Takes no new streams, those that are open go on. A server hears the client out for one round trip first, so
        that no request is lost on its way."""
        if self.leaving:
            return
        self.leaving = True
        if self._client:
            self._out.append(frames.goaway(0, ErrorCode.NO_ERROR))
        else:
            self._out.append(frames.goaway(STREAM_MAX, ErrorCode.NO_ERROR))
            self.ping(_DRAIN_PING)

    def fail(self, code: ErrorCode, message: str) -> None:
        """Ends the connection: all streams are over, the peer is told why."""
        if self.fault is None:
            self._fail(ConnectionFaultError(code, message))

    def lost(self) -> None:
        """The network has lost the connection: all streams are over."""
        if self.fault is None:
            self.fault = ConnectionFaultError(ErrorCode.CONNECT_ERROR, "the connection was lost")
            self.leaving = True
            self._abandon()

    # --- what came

    def receive(self, data: bytes, now_s: float) -> None:
        """Takes what the network brought.

        Args:
            data: Any number of bytes, in order.
            now_s: Monotonic now.
        """
        if self.fault is not None:
            return
        self.now_s = now_s
        try:
            self._parse(self._tail + data if self._tail else data)
        except ConnectionFaultError as fault:
            self._fail(fault)

    def _parse(self, data: bytes) -> None:
        at, end = 0, len(data)
        if self._preface_left:
            at = min(end, len(self._preface_left))
            if data[:at] != self._preface_left[:at]:
                raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "this is not HTTP/2")
            self._preface_left = self._preface_left[at:]
        frame_bytes_max, credit_below = self._limits.frame_bytes_max, self._stream_credit_below
        streams, on_data = self.streams, self._handler.on_data
        count = came = 0  # data that went the short way
        whole = self._block is None
        while end - at >= HEAD_BYTES:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            kind, flags = data[at + 3], data[at + 4]
            stream_id = (data[at + 5] & 0x7F) << 24 | data[at + 6] << 16 | data[at + 7] << 8 | data[at + 8]
            begin = at + HEAD_BYTES
            after = begin + length
            if after > end or length > frame_bytes_max:
                if length > frame_bytes_max:
                    raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
                break
            at = after
            if whole and not flags and kind == DATA:
                stream = streams.get(stream_id)
                if stream is not None and stream.quick and 0 < length <= stream.receive_window:
                    count += 1
                    came += length
                    stream.receive_window -= length
                    if stream.receive_window < credit_below:
                        self._credit_stream(stream)
                    on_data(stream, data[begin:after], False)
                    continue
            if self.fault is not None:
                return
            if came:
                self._came(count, came)
                count = came = 0
            if kind == DATA and whole:
                self._on_data(flags, stream_id, data[begin:after])
            elif kind == HEADERS and whole and stream_id and self.greeted and flags & _PLAIN == END_HEADERS:
                self._on_block(stream_id, flags, data[begin:after])
            else:
                self._on_frame(kind, flags, stream_id, data[begin:after])
                whole = self._block is None
        if came:
            self._came(count, came)
        if self.fault is None:
            self._tail = data[at:] if at < end else b""

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if not self.greeted:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "the first frame must be SETTINGS")
            self.greeted = True
            self._on_settings(flags, stream_id, payload)
            if self.on_greeted is not None:
                self.on_greeted()
            return
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block[0]):
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        handle = self._handlers.get(kind)
        if handle is not None:
            handle(flags, stream_id, payload)
        else:
            self._control("frames of unknown kinds")

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & PADDED:
            padding = payload[0] + 1 if payload else 1
            if padding > len(payload):
                raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
            payload = payload[1 : len(payload) - padding + 1]
        if flags & PRIORITIZED:
            if len(payload) < 5:
                raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "a priority is five bytes")
            payload = payload[5:]
        if not stream_id:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "headers belong to a stream")
        if flags & END_HEADERS:
            self._on_block(stream_id, flags, payload)
        else:
            self._block, self._block_bytes = (stream_id, flags, [payload]), len(payload)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "there is nothing to continue")
        _, first_flags, parts = self._block
        parts.append(payload)
        self._block_bytes += len(payload)
        if len(parts) > self._limits.continuations_max + 1 or self._block_bytes > self._limits.header_block_bytes_max:
            raise ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end")
        if flags & END_HEADERS:
            self._block = None
            self._on_block(stream_id, first_flags, b"".join(parts))

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        """A whole header block came. It is decoded in any case: the next one builds on it."""
        if len(block) > self._limits.header_block_bytes_max:
            raise ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "a header block is too large")
        fields: Fields | None
        try:
            fields = self._decoder.decode(block)
        except TooLargeError:
            fields = None
        ended = flags & END_STREAM != 0
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._client or stream_id <= self._last_id:
                self._check_known(stream_id)
                self._control("headers on streams that are over")
                return
            self._on_request(stream_id, fields, ended)
        elif stream.remote_ended:
            self._reset_for_fault(stream, ErrorCode.STREAM_CLOSED)
        elif fields is None:
            self._reset_for_fault(stream, ErrorCode.ENHANCE_YOUR_CALM)
        elif stream.headed:
            if trailers_fault(fields) or not ended or stream.content_left > 0:
                self._reset_for_fault(stream, ErrorCode.PROTOCOL_ERROR)
                return
            self._remote_end(stream)
            self._handler.on_trailers(stream, fields)
        else:
            self._on_answer(stream, fields, ended)

    def _on_request(self, stream_id: int, fields: Fields | None, ended: bool) -> None:
        if not stream_id & 1:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "a client's streams have odd numbers")
        self._last_id = stream_id
        if stream_id > self._last_served:
            return  # it was told so: it will try elsewhere
        stream = Stream(stream_id, self._peer_window, self._limits.stream_window_bytes)
        unread = self._paused and len(self._out) > self._limits.answers_max
        if unread or len(self.streams) >= self._limits.streams_max:
            self._reset_for_fault(stream, ErrorCode.REFUSED_STREAM, told=False)
            return
        if fields is None:
            self._reset_for_fault(stream, ErrorCode.ENHANCE_YOUR_CALM, told=False)
            return
        if request_fault(fields) or (ended and fields.content_length > 0):
            self._reset_for_fault(stream, ErrorCode.PROTOCOL_ERROR, told=False)
            return
        self.streams[stream_id] = stream
        stream.headed, stream.content_left = True, fields.content_length
        stream.remote_ended = ended
        stream.quick = fields.content_length < 0 and not ended
        self._handler.on_head(stream, fields, ended)

    def _on_answer(self, stream: Stream, fields: Fields, ended: bool) -> None:
        if response_fault(fields) or (fields.interim and ended):
            self._reset_for_fault(stream, ErrorCode.PROTOCOL_ERROR)
            return
        if fields.interim:
            self._control("interim answers")
        elif ended:
            stream.headed = True
            self._remote_end(stream)
        else:
            stream.headed, stream.content_left = True, fields.content_length
            stream.quick = fields.content_length < 0 and not stream.held
        self._handler.on_head(stream, fields, ended)

    def _on_rst_stream(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "a reset is four bytes")
        self._check_known(stream_id)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._control("resets of streams that are over")
            return
        if not self._client and not self._resets.spend(self.now_s):
            raise ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "too many streams are opened to be given up")
        self._close(stream)
        self._handler.on_reset(stream, read_u32(payload))

    def _on_push_promise(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "nobody asked for a push")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "pings belong to the connection")
        if len(payload) != 8:
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "a ping is eight bytes")
        self._control("pings")
        if not flags & frames.ACK:
            self._answer(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _DRAIN_PING and self.leaving and not self._client:
            if self._last_served == STREAM_MAX:
                self._last_served = self._last_id
                self._out.append(frames.goaway(self._last_served, ErrorCode.NO_ERROR))
        else:
            self._handler.on_pong(payload)

    def _on_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFaultError(ErrorCode.PROTOCOL_ERROR, "a goaway belongs to the connection")
        if len(payload) < 8:
            raise ConnectionFaultError(ErrorCode.FRAME_SIZE_ERROR, "a goaway is eight bytes at least")
        self._control("goaways")
        self.leaving = True
        if not self._client:
            self._last_served = min(self._last_served, self._last_id)
            return
        last_id = read_u32(payload) & STREAM_MAX
        for stream in [each for each in self.streams.values() if each.id > last_id]:
            self._close(stream)
            self._handler.on_reset(stream, ErrorCode.REFUSED_STREAM)

    # --- how it ends

    def _fail(self, fault: ConnectionFaultError) -> None:
        self.fault, self.leaving = fault, True
        self._out.append(frames.goaway(self._last_id, fault.code, fault.message))
        self._abandon()

    def _abandon(self) -> None:
        self._tail = b""
        for stream in list(self.streams.values()):
            self._close(stream)
            self._handler.on_reset(stream, ErrorCode.CONNECT_ERROR)
