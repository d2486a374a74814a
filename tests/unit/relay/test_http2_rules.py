"""What messages and connections may look like, and how both end."""

from __future__ import annotations

import pytest

from data_plane.relay.http2 import frames
from data_plane.relay.http2.frames import END_HEADERS, END_STREAM, PREFACE, ErrorCode, Setting
from data_plane.relay.http2.header_blocks import EMPTY_TABLE, encoded
from tests.unit.relay.peers import ANSWER, REQUEST, TRAILERS, code_of, data, greeted, kinds, ours, request


def test_a_draining_server_hears_what_was_on_its_way() -> None:
    """Proves that requests sent before the client could know are served, later ones are not, and that it then ends."""
    connection, recorder = greeted()
    connection.receive(request(1), 0.0)
    connection.drain()
    sent = kinds(connection.take())
    assert sent[0][0] == frames.GOAWAY
    assert sent[0][2][:4] == (2**31 - 1).to_bytes(4, "big")
    assert sent[1][0] == frames.PING
    connection.receive(request(3) + frames.frame(frames.PING, frames.ACK, 0, sent[1][2]), 0.0)
    assert kinds(connection.take())[0][2][:4] == (3).to_bytes(4, "big")
    connection.receive(request(5), 0.0)
    assert sorted(recorder.seen) == [1, 3]
    for stream_id in (1, 3):
        assert not connection.finished
        connection.end(recorder.streams[stream_id])
    assert connection.finished


def test_a_client_learns_which_requests_were_not_begun() -> None:
    connection, recorder = greeted(client=True)
    first, second = connection.open(encoded(REQUEST)), connection.open(encoded(REQUEST))
    connection.receive(frames.goaway(first.id, 0), 0.0)
    assert recorder.seen[second.id].reset == ErrorCode.REFUSED_STREAM
    assert first.id not in recorder.seen
    assert not connection.can_open
    assert not connection.finished
    connection.reset(first)
    assert connection.finished


def test_a_client_opens_no_more_than_it_may() -> None:
    connection, _ = greeted(client=True)
    connection.receive(frames.settings([(Setting.MAX_CONCURRENT_STREAMS, 1)]), 0.0)
    stream = connection.open(encoded(REQUEST))
    assert not connection.can_open
    connection.reset(stream)
    assert connection.can_open


def test_trailers_only_and_interim_answers() -> None:
    connection, recorder = greeted(client=True)
    stream = connection.open(encoded(REQUEST))
    connection.end(stream)
    interim = frames.frame(frames.HEADERS, END_HEADERS, 1, encoded([(b":status", b"103")]))
    whole = frames.frame(frames.HEADERS, END_HEADERS | END_STREAM, 1, encoded((*ANSWER, *TRAILERS)))
    connection.receive(interim + whole, 0.0)
    assert recorder.seen[1].fields == (*ANSWER, *TRAILERS)
    assert recorder.seen[1].ended
    assert not connection.streams


def test_padding_counts_and_is_taken_off() -> None:
    connection, recorder = greeted()
    padded = frames.frame(frames.DATA, frames.PADDED | END_STREAM, 1, b"\x03token\0\0\0")
    block = b"\x02" + bytes(5) + encoded(REQUEST) + b"\0\0"
    connection.receive(request(1, flags=END_HEADERS | frames.PADDED | frames.PRIORITIZED, block=block) + padded, 0.0)
    assert recorder.seen[1].data == b"token"
    assert recorder.seen[1].ended


def test_a_promised_length_is_kept() -> None:
    block = encoded((*REQUEST, (b"content-length", b"5")))
    connection, recorder = greeted()
    connection.receive(request(1, block=block) + data(1, b"token", END_STREAM), 0.0)
    assert recorder.seen[1].ended
    connection.receive(
        request(3, block=block) + data(3, b"toke", END_STREAM) + request(5, block=block) + data(5, b"token!"), 0.0
    )
    assert recorder.seen[3].reset == recorder.seen[5].reset == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "fields",
    [
        REQUEST[1:],  # no :method
        (*REQUEST, (b":path", b"/again")),
        (*REQUEST, (b":method", b"GET")),
        (*REQUEST[:2], (b"te", b"trailers"), *REQUEST[2:]),  # pseudo headers come first
        (*REQUEST, (b":status", b"200")),
        (*REQUEST, (b"Upper", b"case")),
        (*REQUEST, (b"connection", b"close")),
        (*REQUEST, (b"te", b"gzip")),
        (*REQUEST, (b"x", b"line\r\nbreak")),
        (*REQUEST, (b"content-length", b"many")),
    ],
)
def test_a_malformed_request_ends_its_stream_only(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    connection, recorder = greeted()
    connection.receive(request(1, block=encoded(fields)) + request(3), 0.0)
    assert kinds(connection.take()) == [(frames.RST_STREAM, 1, bytes((0, 0, 0, ErrorCode.PROTOCOL_ERROR)))]
    assert list(recorder.seen) == [3]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frames.frame(frames.HEADERS, END_HEADERS, 0, b""), ErrorCode.PROTOCOL_ERROR),
        (request(2), ErrorCode.PROTOCOL_ERROR),
        (data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frames.rst_stream(1, 8), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.frame(frames.SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.SETTINGS, 0, 0, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
        (frames.frame(frames.SETTINGS, frames.ACK, 0, b"123456"), ErrorCode.FRAME_SIZE_ERROR),
        (frames.settings([(Setting.INITIAL_WINDOW_SIZE, 2**31)]), ErrorCode.FLOW_CONTROL_ERROR),
        (frames.settings([(Setting.MAX_FRAME_SIZE, 16_383)]), ErrorCode.PROTOCOL_ERROR),
        (frames.settings([(Setting.ENABLE_PUSH, 2)]), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.PING, 0, 0, b"short"), ErrorCode.FRAME_SIZE_ERROR),
        (frames.frame(frames.PING, 0, 1, 8 * b"p"), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.PUSH_PROMISE, 0, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.CONTINUATION, END_HEADERS, 1, b""), ErrorCode.PROTOCOL_ERROR),
        (request(1, flags=0) + frames.frame(frames.PING, 0, 0, 8 * b"p"), ErrorCode.PROTOCOL_ERROR),
        (request(1, flags=0) + data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (request(1) + frames.frame(frames.DATA, frames.PADDED, 1, b"\x05abc"), ErrorCode.PROTOCOL_ERROR),
        (frames.frame(frames.GOAWAY, 0, 0, b"short"), ErrorCode.FRAME_SIZE_ERROR),
        (bytes((0, 64, 1, 0, 0)) + bytes(4), ErrorCode.FRAME_SIZE_ERROR),  # 16,385 bytes of data
        (request(1, block=b"\x80"), ErrorCode.COMPRESSION_ERROR),
    ],
)  # fmt: skip
def test_what_ends_the_connection(sent: bytes, code: ErrorCode) -> None:
    connection, _ = greeted()
    connection.receive(sent, 0.0)
    assert code_of(connection) is code
    told = kinds(connection.take())[-1]
    assert (told[0], told[2][4:8]) == (frames.GOAWAY, code.to_bytes(4, "big"))
    assert connection.finished


@pytest.mark.parametrize(
    "begin", [b"GET / HTTP/1.1\r\n", PREFACE[:-1] + b"x", PREFACE + frames.frame(frames.PING, 0, 0, 8 * b"p")]
)
def test_who_does_not_speak_http2(begin: bytes) -> None:
    connection, _ = ours(client=False)
    connection.receive(begin, 0.0)
    assert code_of(connection) is ErrorCode.PROTOCOL_ERROR


def test_a_lost_connection_ends_its_streams_once() -> None:
    connection, recorder = greeted()
    connection.receive(request(1), 0.0)
    connection.lost()
    connection.lost()
    connection.receive(request(3), 0.0)
    assert recorder.seen[1].reset == ErrorCode.CONNECT_ERROR
    assert list(recorder.seen) == [1]
    connection.send_data(recorder.streams[1], b"late")
    connection.end(recorder.streams[1])
    connection.reset(recorder.streams[1])
    assert connection.take() == b""


def test_a_smaller_table_of_the_peer_is_respected() -> None:
    connection, recorder = greeted()
    connection.receive(request(1), 0.0)
    connection.send_head(recorder.streams[1], encoded(ANSWER))
    assert kinds(connection.take())[0][2] == EMPTY_TABLE + encoded(ANSWER)


def test_a_sign_of_life_is_asked_for_and_given() -> None:
    connection, recorder = greeted()
    connection.ping(b"are you?")
    assert kinds(connection.take()) == [(frames.PING, 0, b"are you?")]
    connection.receive(frames.frame(frames.PING, frames.ACK, 0, b"are you?"), 0.0)
    assert recorder.pongs == [b"are you?"]
    assert connection.take() == b""
