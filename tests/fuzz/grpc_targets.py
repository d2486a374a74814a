"""gRPC under any bytes: messages are cut alike however the network cuts them, and every call ends once.

What a peer makes us keep is no more than a small multiple of what it sent, in however small pieces.
"""

from __future__ import annotations

import asyncio
import re
import sys

from google.protobuf.message import DecodeError

from data_plane.relay.grpc import pieces
from data_plane.relay.grpc.calls import Route, ServerCall
from data_plane.relay.grpc.client_end import ClientCall, ClientEnd, failure_of
from data_plane.relay.grpc.framing import PREFIX_BYTES, Cutter, framed
from data_plane.relay.grpc.limits import CallLimits, Tally
from data_plane.relay.grpc.server_end import ServerEnd
from data_plane.relay.grpc.status import CONTENT_TYPE, RpcFaultError, binary, from_binary, status, timeout_s
from data_plane.relay.http2 import frames
from data_plane.relay.http2.endpoint import Patience
from data_plane.relay.http2.frames import END_HEADERS, END_STREAM, PREFACE, Setting
from data_plane.relay.http2.header_blocks import HeaderDecoder, encoded, literal
from fairlead.errors import FairleadError
from fairlead.inference.v1 import inference_pb2 as pb
from tests.fuzz.chances import Chances
from tests.fuzz.http2_targets import LIMITS
from tests.fuzz.transport import Transport, within_loop
from tests.fuzz.work import Work

LINES_START = 6_000
LINES_PER_BYTE = 60
KEPT_START = 4_096
KEPT_PER_BYTE = 4
TIMEOUT = re.compile(rb"[0-9]{1,8}[HMSmun]")


def _cut(data: bytes, most: int, pieces_of: list[bytes]) -> tuple[list[bytes], int | None]:
    """Messages of a content that comes in pieces, and the status that it ends with."""
    cutter, messages = Cutter(most), []
    came = 0
    for piece in pieces_of:
        came += len(piece)
        try:
            messages += cutter.feed(piece)
        except RpcFaultError as fault:
            return messages, fault.code
        assert sum(map(len, messages)) + cutter.waiting_bytes == came
        assert cutter.waiting_bytes < most + PREFIX_BYTES + 1
        assert _kept(cutter) <= KEPT_START + KEPT_PER_BYTE * cutter.waiting_bytes, (_kept(cutter), cutter.waiting_bytes)
    assert b"".join(messages) == data[: sum(map(len, messages))]
    return messages, None


def _kept(cutter: Cutter) -> int:
    """Bytes of memory behind what waits."""
    kept = 0
    for name in dir(cutter):  # compiled, it has no __slots__
        value = getattr(cutter, name)
        if name.startswith("__") or callable(value):
            continue
        kept += sys.getsizeof(value)
        if isinstance(value, list):
            kept += sum(map(sys.getsizeof, value))
    return kept


def framing(data: bytes) -> None:
    """The content of a stream, whole and in pieces."""
    chances = Chances(data)
    most, size, times = chances.one_of(0, 10, 100, 100_000), 1 + chances.byte(), 1 + 16 * chances.byte()
    content = chances.rest()
    content += times * content[-1:]
    cut = [content[at : at + size] for at in range(0, len(content), size)]
    with Work() as work:
        messages, code = _cut(content, most, cut)
    assert work.lines <= LINES_START + LINES_PER_BYTE * len(content)
    whole, whole_code = _cut(content, most, [content])
    assert code == whole_code
    if code is None:
        assert messages == whole
    for message in messages:
        assert message == framed(message[PREFIX_BYTES:])
        assert len(message) <= most + PREFIX_BYTES


def values(data: bytes) -> None:
    """What stands in headers: timeouts, statuses and their texts, bytes in base64."""
    try:
        seconds = timeout_s(data)
    except RpcFaultError:
        assert not TIMEOUT.fullmatch(data)
    else:
        assert TIMEOUT.fullmatch(data)
        assert 0 <= seconds < 4e11
    assert from_binary(binary(data)) == data
    read = from_binary(data)
    assert read is None or len(read) <= len(data)
    text = data.decode("utf-8", "replace")
    block = HeaderDecoder(1 << 20).decode(status(len(data) % 17, text))
    assert all(0x20 <= byte < 0x7F for _, value in block.pairs for byte in value)
    chances = Chances(data)
    code, told = chances.some(), failure_of(block)
    assert told is None or text[:100] in str(told) or not text
    fields = ((b"grpc-status", code), (b"grpc-message", chances.some()), (b"grpc-status-details-bin", chances.rest()))
    told = failure_of(HeaderDecoder(1 << 20).decode(encoded(fields)))
    assert (told is None) == (code == b"0")
    assert told is None or isinstance(told, FairleadError)


def piece(data: bytes) -> None:
    """Messages of replicas, which go on to clients without being taken apart."""
    whole = framed(data)
    tokens = pieces.tokens_of(whole)
    if tokens < 0:
        return
    text = pieces.text_of(whole)
    assert len(text) <= len(data)
    try:
        read = pb.StreamGenerateResponse.FromString(data)
    except DecodeError:
        # The reading end refuses text that is not UTF-8, and nothing else.
        assert text.decode("utf-8", "replace").encode() != text
        return
    assert (read.text.encode(), read.output_tokens) == (text, tokens)
    assert {field.name for field, _ in read.ListFields()} <= {"text", "output_tokens"}


class _Served:
    """Answers with what came, at once or when it has all; or never.

    Args:
        call: The call.
        way: How.
    """

    def __init__(self, call: ServerCall, way: int) -> None:
        self.call = call
        self.way = way
        self.gone = self.half_closed = False

    def on_message(self, message: bytes) -> None:
        assert not self.gone
        assert not self.half_closed
        assert not self.call.over
        assert len(message) <= CALLS.message_bytes_max
        if self.way in (0, 1):
            self.call.send(framed(message))
        if self.way == 2:
            self.call.finish()
        if self.way == 3:
            self.call.hold()
        if self.way == 5:
            self.call.send(framed(40_000 * b"x"))
            self.call.finish()
        if self.way == 6:
            self.call.send(framed(90_000 * b"x"))

    def on_half_closed(self) -> None:
        assert not self.gone
        assert not self.half_closed
        assert not self.call.over
        self.half_closed = True
        if self.way in (0, 3):
            self.call.finish()

    def on_gone(self) -> None:
        assert not self.gone
        self.gone = True

    def on_writable(self) -> None:
        assert not self.gone
        assert not self.call.blocked
        if self.way == 6:
            self.call.finish()


CALLS = CallLimits(
    message_bytes_max=1_000,
    request_s=5.0,
    unread_s=5.0,
    connection_waiting_bytes_max=5_000,
    process_waiting_bytes_max=9_000,
)


def _request(chances: Chances) -> bytes:
    """Headers that mostly are a request of gRPC."""
    choice = chances.byte()
    fields = [
        (b":method", b"POST" if choice != 1 else b"GET"),
        (b":scheme", b"http"),
        (b":path", (b"/s/one", b"/s/many", b"/s/none")[choice % 3]),
        (b"te", b"trailers" if choice != 2 else b"gzip"),
        (b"content-type", CONTENT_TYPE if choice != 3 else chances.some().hex().encode()),
    ]
    if choice & 64:
        fields.append((b"grpc-timeout", chances.some()))
    if choice & 128:
        fields.append((b"x-a-bin", chances.some()))
    return encoded(fields)


def server(data: bytes) -> None:
    """Calls in frames, at a server that answers, waits or holds them up, while its clock goes on."""
    chances = Chances(data)
    within_loop(lambda: _serve(chances))


def _serve(chances: Chances) -> None:
    served: list[_Served] = []

    def method(call: ServerCall) -> _Served:
        served.append(_Served(call, chances.byte() % 7))
        return served[-1]

    tally = Tally()
    routes = {b"/s/one": Route(method), b"/s/many": Route(method, streams_requests=True)}
    end = ServerEnd(routes, CALLS, tally, LIMITS, Patience())
    transport = Transport()
    came = 0
    with Work() as work:
        end.endpoint.connection_made(transport)
        window = chances.one_of(65_535, 0, 1_000)
        end.endpoint.data_received(PREFACE + frames.settings([(Setting.INITIAL_WINDOW_SIZE, window)]))
        next_id, now_s = 1, asyncio.get_running_loop().time()
        while chances.left and not transport.closing:
            action, stream_id = chances.byte() % 9, 1 + 2 * (chances.byte() % 8)
            if action < 2:
                frame = frames.frame(frames.HEADERS, END_HEADERS | action, next_id, _request(chances))
                next_id += 2
            elif action == 2:
                frame = frames.frame(frames.DATA, chances.byte() & END_STREAM, stream_id, framed(chances.some()))
            elif action == 3:
                frame = frames.frame(frames.DATA, chances.byte() & END_STREAM, stream_id, chances.some())
            elif action == 4:
                frame = frames.rst_stream(stream_id, 8)
            elif action == 5:
                frame = frames.window_update(stream_id if chances.byte() & 1 else 0, chances.one_of(1, 10_000, 100_000))
            elif action == 6:
                frame = frames.frame(frames.HEADERS, END_HEADERS | END_STREAM, stream_id, encoded([(b"x-t", b"1")]))
            elif action == 7 and chances.byte() == 7:
                end.drain()
                continue
            else:
                now_s += chances.byte() / 10
                end.check(now_s)
                for each in served:
                    if each.way == 3 and not each.call.over:
                        each.call.release()
                continue
            came += len(frame)
            end.endpoint.data_received(frame)
            assert tally.waiting_bytes <= CALLS.connection_waiting_bytes_max
        end.endpoint.connection_lost(None)
    assert tally.waiting_bytes == 0
    assert tally.refused <= tally.calls
    for each in served:
        assert each.call.over
        assert each.call.served is None
    # A window update may let go what was sent to all of them.
    assert work.lines <= 3 * (LINES_START + LINES_PER_BYTE * came) + 2_000 * len(served), (work.lines, came)


class _Reply:
    def __init__(self) -> None:
        self.ends = 0

    def on_message(self, framed_message: bytes) -> None:
        assert not self.ends
        assert framed_message == framed(framed_message[PREFIX_BYTES:])

    def on_end(self, failure: FairleadError | None) -> None:
        assert failure is None or isinstance(failure, FairleadError)
        self.ends += 1


def client(data: bytes) -> None:
    """Answers in frames, at a client that has asked three times."""
    chances = Chances(data)
    within_loop(lambda: _ask(chances))


def _ask(chances: Chances) -> None:
    freed: list[ClientEnd] = []
    end = ClientEnd(LIMITS, Patience(), message_bytes_max=1_000, freed=freed.append)
    end.endpoint.connection_made(Transport())
    end.endpoint.data_received(frames.settings(()))
    replies = [_Reply() for _ in range(3)]
    calls = [ClientCall(encoded([(b":method", b"POST")]), framed(b"ask"), reply) for reply in replies]
    for call in calls:
        call.begin(end)
    while chances.left and end.endpoint.connection.fault is None:
        action, stream_id = chances.byte() % 8, 1 + 2 * (chances.byte() % 3)
        flags = chances.byte() & END_STREAM
        if action == 0:
            block = encoded(((b":status", b"200"), (b"content-type", CONTENT_TYPE)))
        elif action == 1:
            block = literal(b":status", b"%d" % chances.number()) if chances.byte() & 1 else b""
            block += encoded(((b"grpc-status", chances.some()), (b"grpc-message", chances.some())))
        else:
            block = encoded(((b"grpc-status", b"0"),)) if chances.byte() & 1 else chances.some()
        if action < 4:
            frame = frames.frame(frames.HEADERS, END_HEADERS | flags, stream_id, block)
        elif action == 4:
            frame = frames.frame(frames.DATA, flags, stream_id, framed(chances.some()))
        elif action == 5:
            frame = frames.frame(frames.DATA, flags, stream_id, chances.some())
        elif action == 6:
            frame = frames.rst_stream(stream_id, chances.number())
        else:
            frame = frames.goaway(chances.byte() & 7, 0)
        end.endpoint.data_received(frame)
    end.endpoint.connection_lost(None)
    assert [reply.ends for reply in replies] == [1, 1, 1]
