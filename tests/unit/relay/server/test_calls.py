"""Calls of grpcio at the relay's server: what comes back, how it ends, and what it may not be."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest

from fairlead.errors import QuotaExceededError, Reason, UnauthenticatedError, from_rpc_error
from tests.support.waiting import eventually
from tests.unit.relay.server.serving import REFUSAL, failed, path, serving

LARGE = (("grpc.max_receive_message_length", 16 << 20),)


async def test_answers() -> None:
    """Proves unary and streamed answers, one at a time and a hundred at once, with nothing left behind."""
    async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
        once, thrice = channel.unary_unary(path("Once")), channel.unary_stream(path("Thrice"))
        assert await once(b"hello", timeout=20) == b"hello"
        assert await once(b"", timeout=20) == b""
        assert [answer async for answer in thrice(b"token", timeout=20)] == 3 * [b"token"]
        assert await asyncio.gather(*(once(b"%d" % n, timeout=20) for n in range(100))) == [
            b"%d" % n for n in range(100)
        ]
        assert served.server.gate.open == 1
        assert served.server.tally.calls == 103
        assert all(each.gone == 0 for each in served.seen)
        assert served.seen[0].call.peer.startswith("ipv4:127.0.0.1:")


async def test_the_largest_message_and_one_byte_more() -> None:
    """Proves messages of 4 MiB to and fro, past every window, and how one byte more is refused."""
    async with serving() as served, grpc.aio.insecure_channel(served.address, options=LARGE) as channel:
        thrice = channel.unary_stream(path("Thrice"))
        message = bytes(range(256)) * (4 << 12)
        assert [answer async for answer in thrice(message, timeout=60)] == 3 * [message]
        error = await failed(thrice(message + b"x", timeout=60))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "4194305 vs. 4194304" in str(error.details())


@pytest.mark.parametrize("method", ["Fail", "FailLate"])
async def test_errors_come_with_their_details(method: str) -> None:
    async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
        error = from_rpc_error(await failed(channel.unary_stream(path(method))(b"", timeout=20)))
        assert isinstance(error, QuotaExceededError)
        assert (error.message, error.reason, error.subject) == (REFUSAL.message, REFUSAL.reason, "t/m")
        assert (error.retry_after_s, error.metadata) == (2.5, {"left": "0"})
        assert served.seen[0].gone == 0


async def test_a_call_can_be_refused_before_its_content_is_read() -> None:
    async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
        for _ in range(5):
            call = channel.unary_unary(path("Once"))(100_000 * b"x", metadata=[("authorization", "wrong")], timeout=20)
            error = from_rpc_error(await failed(call))
            assert isinstance(error, UnauthenticatedError)
            assert error.reason is Reason.UNKNOWN_KEY
        assert not served.seen
        assert served.server.gate.open == 1


async def test_a_defect_tells_nothing() -> None:
    async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
        error = await failed(channel.unary_unary(path("Defect"))(b"", timeout=20))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(error.details())
        assert await channel.unary_unary(path("Once"))(b"still here", timeout=20) == b"still here"


async def test_an_unknown_method() -> None:
    async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
        error = await failed(channel.unary_unary("/test.Relay/Missing")(b"", timeout=20))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert served.server.tally.refused == 1


async def test_one_message_and_no_other_number() -> None:
    async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
        once = channel.stream_unary(path("Once"))
        for messages in ([], [b"one", b"two"]):
            assert (await failed(once(iter(messages), timeout=20))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_who_gives_up_is_noticed() -> None:
    """Proves that a cancellation, a deadline and a lost connection each tell whoever serves the call, once."""
    async with serving() as served:
        async with grpc.aio.insecure_channel(served.address) as channel:
            silence = channel.unary_unary(path("Silence"))
            call = silence(b"", timeout=20)
            await eventually(lambda: len(served.seen) == 1 and served.seen[0].half_closed)
            call.cancel()
            await eventually(lambda: served.seen[0].gone == 1)
            assert (await failed(silence(b"", timeout=0.2))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await eventually(lambda: served.seen[1].gone == 1)
            lost = asyncio.ensure_future(silence(b"", timeout=20))
            await eventually(lambda: len(served.seen) == 3)
        await eventually(lambda: served.seen[2].gone == 1)
        with pytest.raises(asyncio.CancelledError):
            await lost
        assert [each.gone for each in served.seen] == [1, 1, 1]


async def test_a_deadline_is_known() -> None:
    async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
        now_s = asyncio.get_running_loop().time()
        await channel.unary_unary(path("Once"))(b"", timeout=1_000)
        await channel.unary_unary(path("Once"))(b"")
        first, second = (each.call.deadline_s for each in served.seen)
        assert first is not None
        assert 900 < first - now_s < 1_100
        assert second is None


async def test_a_slow_reader_is_waited_for() -> None:
    """Proves that `blocked` is said, that `on_writable` comes, and that nothing is lost on the way."""
    async with serving() as served, grpc.aio.insecure_channel(served.address, options=LARGE) as channel:
        call = channel.unary_stream(path("Silence"))(b"", timeout=60)
        await eventually(lambda: served.seen and served.seen[0].half_closed)
        echo = served.seen[0]
        sent = 0
        while not echo.call.blocked:
            echo.call.send(b"\0\0\1\0\0" + 65_536 * b"x")
            sent += 1
        received = 0
        async for answer in call:
            assert len(answer) == 65_536
            received += 1
            if received == sent:
                await eventually(lambda: echo.writable == 1 and not echo.call.blocked)
                echo.call.finish()
        assert received == sent


async def test_grpcios_threads_are_served_too() -> None:
    """Proves the same for grpcio's other client."""

    def ask(address: str) -> tuple[bytes, list[bytes], grpc.StatusCode]:
        with grpc.insecure_channel(address, options=LARGE) as channel:
            once = channel.unary_unary(path("Once"))(1_000_000 * b"x", timeout=20)
            thrice = list(channel.unary_stream(path("Thrice"))(b"token", timeout=20))
            try:
                channel.unary_unary(path("Fail"))(b"", timeout=20)
            except grpc.RpcError as error:
                return once, thrice, error.code()  # type: ignore[attr-defined]
        raise AssertionError("it went well")

    async with serving() as served:
        once, thrice, code = await asyncio.to_thread(ask, served.address)
        assert (len(once), thrice, code) == (1_000_000, 3 * [b"token"], grpc.StatusCode.RESOURCE_EXHAUSTED)
