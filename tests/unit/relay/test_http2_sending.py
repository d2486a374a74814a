"""What is sent, against the `h2` package, which takes no byte more than its windows are open and knows the order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data_plane.relay.http2 import frames
from data_plane.relay.http2.header_blocks import EMPTY_TABLE, encoded
from data_plane.relay.http2.sending import WRITE_BYTES_MAX
from tests.unit.relay.peers import ANSWER, REQUEST, TRAILERS, Reference, exchange, greeted, kinds, ours

STREAMS = 3
SIZES = st.sampled_from([0, 1, 100, 16_384, 16_385, 70_000, 300_000])
WHICH = st.integers(0, STREAMS - 1)
STEPS = st.one_of(
    st.tuples(st.just("send"), WHICH, SIZES),
    st.tuples(st.just("window"), WHICH, st.integers(1, 100_000)),
    st.tuples(st.just("connection window"), st.just(0), st.integers(1, 300_000)),
    st.tuples(st.just("initial window"), st.just(0), st.sampled_from([0, 1, 1_000, 65_535, 200_000])),
    st.tuples(st.just("pause"), st.just(0), st.just(0)),
    st.tuples(st.just("resume"), st.just(0), st.just(0)),
    st.tuples(st.just("there"), st.just(0), st.just(0)),
    st.tuples(st.just("back"), st.just(0), st.just(0)),
    st.tuples(st.just("end"), WHICH, st.just(0)),
)


class World:
    """A server of ours and a client of h2's, with all that is on its way between them."""

    def __init__(self) -> None:
        self.paused = False
        self.connection, self.recorder = ours(client=False)
        self.reference = Reference(client=True, opens=False)
        for number in range(STREAMS):
            self.reference.h2.send_headers(2 * number + 1, REQUEST, end_stream=True)
        self.back()
        self.there()
        self.streams = [self.recorder.streams[2 * number + 1] for number in range(STREAMS)]
        for stream in self.streams:
            self.connection.send_head(stream, encoded(ANSWER))
        self.sent = [b""] * STREAMS
        self.ended = [False] * STREAMS

    def there(self) -> None:
        """What we have to say arrives; while the network takes nothing, nothing is taken."""
        if not self.paused:
            said = self.connection.take()
            assert len(said) < WRITE_BYTES_MAX + 2_000
            self.reference.receive(said)

    def back(self) -> None:
        self.connection.receive(self.reference.h2.data_to_send(), 0.0)
        assert self.connection.fault is None

    def step(self, what: str, which: int, size: int) -> None:
        h2, connection, stream = self.reference.h2, self.connection, self.streams[which]
        match what:
            case "send" if not self.ended[which]:
                content = bytes([65 + which]) * size
                self.sent[which] += content
                nothing_waits = connection.send_data(stream, content)
                assert nothing_waits == (not stream.queue)
                assert stream.queued_bytes == sum(map(len, stream.queue))
            case "end" if not self.ended[which]:
                self.ended[which] = True
                connection.end(stream, encoded(TRAILERS))
            case "window" if not self.reference.of(stream.id).ended:
                h2.increment_flow_control_window(size, stream.id)
            case "connection window":
                h2.increment_flow_control_window(size)
            case "initial window":
                h2.update_settings({4: size})
            case "pause" if not self.paused:
                self.paused = True
                connection.pause()
            case "resume" if self.paused:
                self.paused = False
                connection.resume()
            case "there":
                self.there()
            case "back":
                self.back()

    def finish(self) -> None:
        """Everything is let through."""
        self.step("resume", 0, 0)
        for number in range(STREAMS):
            self.step("end", number, 0)
        for _ in range(200):
            self.back()
            self.there()
            if all(stream.closed for stream in self.streams):
                break
            for stream in self.streams:
                self.step("window", stream.id // 2, 100_000)
            self.step("connection window", 0, 300_000)
        self.there()
        while self.connection.has_more:
            self.there()


@given(st.lists(STEPS, max_size=40))
def test_everything_arrives_and_no_window_is_passed(steps: list[tuple[str, int, int]]) -> None:
    """Proves for any order of data, windows, settings and a network that stops, that each stream's bytes come whole."""
    world = World()
    for step in steps:
        world.step(*step)
    world.finish()
    for number, sent in enumerate(world.sent):
        seen = world.reference.of(2 * number + 1)
        assert seen.data == sent
        assert seen.ended


@given(st.sampled_from([0, 1, 511, 512, 16_384, 16_385, 70_000]))
def test_a_whole_request_ends_its_stream(size: int) -> None:
    """Proves that a request is all there and ended, be it more than the windows take at once or nothing at all."""
    connection, _ = ours(client=True)
    reference = Reference(client=False)
    exchange(connection, reference)
    content = size * b"x"
    stream = connection.ask(encoded(REQUEST), content)
    assert stream.local_ended
    assert (stream.ending is None) == (size < 65_536)
    exchange(connection, reference)
    heard = reference.seen[stream.id]
    assert (heard.fields, heard.data, heard.ended, heard.reset) == (REQUEST, content, True, None)


def test_a_short_request_is_two_frames() -> None:
    connection, _ = greeted(client=True)
    assert connection.can_open
    connection.take()
    connection.ask(encoded(REQUEST), b"hello")
    assert [(kind, payload) for kind, _, payload in kinds(connection.take())] == [
        (frames.HEADERS, EMPTY_TABLE + encoded(REQUEST)),
        (frames.DATA, b"hello"),
    ]
