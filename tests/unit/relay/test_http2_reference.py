"""Our connection against the `h2` package at the other end: whatever is sent in whatever pieces arrives."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import h2.exceptions
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.relay.http2.connection import Connection
from data_plane.relay.http2.header_blocks import encoded
from data_plane.relay.http2.limits import Limits
from tests.unit.relay.peers import ANSWER, REQUEST, TRAILERS, Recorder, Reference, exchange, ours

STREAMS = st.lists(
    st.tuples(
        st.lists(
            st.builds(lambda byte, length: byte * length, st.binary(min_size=1, max_size=1), st.integers(0, 40_000)),
            max_size=4,
        ),  # what the client sends
        st.lists(
            st.builds(lambda byte, length: byte * length, st.binary(min_size=1, max_size=1), st.integers(0, 40_000)),
            max_size=4,
        ),  # what the server answers
        st.booleans(),  # trailers
    ),
    min_size=1,
    max_size=5,
)
WINDOWS = st.sampled_from([300, 20_000, 65_535, 1 << 20])
FRAMES = st.sampled_from([16_384, 20_000, 1 << 20])


def cutter(seed: int) -> Callable[[bytes], list[bytes]]:
    """Cuts bytes anywhere."""
    random = Random(seed)

    def cut(data: bytes) -> list[bytes]:
        parts = []
        while data:
            length = random.choice((1, 3, 9, 100, 5_000, 1 << 20))
            parts.append(data[:length])
            data = data[length:]
        return parts

    return cut


def send_all(reference: Reference, waiting: dict[int, list[bytes]], trailers: dict[int, bool]) -> None:
    """The reference sends what its windows allow."""
    for stream_id in list(waiting):
        parts = waiting[stream_id]
        while parts:
            room = min(
                reference.h2.local_flow_control_window(stream_id), reference.h2.max_outbound_frame_size, len(parts[0])
            )
            if parts[0] and room <= 0:
                break
            reference.h2.send_data(stream_id, parts[0][:room])
            parts[0] = parts[0][room:]
            if not parts[0]:
                parts.pop(0)
        if not parts:
            del waiting[stream_id]
            if trailers.get(stream_id):
                reference.h2.send_headers(stream_id, TRAILERS, end_stream=True)
            else:
                reference.h2.end_stream(stream_id)


def run(
    connection: Connection, reference: Reference, cut: Callable[[bytes], list[bytes]], step: Callable[[], bool]
) -> None:
    """Lets both ends go on until nothing moves any more."""
    still = 0
    while still < 3:
        exchange(connection, reference, cut)
        still = 0 if step() else still + 1


@settings(deadline=None, max_examples=25)
@given(STREAMS, WINDOWS, FRAMES, st.integers(0, 1 << 16))
def test_a_server_hears_and_answers(
    streams: list[tuple[list[bytes], list[bytes], bool]], window: int, frame: int, seed: int
) -> None:
    connection, recorder = ours(client=False)
    reference, cut = Reference(client=True), cutter(seed)
    codes = h2.settings.SettingCodes
    reference.h2.update_settings({codes.INITIAL_WINDOW_SIZE: window, codes.MAX_FRAME_SIZE: frame})
    exchange(connection, reference, cut)
    waiting: dict[int, list[bytes]] = {}
    plans = {}
    for parts, answers, trailers in streams:
        stream_id = reference.h2.get_next_available_stream_id()
        reference.h2.send_headers(stream_id, REQUEST)
        waiting[stream_id] = list(parts)
        plans[stream_id] = (b"".join(parts), answers, trailers)
    answered: set[int] = set()

    def step() -> bool:
        before = {stream_id: sum(map(len, parts)) for stream_id, parts in waiting.items()}
        send_all(reference, waiting, {})
        moved = before != {stream_id: sum(map(len, parts)) for stream_id, parts in waiting.items()}
        for stream_id, seen in recorder.seen.items():
            if seen.ended and stream_id not in answered:
                answered.add(stream_id)
                moved = True
                _answer(connection, recorder, stream_id, plans[stream_id][1], trailers=plans[stream_id][2])
        return moved

    run(connection, reference, cut, step)
    assert connection.fault is None
    assert not connection.streams
    for stream_id, (content, answers, trailers) in plans.items():
        heard, got = recorder.seen[stream_id], reference.seen[stream_id]
        assert (heard.fields, heard.data, heard.ended, heard.reset) == (REQUEST, content, True, None)
        assert (got.fields, got.data, got.ended, got.reset) == (ANSWER, b"".join(answers), True, None)
        assert got.trailers == (TRAILERS if trailers else ())


def _answer(connection: Connection, recorder: Recorder, stream_id: int, parts: list[bytes], *, trailers: bool) -> None:
    stream = recorder.streams[stream_id]
    connection.send_head(stream, encoded(ANSWER))
    for part in parts:
        connection.send_data(stream, part)
    connection.end(stream, encoded(TRAILERS) if trailers else b"")


@settings(deadline=None, max_examples=25)
@given(STREAMS, WINDOWS, FRAMES, st.integers(0, 1 << 16))
def test_a_client_asks_and_hears(
    streams: list[tuple[list[bytes], list[bytes], bool]], window: int, frame: int, seed: int
) -> None:
    connection, recorder = ours(client=True, limits=Limits(stream_window_bytes=65_535, connection_window_bytes=65_535))
    reference, cut = Reference(client=False), cutter(seed)
    codes = h2.settings.SettingCodes
    reference.h2.update_settings({codes.INITIAL_WINDOW_SIZE: window, codes.MAX_FRAME_SIZE: frame})
    exchange(connection, reference, cut)
    plans = {}
    for parts, answers, trailers in streams:
        stream = connection.open(encoded(REQUEST))
        for part in parts:
            connection.send_data(stream, part)
        connection.end(stream)
        plans[stream.id] = (b"".join(parts), list(answers), trailers)
    waiting: dict[int, list[bytes]] = {}
    answered: set[int] = set()

    def step() -> bool:
        before = {stream_id: sum(map(len, parts)) for stream_id, parts in waiting.items()}
        for stream_id, seen in list(reference.seen.items()):
            if seen.ended and stream_id not in answered:
                answered.add(stream_id)
                reference.h2.send_headers(stream_id, ANSWER)
                waiting[stream_id] = list(plans[stream_id][1])
        send_all(reference, waiting, {stream_id: plan[2] for stream_id, plan in plans.items()})
        return before != {stream_id: sum(map(len, parts)) for stream_id, parts in waiting.items()}

    run(connection, reference, cut, step)
    assert connection.fault is None
    assert not connection.streams
    for stream_id, (content, answers, trailers) in plans.items():
        heard, got = reference.seen[stream_id], recorder.seen[stream_id]
        assert (heard.fields, heard.data, heard.ended) == (REQUEST, content, True)
        assert (got.fields, got.data, got.ended, got.reset) == (ANSWER, b"".join(answers), True, None)
        assert got.trailers == (TRAILERS if trailers else ())


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=20)), max_size=12)
)
def test_any_frames_end_in_order_or_in_a_fault(sent: list[tuple[int, int, int, bytes]]) -> None:
    """Proves that whatever frames a client sends, nothing but a fault ends the connection, and that it is told so."""
    connection, _ = ours(client=False)
    reference = Reference(client=True)
    connection.receive(reference.h2.data_to_send(), 0.0)
    connection.take()
    for kind, flags, stream_id, payload in sent:
        connection.receive(
            len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload, 0.0
        )
    if connection.fault is not None:
        assert connection.finished
        assert not connection.streams
        assert connection.take()[-17 - len(connection.fault.message) : -14 - len(connection.fault.message)] == (
            8 + len(connection.fault.message)
        ).to_bytes(3, "big")
