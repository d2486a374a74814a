"""What hostile peers and fuzzing have found in the relay's HTTP/2, each so that it stays found."""

from __future__ import annotations

import asyncio
import socket
import sys

from data_plane.relay.http2 import frames
from data_plane.relay.http2.endpoint import Endpoint, Patience
from data_plane.relay.http2.frames import PREFACE, ErrorCode, Setting
from data_plane.relay.http2.header_blocks import HeaderDecoder, encoded, literal
from data_plane.relay.http2.limits import Limits
from tests.support.waiting import eventually
from tests.unit.relay.peers import ANSWER, REQUEST, TRAILERS, Recorder, code_of, greeted, kinds, request


def lines_of(call: object) -> int:
    """Lines of Python that a call executes."""
    lines = 0

    def trace(_frame: object, event: str, _argument: object) -> object:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        call()  # type: ignore[operator]
    finally:
        sys.settrace(before)
    return lines


def test_one_settings_frame_resizes_the_windows_once() -> None:
    """Proves that the work of a SETTINGS frame is not its length times the number of streams."""
    connection, recorder = greeted(Limits())
    for number in range(500):
        connection.receive(request(2 * number + 1), 0.0)
    sizes = [(Setting.INITIAL_WINDOW_SIZE, 1_000 + number % 2) for number in range(2_700)]
    assert lines_of(lambda: connection.receive(frames.settings(sizes), 0.0)) < 20_000
    assert connection.fault is None
    assert recorder.streams[1].send_window == 1_001


def test_a_window_that_was_too_large_for_a_moment_is_a_fault() -> None:
    connection, _ = greeted()
    connection.receive(frames.settings([(Setting.INITIAL_WINDOW_SIZE, 2**31), (Setting.INITIAL_WINDOW_SIZE, 1)]), 0.0)
    assert code_of(connection) is ErrorCode.FLOW_CONTROL_ERROR


def test_large_header_blocks_are_not_remembered() -> None:
    """Proves that what a peer makes its decoder keep stays small, however large its headers are."""
    decoder = HeaderDecoder(32_768)
    for number in range(300):
        decoder.decode(literal(b"x-%d" % number, 16_000 * b"v"))
    kept = 0
    for block, fields in decoder.known.items():
        kept += len(block) + sum(len(name) + len(value) for name, value in fields.pairs)
    assert kept < 1 << 19


def test_requests_of_somebody_who_reads_nothing_are_refused() -> None:
    """Proves that answers, which no window holds up, do not pile up while the network takes nothing."""
    connection, recorder = greeted(Limits())
    connection.pause()
    block, stream_id, most, served = encoded(REQUEST), 1, 0, 0
    while connection.fault is None and stream_id < 100_000:
        connection.receive(request(stream_id, block=block), 0.0)
        stream = recorder.streams.get(stream_id)
        if stream is not None and not stream.closed:
            served += 1
            connection.send_head(stream, encoded(ANSWER))
            connection.end(stream, encoded(TRAILERS))
        most = max(most, sum(map(len, connection._out)))
        stream_id += 2
    assert code_of(connection) is ErrorCode.ENHANCE_YOUR_CALM
    assert most < 200_000
    assert 3 * served >= Limits().answers_max  # a head, trailers and a reset each
    refused = frames.rst_stream(stream_id - 4, ErrorCode.REFUSED_STREAM)
    assert refused in connection.take()


def test_a_window_update_for_each_of_a_thousand_calls_is_no_flood() -> None:
    """Proves for what grpcio does: it widens each stream's window before an answer comes, or as none ever does."""
    connection, _ = greeted(Limits())
    for number in range(1_000):
        connection.receive(request(2 * number + 1) + frames.window_update(2 * number + 1, 5), 0.0)
    connection.receive(1_000 * frames.window_update(0, 5), 0.0)
    assert connection.fault is None


def test_acknowledgements_of_nothing_are_counted() -> None:
    for frame in (frames.frame(frames.SETTINGS, frames.ACK, 0), frames.frame(frames.PING, frames.ACK, 0, 8 * b"p")):
        connection, _ = greeted()
        connection.receive(100 * frame, 0.0)
        assert code_of(connection) is ErrorCode.ENHANCE_YOUR_CALM


def test_a_server_that_drains_says_its_last_stream_once() -> None:
    connection, _ = greeted()
    connection.receive(request(1), 0.0)
    connection.drain()
    connection.take()
    connection.receive(3 * frames.frame(frames.PING, frames.ACK, 0, b"draining"), 0.0)
    assert [kind for kind, _, _ in kinds(connection.take())] == [frames.GOAWAY]


async def test_what_cannot_be_written_any_more_does_not_keep_a_connection() -> None:
    """Proves that a connection that has ended goes although its peer reads nothing of what was said before."""
    recorder = Recorder()
    endpoint = Endpoint(recorder, Limits(), Patience(stuck_s=0.5), client=False)
    recorder.connection = endpoint.connection
    server = await asyncio.get_running_loop().create_server(lambda: endpoint, "127.0.0.1", 0)
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    peer.setblocking(False)
    try:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(peer, server.sockets[0].getsockname())
        windows = frames.settings([(Setting.INITIAL_WINDOW_SIZE, 1 << 30)]) + frames.window_update(0, 1 << 30)
        await loop.sock_sendall(peer, PREFACE + windows + request(1))
        await eventually(lambda: recorder.streams)
        transport = endpoint._transport
        assert transport is not None
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        for _ in range(20):
            endpoint.connection.send_data(recorder.streams[1], 10_000 * b"x")
        endpoint.flush()
        assert 100_000 < transport.get_write_buffer_size() < 250_000
        await loop.sock_sendall(peer, frames.frame(frames.SETTINGS, 0, 1))
        await eventually(lambda: endpoint.lost.done(), 20)
    finally:
        peer.close()
        server.close()
