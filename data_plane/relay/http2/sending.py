"""The sending half of a connection: streams, the peer's windows, and what is to be written.

Data goes out at once where the peer's windows allow it, as one frame's head before bytes that are not copied. What must
wait, waits in its stream, and streams that wait for the connection's window take turns. Between two `take` no more than
WRITE_BYTES_MAX goes out, so that one stream with much to say does not hold up the others.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from data_plane.relay.http2 import frames
from data_plane.relay.http2.frames import (
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_START,
    HEADERS,
    STREAM_MAX,
    WINDOW_START,
    ErrorCode,
    block_head,
    data_head,
)
from data_plane.relay.http2.header_blocks import EMPTY_TABLE, Fields
from data_plane.relay.http2.stream import NOTHING, Stream

WRITE_BYTES_MAX: Final = 1 << 18
"""Bytes of data in one write, and bytes that wait for the network before data waits in its streams instead."""


class Handler(Protocol):
    """Whom a connection tells what came. No call may raise; each may call the connection."""

    def on_head(self, stream: Stream, fields: Fields, ended: bool) -> None:
        """A request came, or the headers of an answer (of 1xx and then of the final one)."""
        ...

    def on_data(self, stream: Stream, data: bytes, ended: bool) -> None:
        """Content came, empty only at the end."""
        ...

    def on_trailers(self, stream: Stream, fields: Fields) -> None:
        """The message has ended with these."""
        ...

    def on_reset(self, stream: Stream, code: int) -> None:
        """The stream is over, by the peer or for a mistake of his. REFUSED_STREAM: nothing was begun."""
        ...

    def on_sent(self, stream: Stream) -> None:
        """What had waited in the stream is on its way."""
        ...

    def on_pong(self, payload: bytes) -> None:
        """A PING was answered."""
        ...


class Sending:
    """See the module.

    Args:
        handler: Whom the connection tells.
        client: Whether this end opens the streams.
        receive_window: What the peer may send on a new stream, bytes.

    Attributes:
        streams: Those that are open, by id.
        leaving: No streams are opened any more, because one end said GOAWAY.
    """

    def __init__(self, handler: Handler, *, client: bool, receive_window: int) -> None:
        self.streams: dict[int, Stream] = {}
        self.leaving = False
        self._handler = handler
        self._client = client
        self._stream_receive_window = receive_window
        self._out: list[bytes] = []
        self._answers = 0  # of them those to control frames
        self._prefix = EMPTY_TABLE
        self._next_id = 1
        self._paused = False
        self._blocked: dict[int, Stream] = {}  # with data that waits for room, in turn
        # The peer's window for the connection: what may go out before the next `take`, and the rest.
        self._room, self._beyond = WINDOW_START, 0
        self._peer_window = WINDOW_START
        self._peer_frame_bytes = FRAME_BYTES_START
        self._peer_streams = STREAM_MAX
        self._sent_frames = 0
        self._late_bytes = 0  # of data that may be on its way on streams that were ended here

    def take(self) -> bytes:
        """What is to be written now, empty for nothing. It counts as sent."""
        out = self._out
        if not out:
            return b""
        taken = b"".join(out) if len(out) > 1 else out[0]
        out.clear()
        self._answers = 0
        if self._beyond:
            self._make_room()
        return taken

    @property
    def has_more(self) -> bool:
        """Whether there is something to `take`."""
        return bool(self._out)

    def pause(self) -> None:
        """The network takes nothing more: data waits in its streams."""
        self._paused = True
        self._beyond += self._room
        self._room = 0

    def resume(self) -> None:
        """The network takes more."""
        self._paused = False
        self._make_room()

    def _make_room(self) -> None:
        if self._paused:
            return
        had, window = self._room, self._room + self._beyond
        self._room = min(window, WRITE_BYTES_MAX)
        self._beyond = window - self._room
        if not had and self._blocked:
            self._push_all()

    @property
    def can_open(self) -> bool:
        """Whether another stream may be opened now."""
        return not self.leaving and len(self.streams) < self._peer_streams and self._next_id < STREAM_MAX

    def open(self, block: bytes, *, ended: bool = False) -> Stream:
        """Opens a stream with a request's headers. Only where `can_open`.

        Args:
            block: As from `header_blocks.encoded`.
            ended: The request has no content.
        """
        stream = Stream(self._next_id, self._peer_window, self._stream_receive_window)
        self._next_id += 2
        self.streams[stream.id] = stream
        stream.local_ended = ended
        self._send_block(stream, block, last=ended)
        return stream

    def ask(self, block: bytes, content: bytes) -> Stream:
        """Opens a stream with a whole request. Only where `can_open`.

        Args:
            block: As from `header_blocks.encoded`.
            content: All of it.
        """
        stream = self.open(block)
        length = len(content)
        if length <= stream.send_window and length <= self._room and length <= self._peer_frame_bytes:
            stream.send_window -= length
            self._room -= length
            self._sent_frames += 1
            stream.local_ended = True
            out = self._out
            out.append(data_head(length, last=True))
            out.append(stream.name)
            out.append(content)
        else:
            self.send_data(stream, content)
            self.end(stream)
        return stream

    def send_head(self, stream: Stream, block: bytes) -> None:
        """Sends an answer's headers."""
        if not stream.local_ended:
            self._send_block(stream, block, last=False)

    def send_data(self, stream: Stream, data: bytes) -> bool:
        """Sends content, or keeps it until the peer takes it; see `Stream.queued_bytes`.

        Returns:
            Whether nothing of the stream waits; if something does, `Handler.on_sent` comes.
        """
        length = len(data)
        if (
            length <= stream.send_window
            and length <= self._room
            and length <= self._peer_frame_bytes
            and not stream.queue
            and not stream.local_ended
        ):
            stream.send_window -= length
            self._room -= length
            self._sent_frames += 1
            out = self._out
            out.append(data_head(length))
            out.append(stream.name)
            out.append(data)
            return True
        if not stream.local_ended and length:
            # In pieces of a frame: what a window cuts off is copied.
            most = self._peer_frame_bytes
            if stream.queue is NOTHING:
                stream.queue = deque()
            stream.queue += (data,) if length <= most else [data[at : at + most] for at in range(0, length, most)]
            stream.queued_bytes += length
            self._push(stream)
        return not stream.queue

    def end(self, stream: Stream, trailers: bytes = b"") -> None:
        """Ends our side after what waits: with trailers, or without.

        Args:
            stream: The stream.
            trailers: A header block, or empty.
        """
        if stream.local_ended:
            return
        stream.local_ended = True
        stream.ending = trailers
        if not stream.queue:
            self._send_end(stream)

    def reset(self, stream: Stream, code: int = ErrorCode.CANCEL) -> None:
        """Gives a stream up at once; the handler is not told."""
        if not stream.closed:
            self._give_up(stream, code)

    def ping(self, payload: bytes) -> None:
        """Asks the peer for a sign of life: eight bytes, which come back by `Handler.on_pong`."""
        self._out.append(frames.frame(frames.PING, 0, 0, payload))

    def _send_block(self, stream: Stream, block: bytes, *, last: bool) -> None:
        if self._prefix:
            block, self._prefix = self._prefix + block, b""
        out, most = self._out, self._peer_frame_bytes
        if len(block) <= most:
            # One piece: what waits for the network is counted in pieces.
            out.append(b"%b%b%b" % (block_head(len(block), last=last), stream.name, block))
            return
        out.append(frames.frame(HEADERS, END_STREAM if last else 0, stream.id, block[:most]))
        for at in range(most, len(block), most):
            flags = END_HEADERS if at + most >= len(block) else 0
            out.append(frames.frame(frames.CONTINUATION, flags, stream.id, block[at : at + most]))

    def _send_end(self, stream: Stream) -> None:
        if stream.ending:
            self._send_block(stream, stream.ending, last=True)
        else:
            self._out += (data_head(0, last=True), stream.name)
        stream.ending = None
        if stream.remote_ended:
            self._close(stream)
        elif not self._client:
            # The answer is whole: what the client still has to say is of no use.
            self._give_up(stream, ErrorCode.NO_ERROR)

    def _give_up(self, stream: Stream, code: int) -> None:
        self._out.append(frames.rst_stream(stream.id, code))
        if not stream.remote_ended:
            self._late_bytes += stream.receive_window
        self._close(stream)

    def _push(self, stream: Stream, *, once: bool = False) -> None:
        """Sends what a stream has waiting, as far as the peer and the network take it; `once`: one frame."""
        queue, most = stream.queue, self._peer_frame_bytes
        while queue:
            data = queue[0]
            length = min(len(data), stream.send_window, self._room, most)
            if length <= 0:
                if self._room <= 0:
                    self._blocked[stream.id] = stream
                return
            if len(data) > length:
                queue[0] = data[length:]
                data = data[:length]
            else:
                queue.popleft()
            stream.queued_bytes -= length
            stream.send_window -= length
            self._room -= length
            self._sent_frames += 1
            self._out += (data_head(length), stream.name, data)
            if once and queue:
                self._blocked[stream.id] = stream
                return
        stream.queue = NOTHING
        if stream.ending is not None:
            self._send_end(stream)
        self._handler.on_sent(stream)

    def _push_all(self) -> None:
        """There is room again: those that waited for it take turns, a frame each."""
        blocked = self._blocked
        while blocked and self._room > 0:
            stream = blocked.pop(next(iter(blocked)))
            self._push(stream, once=bool(blocked))

    def _close(self, stream: Stream) -> None:
        stream.closed = stream.local_ended = stream.remote_ended = True
        stream.quick = False
        stream.ending = None
        stream.queue = NOTHING
        stream.queued_bytes = 0
        if self._blocked:
            self._blocked.pop(stream.id, None)
        self.streams.pop(stream.id, None)
