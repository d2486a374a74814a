"""The relay's server as a process has it: its end, its limits, its sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.telemetry import Telemetry
from data_plane.relay.binding import bound
from data_plane.relay.grpc.framing import framed
from data_plane.relay.server import RelayServer, ServerLimits
from fairlead.errors import InvalidArgumentError, Reason, UnavailableError, from_rpc_error
from tests.support.waiting import eventually
from tests.unit.relay.server.serving import CONFIG, METHODS, SERVICE, Echo, failed, path, serving


async def test_a_drain_lets_calls_finish() -> None:
    """Proves that a drain refuses new connections, tells those who watch, and waits for calls, not for watchers."""
    async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = channel.unary_stream(path("Silence"))(b"", timeout=60)
        await eventually(lambda: served.seen and served.seen[0].half_closed)
        echo = served.seen[0]
        echo.call.send(framed(b"before"))
        assert await call.read() == b"before"
        draining = asyncio.ensure_future(served.server.drain_and_stop(60.0))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await eventually(lambda: _refused(served.port))
        assert not draining.done()
        echo.call.send(framed(b"after"))
        assert await call.read() == b"after"
        echo.call.finish()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        async with asyncio.timeout(20):
            await draining
        assert (await failed(watch)).code() is grpc.StatusCode.UNAVAILABLE
        assert echo.gone == 0


async def test_what_is_left_after_the_grace_is_ended() -> None:
    async with serving() as served, grpc.aio.insecure_channel(served.address) as channel:
        call = channel.unary_stream(path("Silence"))(b"", timeout=60)
        await eventually(lambda: served.seen and served.seen[0].half_closed)
        served.seen[0].call.send(framed(b"before"))
        async with asyncio.timeout(20):
            await served.server.drain_and_stop(0.2)
        assert await call.read() == b"before"
        error = from_rpc_error(await failed(call))
        assert isinstance(error, UnavailableError)
        assert error.reason is Reason.SHUTTING_DOWN
        assert served.seen[0].gone == 1


async def test_requests_on_their_way_to_a_drain_are_served() -> None:
    """Proves that a client that goes on asking sees no error while its server drains and another takes over."""
    async with serving(reuse_port=True) as old:
        config = replace(CONFIG, grpc_port=old.port)
        errors: list[object] = []
        asked = 0
        stop = asyncio.Event()
        async with serving_at(config) as new, grpc.aio.insecure_channel(old.address) as channel:

            async def ask() -> None:
                nonlocal asked
                while not stop.is_set():
                    try:
                        assert await channel.unary_unary(path("Once"))(b"x", timeout=20) == b"x"
                    except grpc.aio.AioRpcError as error:
                        errors.append(error)
                    asked += 1

            asking = asyncio.gather(*(ask() for _ in range(4)))
            await eventually(lambda: asked > 100)
            servers = [old.server, new]
            if not old.server.gate.open:
                servers.reverse()
            before = asked
            async with asyncio.timeout(20):
                await servers[0].drain_and_stop(10.0)
            await eventually(lambda: asked > before + 100)
            stop.set()
            await asking
            assert not errors


@contextlib.asynccontextmanager
async def serving_at(config: Any) -> AsyncIterator[RelayServer]:
    """A second server of the same port."""
    server = RelayServer(config, Telemetry("test", config), reuse_port=True)
    seen: list[Echo] = []
    server.serve(SERVICE, {name: lambda call: Echo(call, seen) for name in METHODS})
    await server.start()
    try:
        yield server
    finally:
        await server.drain_and_stop(0.0)


async def _refused(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def test_what_is_said_to_a_connection_that_was_just_cut_off_is_lost_quietly() -> None:
    """Proves that between the cut and the loop's word of it nothing raises."""
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        await eventually(lambda: served.server._ends)
        (end,) = served.server._ends
        await eventually(lambda: end.endpoint.transport is not None)
        end.endpoint.abort()
        end.endpoint.connection.ping(b"anybody?")
        end.endpoint.flush()
        assert not end.endpoint.pause()
        end.endpoint.read_on()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        await eventually(lambda: served.server.gate.open == 0)


async def test_connections_at_the_limit_and_one_more() -> None:
    async with serving(ServerLimits(connections_max=2)) as served:
        kept = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(2)]
        await eventually(lambda: served.server.gate.open == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert served.server.gate.turned_away == 1
        kept[0][1].close()
        await eventually(lambda: served.server.gate.open == 1)
        async with grpc.aio.insecure_channel(served.address) as channel:
            assert await channel.unary_unary(path("Once"))(b"there is room", timeout=20) == b"there is room"
        kept[1][1].close()
        await eventually(lambda: served.server.gate.open == 0)


async def test_an_inherited_socket_is_left_to_others() -> None:
    """Proves that a server listens where it is told to, and that the port goes on listening when it has ended."""
    inherited = bound("127.0.0.1", 0, reuse_port=True)
    for _ in range(2):
        async with (
            serving(sockets=[inherited.dup()]) as served,
            grpc.aio.insecure_channel(served.address) as channel,
        ):
            assert served.port == inherited.getsockname()[1]
            assert await channel.unary_unary(path("Once"))(b"x", timeout=20) == b"x"
    with socket.create_connection(inherited.getsockname(), timeout=5):
        pass
    inherited.close()


async def test_further_sockets_are_taken_and_left_while_it_serves() -> None:
    """Proves that a left socket takes no call any more, and that the calls of its connections go on."""
    inherited = bound("127.0.0.1", 0, reuse_port=True)
    copy = inherited.dup()
    address = f"127.0.0.1:{inherited.getsockname()[1]}"
    async with serving() as served, grpc.aio.insecure_channel(address) as channel:
        assert await served.server.listen_on([copy]) == inherited.getsockname()[1]
        assert await channel.unary_unary(path("Once"))(b"x", timeout=20) == b"x"
        await served.server.leave([copy])
        assert copy.fileno() < 0
        assert await channel.unary_unary(path("Once"))(b"y", timeout=20) == b"y"
        with socket.create_connection(inherited.getsockname(), timeout=5) as waits:
            inherited.setblocking(True)
            inherited.settimeout(5)
            taken, who = inherited.accept()
            assert who == waits.getsockname()
            taken.close()
    inherited.close()


async def test_a_port_of_its_own() -> None:
    async with serving(own_port=True) as served:
        assert served.server.own_address != served.address
        async with grpc.aio.insecure_channel(served.server.own_address) as channel:
            assert await channel.unary_unary(path("Once"))(b"x", timeout=20) == b"x"


async def test_a_port_that_is_taken() -> None:
    async with serving() as served:
        config = replace(CONFIG, grpc_port=served.port)
        with pytest.raises(InvalidArgumentError, match=f"{served.port}.*grpc_port"):
            await RelayServer(config, Telemetry("test", config)).start()
