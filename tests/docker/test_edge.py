"""The edge relays bytes to ready containers and survives the loss of any of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from deploy.docker.edge.backends import connect_order
from deploy.docker.edge.config import EdgeConfig
from deploy.docker.edge.service import Edge
from tests.support.ports import free_port
from tests.support.waiting import eventually

ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"])


@pytest.fixture(autouse=True)
def _brisk_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.docker.edge.backends.PROBE_INTERVAL_S", 0.05)


class Container:
    """A stand-in for a router: says its own address first, then echoes; answers /readyz as it is told."""

    def __init__(self, address: str, port: int, ops_port: int) -> None:
        self.address = address
        self.ready = True
        self._port, self._ops_port = port, ops_port
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.address, self._port)
        app = web.Application()
        app.router.add_get("/readyz", self._readyz)
        self._ops = web.AppRunner(app)
        await self._ops.setup()
        await web.TCPSite(self._ops, self.address, self._ops_port).start()

    async def kill(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._ops.cleanup()

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready else 503)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            writer.write(self.address.encode() + b"\n")
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


class Platform:
    """Two containers and an edge in front of them."""

    def __init__(self) -> None:
        self.port, ops_port = free_port(), free_port()
        self.containers = [Container(address, self.port, ops_port) for address in ("127.0.0.2", "127.0.0.3")]
        config = EdgeConfig(
            http_port=self.port, grpc_port=free_port(), admin_port=free_port(), backend_ops_port=ops_port,
            connections_max=20, drain_grace_s=0.2,
        )  # fmt: skip
        self.registry = CollectorRegistry()
        self.edge = Edge(config, self.registry, self._resolve)

    async def _resolve(self, name: str) -> list[str]:
        return [container.address for container in self.containers] if name == "router" else []

    async def connect(self) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        """Returns which container answered, and the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        return (await reader.readline()).decode().strip(), reader, writer

    def ready(self) -> int:
        return sum(self.edge.routers.ready.values())


@asynccontextmanager
async def running() -> AsyncIterator[Platform]:
    platform = Platform()
    for container in platform.containers:
        await container.start()
    stop = asyncio.Event()
    serving = asyncio.create_task(platform.edge.serve(stop))
    try:
        await eventually(lambda: platform.ready() == 2, what="both containers ready")
        yield platform
    finally:
        stop.set()
        await serving
        for container in platform.containers:
            await container.kill()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(ADDRESSES, st.booleans()), st.dictionaries(ADDRESSES, st.integers(0, 5)), st.integers(0, 99))
def test_order_prefers_ready_and_idle(ready: dict[str, bool], connections: dict[str, int], turn: int) -> None:
    """Proves that only ready containers are tried while there is one, fewest connections first, and none twice."""
    order = connect_order(ready, connections, turn)
    wanted = {address for address in ready if ready[address]} or set(ready)
    assert sorted(order) == sorted(wanted)
    loads = [connections.get(address, 0) for address in order]
    assert loads == sorted(loads)


async def test_bytes_pass_unchanged_both_ways() -> None:
    """Proves that several megabytes come back as they were sent, through back-pressure, and that half-close works."""
    async with running() as platform:
        _, reader, writer = await platform.connect()
        sent = bytes(range(256)) * (4 << 12)

        async def send() -> None:
            for start in range(0, len(sent), 50_000):
                writer.write(sent[start : start + 50_000])
                await writer.drain()
            writer.write_eof()

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            received = group.create_task(reader.read())
            group.create_task(send())
        assert received.result() == sent
        writer.close()
        await eventually(lambda: not platform.edge.routers.connections.total(), what="nothing counted as open")


async def test_client_that_speaks_first() -> None:
    """Proves that what a client sends, and ends, before its relay stands is delivered: most clients do."""
    async with running() as platform:
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", platform.port)
            writer.write(b"GET / HTTP/1.1")
            writer.write_eof()
            async with asyncio.timeout(5):
                assert (await reader.read()).endswith(b"GET / HTTP/1.1")
            writer.close()


async def test_connections_spread() -> None:
    """Proves that open connections are shared equally by the ready containers."""
    async with running() as platform:
        connections = [await platform.connect() for _ in range(6)]
        assert sorted(address for address, *_ in connections) == ["127.0.0.2"] * 3 + ["127.0.0.3"] * 3
        for _, _, writer in connections:
            writer.close()


async def test_unready_container_gets_no_new_connections() -> None:
    """Proves that a draining router keeps what it has and gets nothing new."""
    async with running() as platform:
        platform.containers[0].ready = False
        await eventually(lambda: platform.ready() == 1)
        connections = [await platform.connect() for _ in range(3)]
        assert {address for address, *_ in connections} == {"127.0.0.3"}
        for _, _, writer in connections:
            writer.close()


async def test_killed_container() -> None:
    """Proves that a killed router's clients see the end at once and new connections go elsewhere before any probe."""
    async with running() as platform:
        held = {address: (reader, writer) for address, reader, writer in [await platform.connect() for _ in range(2)]}
        await platform.containers[0].kill()
        reader, writer = held["127.0.0.2"]
        async with asyncio.timeout(2):
            assert await reader.read() == b""
        writer.close()
        for _ in range(4):
            address, _, other = await platform.connect()
            assert address == "127.0.0.3"
            other.close()
        held["127.0.0.3"][1].close()


async def test_nobody_there_and_too_many() -> None:
    """Proves that a connection nobody can take, and one over the limit, is closed and counted."""
    async with running() as platform:
        connections = [await platform.connect() for _ in range(20)]
        reader, writer = await asyncio.open_connection("127.0.0.1", platform.port)
        async with asyncio.timeout(2):
            assert await reader.read() == b""
        writer.close()
        for _, _, writer in connections:
            writer.close()
        await eventually(lambda: not platform.edge.routers.connections.total())
        for container in platform.containers:
            await container.kill()
        reader, writer = await asyncio.open_connection("127.0.0.1", platform.port)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        await eventually(lambda: platform.edge.readiness() is not None)

        def counted(outcome: str) -> float | None:
            labels = {"service": "router", "outcome": outcome}
            return platform.registry.get_sample_value("fairlead_edge_connections_total", labels)

        assert (counted("relayed"), counted("too_many"), counted("no_backend")) == (20.0, 1.0, 1.0)


@pytest.mark.parametrize("vanish", ["reset", "close"])
async def test_vanished_client_is_passed_on(vanish: str) -> None:
    """Proves that a client which goes away mid-stream is gone for the router too: the work can stop."""
    async with running() as platform:
        _, _, writer = await platform.connect()
        if vanish == "reset":
            writer.transport.abort()
        else:
            writer.close()
        await eventually(lambda: not any(container._writers for container in platform.containers), timeout_s=2)
