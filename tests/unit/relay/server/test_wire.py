"""What a client may say to the relay's server, at each rule and each limit, and one beyond."""

from __future__ import annotations

import asyncio
import struct

import pytest

from data_plane.relay.grpc.framing import framed
from data_plane.relay.grpc.limits import CallLimits
from data_plane.relay.http2 import frames
from data_plane.relay.http2.endpoint import Patience
from data_plane.relay.http2.frames import END_STREAM
from data_plane.relay.server import ServerLimits
from tests.support.waiting import eventually
from tests.unit.relay.server.raw import RawClient
from tests.unit.relay.server.serving import serving

HURRIED = CallLimits(message_bytes_max=1_000_000, request_s=0.5, unread_s=0.5)


async def test_the_headers_of_a_request() -> None:
    """Proves which headers a request must have, and how each other one is answered."""
    wrong: list[tuple[dict[str, str | None], bytes, bytes | None]] = [
        ({"_method": "GET"}, b"405", None),
        ({"content_type": None}, b"415", None),
        ({"content_type": "application/grpcx"}, b"415", None),
        ({"content_type": "text/plain"}, b"415", None),
        ({"te": None}, b"200", b"13"),
        ({"grpc_timeout": "1"}, b"200", b"13"),
        ({"grpc_timeout": "123456789S"}, b"200", b"13"),
        ({"grpc_timeout": "xS"}, b"200", b"13"),
        ({"grpc_timeout": "0S"}, b"200", b"4"),
        ({"content_type": "application/grpc+proto", "grpc_timeout": "99999999H"}, b"200", b"0"),
        ({"content_type": "application/grpc;x=y", "grpc_encoding": "gzip"}, b"200", b"0"),
    ]
    async with serving() as served, RawClient(served.port) as client:
        for number, (headers, status, code) in enumerate(wrong):
            stream_id = 2 * number + 1
            client.ask(stream_id, "Once", **headers)
            client.say(stream_id, framed(b"x"), END_STREAM)
            await eventually(lambda: client.of(stream_id).ended)  # noqa: B023  # it is awaited at once
            answer = client.of(stream_id)
            assert (answer.heads[0][b":status"], answer.status) == (status, code), headers
        client.ask(101, "Missing", flags=END_STREAM)
        await eventually(lambda: client.of(101).ended)
        assert client.of(101).status == b"12"
        assert len(client.of(101).heads) == 1
        assert not client.closed.is_set()


async def test_what_follows_a_refusal_is_no_flood() -> None:
    """Proves that content on its way to a refused call does not cost the client its connection."""
    async with serving() as served, RawClient(served.port) as client:
        for stream_id in range(1, 401, 2):
            client.ask(stream_id, authorization="wrong")
            for _ in range(20):
                client.say(stream_id, 100 * b"x")
            client.say(stream_id, b"", END_STREAM)
        client.ask(1_001)
        client.say(1_001, framed(b"still here"), END_STREAM)
        await eventually(lambda: client.of(1_001).ended)
        assert client.of(1_001).data == framed(b"still here")
        assert all(client.of(stream_id).status == b"16" for stream_id in range(1, 401, 2))


@pytest.mark.parametrize("flag", [1, 2, 255])
async def test_compressed_messages_are_not_taken(flag: int) -> None:
    async with serving() as served, RawClient(served.port) as client:
        client.ask(1)
        client.say(1, struct.pack(">BI", flag, 4) + b"gzip", END_STREAM)
        await eventually(lambda: client.of(1).ended)
        assert client.of(1).status == b"12"


async def test_messages_in_any_cuts() -> None:
    """Proves that a message may come in parts of a byte, in frames of its own, and must come whole."""
    async with serving() as served, RawClient(served.port) as client:
        for stream_id, size in ((1, 1), (3, 4), (5, 5), (7, 6), (9, 300)):
            client.ask(stream_id)
            message = framed(300 * b"x")
            for at in range(0, len(message), size):
                client.say(stream_id, message[at : at + size])
            client.say(stream_id, b"", END_STREAM)
            await eventually(lambda: client.of(stream_id).ended)  # noqa: B023
            assert client.of(stream_id).data == message
        client.ask(11)
        client.say(11, framed(b"whole")[:-1], END_STREAM)
        client.ask(13)
        client.say(13, b"\0\0", END_STREAM)
        client.ask(15)
        client.say(15, framed(b"one") + framed(b"two"), END_STREAM)
        for stream_id, status in ((11, b"13"), (13, b"13"), (15, b"12")):
            await eventually(lambda: client.of(stream_id).ended)  # noqa: B023
            assert client.of(stream_id).status == status


async def test_a_request_must_come_in_time() -> None:
    """Proves for a request that begins, and for one that never does, that it is not waited for for ever."""
    async with serving(ServerLimits(calls=HURRIED)) as served, RawClient(served.port) as client:
        client.ask(1)
        client.ask(3)
        client.say(3, framed(100 * b"x")[:50])
        client.ask(5)
        client.say(5, framed(b"x"))  # whole, but it never says that this was all
        client.ask(7, "Silence")
        client.say(7, framed(b"x"), END_STREAM)
        await eventually(lambda: served.server.tally.waiting_bytes == 50)
        for stream_id in (1, 3, 5):
            await eventually(lambda: client.of(stream_id).ended)  # noqa: B023
            assert client.of(stream_id).status == b"4"
        assert served.server.tally.waiting_bytes == 0
        assert [each.gone for each in served.seen] == [1, 1, 1, 0]
        assert not client.of(7).ended


async def test_a_deadline_ends_a_call_whose_client_does_not() -> None:
    async with serving() as served, RawClient(served.port) as client:
        client.ask(1, "Silence", grpc_timeout="100m")
        client.say(1, framed(b"x"), END_STREAM)
        await eventually(lambda: client.of(1).ended)
        assert client.of(1).status == b"4"
        assert served.seen[0].gone == 1


async def test_an_answer_that_nobody_reads_is_given_up() -> None:
    async with serving(ServerLimits(calls=HURRIED)) as served, RawClient(served.port, window=100) as client:
        client.ask(1)
        client.say(1, framed(1_000 * b"x"), END_STREAM)
        await eventually(lambda: client.of(1).reset is not None)
        assert len(client.of(1).data) == 100
        assert not client.of(1).ended
        client.ask(3)
        client.say(3, framed(b"x"), END_STREAM)
        await eventually(lambda: client.of(3).ended)


@pytest.mark.parametrize("bound", ["connection", "process"])
async def test_what_waits_at_the_limit_and_one_byte_more(bound: str) -> None:
    """Proves that parts of messages are bounded, that others go on, and that the room comes back."""
    limits = CallLimits(**{f"{bound}_waiting_bytes_max": 30_000})  # type: ignore[arg-type]
    async with (
        serving(ServerLimits(calls=limits)) as served,
        RawClient(served.port) as client,
        RawClient(served.port) as other,
    ):
        message = framed(15_010 * b"x")
        client.ask(1)
        client.say(1, message[:15_000])
        second = other if bound == "process" else client
        second.ask(3)
        second.say(3, message[:15_000])
        await eventually(lambda: served.server.tally.waiting_bytes == 30_000)
        second.say(3, message[15_000:15_001])
        await eventually(lambda: second.of(3).ended)
        assert second.of(3).status == b"8"
        assert served.server.tally.waiting_bytes == 15_000
        client.ask(5)
        client.say(5, framed(b"small"), END_STREAM)
        client.say(1, message[15_000:], END_STREAM)
        await eventually(lambda: client.of(5).ended and client.of(1).ended)
        assert (client.of(5).status, client.of(1).status) == (b"0", b"0")
        assert served.server.tally.waiting_bytes == 0


async def test_a_reset_gives_back_what_waited() -> None:
    async with serving() as served, RawClient(served.port) as client:
        client.ask(1)
        client.say(1, framed(100 * b"x")[:50])
        await eventually(lambda: served.server.tally.waiting_bytes == 50)
        client.send(frames.rst_stream(1, 8))
        await eventually(lambda: served.server.tally.waiting_bytes == 0)
        assert served.seen[0].gone == 1


async def test_who_opens_streams_and_says_nothing_more_holds_up_no_drain() -> None:
    """Proves that a client that answers nothing is gone with the grace, and one without calls before it."""
    patience = Patience(greeting_s=60.0)
    async with serving(ServerLimits(patience=patience)) as served:
        _, silent = await asyncio.open_connection("127.0.0.1", served.port)
        async with RawClient(served.port) as client:
            client.ask(1, "Silence")
            await eventually(lambda: served.seen)
            async with asyncio.timeout(20):
                await served.server.drain_and_stop(0.5)
            await asyncio.wait_for(client.closed.wait(), 20)
            assert client.of(1).status == b"14"
        silent.close()
