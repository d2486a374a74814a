"""Whatever the order of things: cuts of the bytes, answers that come late, clients that stall, garbage.

The connection runs on a transport of the test's own, and what it says is read by h11, which shares no code with it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import h11
from hypothesis import given
from hypothesis import strategies as st

from data_plane.relay.http1.calls import HttpCall
from data_plane.relay.http1.connection import Connection, Shared
from data_plane.relay.http1.limits import BodyRoom, Limits, Patience
from data_plane.relay.outbox import Outbox
from tests.unit.relay.http1.app import TEXT, App, Seen, request

LIMITS = Limits(body_bytes_max=1000, ahead_bytes_max=200)


class Wire(asyncio.Transport):
    """What the connection writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.said = b""
        self.reads = True
        self.ended = False

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        assert not self.ended
        self.said += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.ended = True

    abort = close

    def pause_reading(self) -> None:
        assert self.reads
        self.reads = False

    def resume_reading(self) -> None:
        assert not self.reads
        self.reads = True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


@dataclass
class Play:
    """One connection with its application."""

    app: App
    shared: Shared
    connection: Connection
    wire: Wire

    @classmethod
    def begun(cls) -> Play:
        app, wire = App(), Wire()
        shared = Shared(app, LIMITS, Patience(), BodyRoom(LIMITS.bodies_bytes_max), Outbox.here())
        connection = Connection(shared)
        connection.connection_made(wire)
        return cls(app, shared, connection, wire)

    def answer(self) -> None:
        """Answers the call that waits for it, if there is one."""
        seen = self.app.calls[-1] if self.app.calls else None
        if seen is not None and seen.body is not None and seen.call.path == "/held":
            seen.call.respond(200, TEXT, seen.body)

    async def end(self) -> None:
        """Lets everything go on to its end, and the connection with it."""
        if self.connection.blocked:
            self.connection.resume_writing()
        calls = -1
        while calls != len(self.app.calls):
            calls = len(self.app.calls)
            self.answer()
            await asyncio.sleep(0)

    async def lost(self) -> None:
        """The client is gone in the end, and nothing of it stays."""
        self.connection.connection_lost(None)
        await asyncio.sleep(0)
        assert self.shared.room.taken == 0
        assert not self.shared.open


def answers(said: bytes, methods: list[str]) -> list[tuple[int, bytes]]:
    """What a client of h11 reads."""
    client = h11.Connection(h11.CLIENT)
    found = []
    for index, method in enumerate(methods):
        client.send(h11.Request(method=method, target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
        client.send(h11.EndOfMessage())
        if index == 0:
            client.receive_data(said)
        head = client.next_event()
        assert isinstance(head, h11.Response), (head, said)
        body = b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data), (event, said)
            body += event.data
        found.append((head.status_code, body))
        client.start_next_cycle()
    assert client.trailing_data[0] == b""
    return found


KINDS = {"/echo": (200, None), "/held": (200, None), "/early": (401, b"no"), "/stream": (200, None)}
requests = st.lists(
    st.tuples(
        st.sampled_from(sorted(KINDS)), st.binary(max_size=600).filter(lambda body: b"\r\n" not in body), st.booleans()
    ),
    min_size=1,
    max_size=8,
)


def wired(path: str, body: bytes, chunked: bool) -> bytes:
    """A request; an early one with chunks would end the connection, and is sent with a length."""
    if not chunked or path == "/early":
        return request(path, body)
    cut = len(body) // 3
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part)
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"


@given(
    requests,
    st.lists(st.tuples(st.integers(1, 300), st.sampled_from(["answer", "stall", "go on", "wait"])), min_size=1),
)
def test_every_order_of_things(asked: list[tuple[str, bytes, bool]], turns: list[tuple[int, str]]) -> None:
    """Each request is answered once, in order, with what belongs to it, and nobody is told anything twice."""

    async def play() -> None:
        scene = Play.begun()
        data, at, turn = b"".join(wired(*each) for each in asked), 0, 0
        while at < len(data):
            size, deed = turns[turn % len(turns)]
            turn += 1
            scene.connection.data_received(data[at : at + size])
            at += size
            if deed == "answer":
                scene.answer()
            elif deed == "stall" and not scene.connection.blocked:
                scene.connection.pause_writing()
            elif deed == "go on" and scene.connection.blocked:
                scene.connection.resume_writing()
            elif deed == "wait":
                await asyncio.sleep(0)
        await scene.end()
        expected = []
        for path, body, _ in asked:
            status, told = KINDS[path]
            if path == "/stream":
                body = b"".join(body.splitlines())
            expected.append((status, body if told is None else told))
        assert answers(scene.wire.said, ["POST"] * len(asked)) == expected
        assert scene.wire.reads
        assert not scene.wire.ended
        await scene.lost()

    asyncio.run(play())


@given(requests, st.binary(min_size=1, max_size=100), st.integers(0, 2000), st.integers(1, 200))
def test_garbage_in_the_middle(asked: list[tuple[str, bytes, bool]], garbage: bytes, at: int, size: int) -> None:
    """Whatever comes, whole answers go out for whole requests and nobody is told anything twice; nothing stays."""

    async def play() -> None:
        scene = Play.begun()
        data = b"".join(wired(*each) for each in asked)
        data = data[:at] + garbage + data[at:]
        for start in range(0, len(data), size):
            scene.connection.data_received(data[start : start + size])
            scene.answer()
        await scene.end()
        said = scene.wire.said
        heads = said.count(b"HTTP/1.1 ")
        assert heads >= len([seen for seen in scene.app.calls if seen.body is not None])
        await scene.lost()
        for seen in scene.app.calls:
            assert not (seen.gone and seen.fault)

    asyncio.run(play())


class Replica:
    """What clients' requests go on to; see Writer."""

    def __init__(self) -> None:
        self.touched = False
        self.writes = 0

    def flush(self) -> None:
        self.writes += 1


class Passing(App):
    """Passes every request on to a replica."""

    def __init__(self, outbox: Outbox, replica: Replica) -> None:
        super().__init__()
        self._outbox = outbox
        self._replica = replica

    def serve(self, call: HttpCall) -> Seen:
        self._outbox.touch(self._replica)
        return super().serve(call)


async def test_what_clients_ask_in_one_step_is_passed_on_in_one_write() -> None:
    """A replica is written to once for all clients that are read in one step of the loop, and in the very next one."""
    outbox, replica = Outbox(), Replica()
    shared = Shared(Passing(outbox, replica), LIMITS, Patience(), BodyRoom(10_000), outbox)
    for step in (1, 2):
        for _ in range(3):
            connection = Connection(shared)
            connection.connection_made(Wire())
            connection.data_received(request("/held", b"a"))
        assert replica.writes == step - 1
        await asyncio.sleep(0)
        assert replica.writes == step
