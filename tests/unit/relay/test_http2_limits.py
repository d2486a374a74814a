"""What a peer may do, at each limit and one beyond, and what it costs him."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from data_plane.relay.http2 import frames
from data_plane.relay.http2.frames import END_HEADERS, ErrorCode, Setting
from data_plane.relay.http2.header_blocks import encoded, literal
from data_plane.relay.http2.limits import UPDATES_PER_DATA_FRAME, UPDATES_PER_STREAM, Limits
from tests.unit.relay.peers import ANSWER, LIMITS, REQUEST, TRAILERS, code_of, data, greeted, kinds, request

FLOODS: dict[str, Callable[[int], bytes]] = {
    "pings": lambda _: frames.frame(frames.PING, 0, 0, 8 * b"p"),
    "settings": lambda _: frames.settings([(Setting.INITIAL_WINDOW_SIZE, 70_000)]),
    "priorities": lambda _: frames.frame(frames.PRIORITY, 0, 1, 5 * b"\0"),
    "unknown kinds": lambda _: frames.frame(0x77, 0, 0, b"grease"),
    "data without data": lambda _: data(1, b""),
    "resets of nothing": lambda _: frames.rst_stream(3, 8),
    "data for nobody": lambda _: data(3, b"x"),
    "goaways": lambda _: frames.goaway(0, 0),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_frames_that_only_make_work_are_counted(flood: str) -> None:
    """Proves for each kind that the allowance is taken, one more is too much, and that it comes back with time."""
    connection, _ = greeted()
    connection.receive(request(1) + request(3) + frames.rst_stream(3, 8), 0.0)
    spent = 1  # the greeting
    for number in range(LIMITS.controls_burst - spent):
        connection.receive(FLOODS[flood](number), 0.0)
        connection.take()
    assert connection.fault is None
    connection.receive(FLOODS[flood](0), 1.0)
    assert connection.fault is None
    connection.receive(FLOODS[flood](0), 1.0)
    assert code_of(connection) is ErrorCode.ENHANCE_YOUR_CALM


def test_what_is_on_its_way_on_a_stream_that_was_ended_here_is_free() -> None:
    """Proves that this is as much as the stream's window was open, and that more is counted."""
    connection, recorder = greeted()
    connection.receive(request(1) + data(1, 10_000 * b"x"), 0.0)
    connection.reset(recorder.streams[1])
    frame = data(1, 991 * b"x")  # 1,000 with its head
    for _ in range((LIMITS.stream_window_bytes - 10_000) // len(frame)):
        connection.receive(frame, 0.0)
        connection.take()
    assert connection.fault is None
    connection.receive((LIMITS.controls_burst - 1) * frame, 0.0)
    assert connection.fault is None
    connection.receive(frame, 0.0)
    assert code_of(connection) is ErrorCode.ENHANCE_YOUR_CALM


def test_a_ping_for_each_frame_of_data_is_free() -> None:
    connection, recorder = greeted()
    connection.receive(request(1), 0.0)
    for _ in range(10 * LIMITS.controls_burst):
        connection.send_data(recorder.streams[1], b"token")
        connection.receive(FLOODS["pings"](0), 0.0)
        connection.take()
    assert connection.fault is None


def test_window_updates_are_bounded_by_what_was_sent() -> None:
    connection, recorder = greeted()
    connection.receive(request(1), 0.0)
    connection.send_data(recorder.streams[1], b"token")
    for _ in range(LIMITS.controls_burst + UPDATES_PER_STREAM + UPDATES_PER_DATA_FRAME):
        connection.receive(frames.window_update(0, 1), 0.0)
    assert connection.fault is None
    connection.receive(frames.window_update(0, 1), 0.0)
    assert code_of(connection) is ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("ending", ["given up", "made to be given up"])
def test_rapid_resets(ending: str) -> None:
    """Proves that opening streams to end them is bounded, whoever has to say that they end."""
    connection, _ = greeted()

    def open_and_end(stream_id: int, now_s: float) -> None:
        nonsense = frames.window_update(stream_id, 0)
        connection.receive(
            request(stream_id) + (frames.rst_stream(stream_id, 8) if ending == "given up" else nonsense), now_s
        )
        connection.take()

    for number in range(LIMITS.resets_burst):
        open_and_end(2 * number + 1, 0.0)
    assert connection.fault is None
    open_and_end(101, 1.0)
    assert connection.fault is None
    open_and_end(103, 1.0)
    assert code_of(connection) is ErrorCode.ENHANCE_YOUR_CALM


def test_answers_that_nobody_reads() -> None:
    connection, _ = greeted(Limits(answers_max=5))
    connection.receive(5 * FLOODS["pings"](0), 0.0)
    assert connection.fault is None
    connection.receive(FLOODS["pings"](0), 0.0)
    assert code_of(connection) is ErrorCode.ENHANCE_YOUR_CALM


def test_one_stream_too_many_is_refused_and_the_others_go_on() -> None:
    connection, recorder = greeted()
    connection.receive(b"".join(request(stream_id) for stream_id in (1, 3, 5, 7)), 0.0)
    assert kinds(connection.take()) == [(frames.RST_STREAM, 7, bytes((0, 0, 0, ErrorCode.REFUSED_STREAM)))]
    assert sorted(recorder.seen) == [1, 3, 5]
    connection.end(recorder.streams[3])
    connection.receive(request(9), 0.0)
    assert sorted(recorder.seen) == [1, 3, 5, 9]


def test_a_header_block_as_long_as_allowed_and_one_byte_more() -> None:
    block = encoded(REQUEST)
    most = next(longer for longer in (block + literal(b"y", n * b"v") for n in range(400)) if len(longer) == 400)
    connection, recorder = greeted()
    connection.receive(request(1, block=most), 0.0)
    assert recorder.seen[1].fields[-1][0] == b"y"
    connection.receive(request(3, block=most + encoded(REQUEST[:1])), 0.0)
    assert code_of(connection) is ErrorCode.ENHANCE_YOUR_CALM


def test_a_header_block_goes_on_as_often_as_allowed() -> None:
    block = encoded(REQUEST)
    connection, recorder = greeted()
    more = frames.frame(frames.CONTINUATION, 0, 1, b"")
    last = frames.frame(frames.CONTINUATION, END_HEADERS, 1, b"")
    connection.receive(request(1, flags=0, block=block) + more + last, 0.0)
    assert recorder.seen[1].fields == REQUEST
    connection.receive(frames.frame(frames.HEADERS, 0, 3, block), 0.0)
    for _ in range(3):
        assert connection.fault is None
        connection.receive(frames.frame(frames.CONTINUATION, 0, 3, b""), 0.0)
    assert code_of(connection) is ErrorCode.ENHANCE_YOUR_CALM


def test_headers_larger_than_allowed_end_their_stream_only() -> None:
    connection, recorder = greeted(Limits(header_list_bytes_max=600))
    connection.receive(request(1, block=encoded(REQUEST) + literal(b"x", 600 * b"v")) + request(3), 0.0)
    assert connection.fault is None
    assert list(recorder.seen) == [3]


def test_more_data_than_the_windows() -> None:
    connection, recorder = greeted(consume=False)
    connection.receive(request(1) + request(3), 0.0)
    for _ in range(4):
        connection.receive(data(1, 16_383 * b"x"), 0.0)
    connection.receive(data(1, 3 * b"x"), 0.0)
    assert recorder.seen[1].reset is None
    connection.receive(data(1, b"x"), 0.0)
    assert recorder.seen[1].reset == ErrorCode.FLOW_CONTROL_ERROR
    assert connection.fault is None


def test_a_frame_beyond_the_connections_window() -> None:
    """Proves that the windows count also where a single frame may be larger than they are."""
    connection, _ = greeted(Limits(connection_window_bytes=65_535, frame_bytes_max=1 << 20))
    connection.receive(request(1) + data(1, 65_535 * b"x"), 0.0)
    assert connection.fault is None
    connection.receive(data(1, 65_536 * b"x"), 0.0)
    assert code_of(connection) is ErrorCode.FLOW_CONTROL_ERROR


def test_a_stream_that_is_not_read_holds_up_no_other() -> None:
    """Proves that the connection's window opens again although its streams are held."""
    connection, recorder = greeted(consume=False)
    for stream_id in (1, 3, 5):
        connection.receive(request(stream_id), 0.0)
        for _ in range(4):
            connection.receive(data(stream_id, 16_000 * b"x"), 0.0)
    updates = [kind for kind in kinds(connection.take()) if kind[0] == frames.WINDOW_UPDATE]
    assert {stream_id for _, stream_id, _ in updates} == {0}
    assert sum(int.from_bytes(payload, "big") for *_, payload in updates) > LIMITS.connection_window_bytes
    assert len(recorder.seen[5].data) == 64_000


def test_a_stream_that_is_held_takes_what_its_window_has_room_for() -> None:
    """Proves that nothing is credited while a stream is held, and all of it once it is released."""
    connection, recorder = greeted(consume=False)
    connection.receive(request(1) + data(1, 16_384 * b"x") + data(1, 16_384 * b"x"), 0.0)
    assert connection.take() == b""
    stream = recorder.streams[1]
    connection.release(stream)
    assert kinds(connection.take()) == [(frames.WINDOW_UPDATE, 1, (32_768).to_bytes(4, "big"))]
    connection.receive(data(1, 16_384 * b"x") + data(1, 16_384 * b"x"), 0.0)
    assert (frames.WINDOW_UPDATE, 1, (32_768).to_bytes(4, "big")) in kinds(connection.take())
    assert len(recorder.seen[1].data) == 65_536


@pytest.mark.parametrize("said", [b"", b"x"])
def test_padding_counts_for_the_windows(said: bytes) -> None:
    """Proves that padding, which no handler sees, is credited like data."""
    connection, recorder = greeted()
    connection.receive(request(1), 0.0)
    for _ in range(300):
        connection.receive(data(1, bytes([255]) + said + 255 * b"\0", frames.PADDED), 0.0)
        connection.send_data(recorder.streams[1], b"token")
        connection.take()
    assert connection.fault is None
    assert recorder.seen[1].data == 300 * said
    assert 2 * recorder.streams[1].receive_window >= LIMITS.stream_window_bytes


def test_data_waits_for_a_slow_reader_and_for_the_network() -> None:
    connection, recorder = greeted()
    connection.receive(request(1) + request(3), 0.0)
    slow, quick = recorder.streams[1], recorder.streams[3]
    connection.send_head(slow, encoded(ANSWER))
    connection.send_data(slow, 70_000 * b"x")
    assert slow.queued_bytes == 70_000 - frames.WINDOW_START
    connection.take()
    connection.receive(frames.window_update(0, 100), 0.0)
    connection.send_data(quick, b"token")
    assert [kind[:2] for kind in kinds(connection.take())] == [(frames.DATA, 3)]
    connection.pause()
    connection.send_data(quick, b"token")
    assert connection.take() == b""
    connection.resume()
    assert [kind[:2] for kind in kinds(connection.take())] == [(frames.DATA, 3)]
    connection.end(slow, encoded(TRAILERS))
    connection.receive(frames.window_update(0, 10_000) + frames.window_update(1, 10_000), 0.0)
    assert [kind[:2] for kind in kinds(connection.take())][:3] == [
        (frames.DATA, 1),
        (frames.DATA, 1),
        (frames.HEADERS, 1),
    ]
    assert slow.closed
    assert recorder.sent == [3, 1]


def test_a_wider_window_is_acknowledged_before_it_is_used() -> None:
    connection, recorder = greeted()
    connection.receive(frames.window_update(0, 1 << 20) + request(1), 0.0)
    connection.send_data(recorder.streams[1], 70_000 * b"x")
    connection.take()
    connection.receive(frames.settings([(frames.Setting.INITIAL_WINDOW_SIZE, 80_000)]), 0.0)
    first, *rest = (kind for kind, _, _ in kinds(connection.take()))
    assert first == frames.SETTINGS
    assert set(rest) == {frames.DATA}
    assert recorder.sent == [1]


def test_streams_that_wait_take_turns() -> None:
    connection, recorder = greeted()
    connection.receive(request(1) + request(3) + request(5), 0.0)
    connection.send_data(recorder.streams[5], frames.WINDOW_START * b"x")
    for stream_id in (1, 3):
        connection.send_data(recorder.streams[stream_id], 50 * b"x")
    connection.take()
    turns = []
    for _ in range(4):
        connection.receive(frames.window_update(0, 10), 0.0)
        turns += [stream_id for kind, stream_id, _ in kinds(connection.take()) if kind == frames.DATA]
    assert turns == [1, 3, 1, 3]


@pytest.mark.parametrize(
    "wrong", [{"stream_window_bytes": 65_534}, {"connection_window_bytes": 0}, {"frame_bytes_max": 1}]
)
def test_limits_that_no_peer_can_keep(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"at least|forbidden"):
        Limits(**wrong)
