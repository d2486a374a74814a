"""Two ends of a connection in one process: ours, and the `h2` package's as the reference."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events

from data_plane.relay.http2 import frames
from data_plane.relay.http2.connection import Connection
from data_plane.relay.http2.frames import END_HEADERS, PREFACE, ErrorCode
from data_plane.relay.http2.header_blocks import Fields, encoded
from data_plane.relay.http2.limits import Limits
from data_plane.relay.http2.stream import Stream

REQUEST = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/fairlead.inference.v1.InferenceService/StreamGenerate"),
    (b":authority", b"router"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
)
ANSWER = ((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS = ((b"grpc-status", b"0"),)


@dataclass
class Seen:
    """What one end saw of a stream."""

    fields: Sequence[tuple[bytes, bytes]] = ()
    data: bytes = b""
    trailers: Sequence[tuple[bytes, bytes]] = ()
    ended: bool = False
    reset: int | None = None


@dataclass
class Recorder:
    """A handler that writes down what it is told.

    Attributes:
        seen: By stream.
        streams: The streams, by id.
        sent: Streams whose waiting data went out.
        pongs: Answers to pings.
        consume: Whether more data may come than the windows are open at the beginning.
    """

    consume: bool = True
    seen: dict[int, Seen] = field(default_factory=dict)
    streams: dict[int, Stream] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    connection: Connection | None = None

    def of(self, stream: Stream) -> Seen:
        self.streams[stream.id] = stream
        return self.seen.setdefault(stream.id, Seen())

    def on_head(self, stream: Stream, fields: Fields, ended: bool) -> None:
        seen = self.of(stream)
        seen.fields, seen.ended = fields.pairs, ended
        if not self.consume and self.connection is not None:
            self.connection.hold(stream)

    def on_data(self, stream: Stream, data: bytes, ended: bool) -> None:
        seen = self.of(stream)
        assert not seen.ended
        seen.data += data
        seen.ended = ended

    def on_trailers(self, stream: Stream, fields: Fields) -> None:
        seen = self.of(stream)
        assert not seen.ended
        seen.trailers, seen.ended = fields.pairs, True

    def on_reset(self, stream: Stream, code: int) -> None:
        self.of(stream).reset = code

    def on_sent(self, stream: Stream) -> None:
        self.sent.append(stream.id)

    def on_pong(self, payload: bytes) -> None:
        self.pongs.append(payload)


def ours(*, client: bool, limits: Limits | None = None, consume: bool = True) -> tuple[Connection, Recorder]:
    """Our end, and what it tells."""
    recorder = Recorder(consume=consume)
    connection = Connection(recorder, limits or Limits(), client=client, now_s=0.0)
    recorder.connection = connection
    return connection, recorder


class Reference:
    """The `h2` package's end.

    Args:
        client: Whether it opens the streams.
        opens: Whether it lets more come as soon as something came.
    """

    def __init__(self, *, client: bool, opens: bool = True) -> None:
        self._opens = opens
        config = h2.config.H2Configuration(client_side=client, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.seen: dict[int, Seen] = {}

    def of(self, stream_id: int) -> Seen:
        return self.seen.setdefault(stream_id, Seen())

    def receive(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RequestReceived() | h2.events.ResponseReceived():
                    self.of(event.stream_id).fields = tuple((bytes(n), bytes(v)) for n, v in event.headers)
                case h2.events.TrailersReceived():
                    self.of(event.stream_id).trailers = tuple((bytes(n), bytes(v)) for n, v in event.headers)
                case h2.events.DataReceived():
                    self.of(event.stream_id).data += event.data
                    if event.flow_controlled_length and self._opens:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    self.of(event.stream_id).ended = True
                case h2.events.StreamReset():
                    self.of(event.stream_id).reset = int(event.error_code)


def exchange(
    connection: Connection, reference: Reference, cut: Callable[[bytes], list[bytes]] = lambda data: [data]
) -> None:
    """Carries bytes to and fro until nobody has any."""
    while True:
        there, back = connection.take(), reference.h2.data_to_send()
        if not there and not back:
            return
        for part in cut(there):
            reference.receive(part)
        for part in cut(back):
            connection.receive(part, 0.0)


LIMITS = Limits(
    streams_max=3,
    header_block_bytes_max=400,
    header_list_bytes_max=1_000,
    continuations_max=2,
    stream_window_bytes=65_535,
    connection_window_bytes=100_000,
    resets_burst=4,
    resets_per_s=1.0,
    controls_burst=6,
    controls_per_s=1.0,
    answers_max=5,
)
"""So small that a test reaches each of them."""


def greeted(limits: Limits = LIMITS, *, client: bool = False, consume: bool = True) -> tuple[Connection, Recorder]:
    """Our end, after the other's greeting, which costs one of the controls."""
    connection, recorder = ours(client=client, limits=limits, consume=consume)
    connection.receive((b"" if client else PREFACE) + frames.settings(()), 0.0)
    connection.take()
    return connection, recorder


def request(stream_id: int, *, flags: int = END_HEADERS, block: bytes = encoded(REQUEST)) -> bytes:
    return frames.frame(frames.HEADERS, flags, stream_id, block)


def data(stream_id: int, content: bytes, flags: int = 0) -> bytes:
    return frames.frame(frames.DATA, flags, stream_id, content)


def kinds(sent: bytes) -> list[tuple[int, int, bytes]]:
    """Frames as kind, stream and payload."""
    found = []
    while sent:
        head, _, stream_id = struct.unpack_from(">IBI", sent)
        end = frames.HEAD_BYTES + (head >> 8)
        found.append((head & 0xFF, stream_id, sent[frames.HEAD_BYTES : end]))
        sent = sent[end:]
    return found


def code_of(connection: Connection) -> ErrorCode | None:
    return None if connection.fault is None else connection.fault.code
