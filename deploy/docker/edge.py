"""The door of the compose platform: one fixed address in front of however many routers and control planes run.

Why it exists: Docker gives the containers of a scaled service host ports out of a range, and a container that restarts
takes the *next* free port of that range (measured with Docker 20.10: 18080, after a restart 18081, then 18082), so
clients would lose their address at the first router crash. The edge holds the published ports instead and relays TCP to
the containers behind a service name. It reads nothing of what passes: HTTP and gRPC go through as they are.

Where a connection goes: to the ready container with the fewest open connections. Every second the service name is
resolved and every container asked for /readyz. A connection that is refused or not answered goes to the next container.
While none is ready all are tried, because a router's own error says more than a closed connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import cast

import aiohttp
import prometheus_client

from common.config import CommonConfig, load_config, setting
from common.logs import get_logger
from common.ops import OpsServer
from common.service import run_service
from common.telemetry import Telemetry

log = get_logger(__name__)

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 1.0
CONNECT_TIMEOUT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class EdgeConfig(CommonConfig):
    """Settings of the edge. `grpc_port` is the routers' gRPC port, here and there."""

    http_port: int = setting(8080, "HTTP port, here and at the routers", minimum=1, maximum=65535)
    admin_port: int = setting(8082, "admin API port, here and at the control planes", minimum=1, maximum=65535)
    router: str = setting("router", "host name that resolves to every router")
    control_plane: str = setting("control-plane", "host name that resolves to every control plane")
    backend_ops_port: int = setting(9464, "port of /readyz at routers and control planes", minimum=1, maximum=65535)
    connections_max: int = setting(4096, "open connections; further ones are closed", minimum=1, maximum=1_000_000)


def connect_order(ready: Mapping[str, bool], connections: Mapping[str, int], turn: int) -> list[str]:
    """Decides which containers a new connection tries, and in what order.

    Args:
        ready: Every container's address, and whether it says it is ready.
        connections: Connections open to each.
        turn: A number that grows by one per connection, so that equals take turns.

    Returns:
        Addresses of the ready ones, fewest connections first; of all where none is ready.
    """
    addresses = sorted(address for address, is_ready in ready.items() if is_ready) or sorted(ready)
    shift = turn % len(addresses) if addresses else 0
    return sorted(addresses[shift:] + addresses[:shift], key=lambda address: connections.get(address, 0))


Resolve = Callable[[str], Awaitable[list[str]]]


async def resolve_all(name: str) -> list[str]:
    """Asks the resolver for every IPv4 address of a host name; none is what Docker says while no container runs."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return sorted({str(address[0]) for *_, address in found})


class Backends:
    """The containers behind one service name.

    Args:
        name: Host name that resolves to all of them.
        ops_port: Where each serves /readyz.
        resolve: Finds their addresses.
    """

    def __init__(self, name: str, ops_port: int, resolve: Resolve) -> None:
        self.name = name
        self.ready: dict[str, bool] = {}
        self.connections: Counter[str] = Counter()
        self._ops_port = ops_port
        self._resolve = resolve
        self._turns = itertools.count()

    def order(self) -> list[str]:
        """Returns the addresses a new connection should try, best first."""
        return connect_order(self.ready, self.connections, next(self._turns))

    async def run(self) -> None:
        """Keeps `ready` up to date until cancelled."""
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                addresses = await self._resolve(self.name)
                states = await asyncio.gather(*(self._is_ready(session, address) for address in addresses))
                ready = dict(zip(addresses, states, strict=True))
                if ready != self.ready:
                    log.info("backends changed", service=self.name, ready=sum(states), known=len(states))
                self.ready = ready
                await asyncio.sleep(PROBE_INTERVAL_S)

    async def _is_ready(self, session: aiohttp.ClientSession, address: str) -> bool:
        try:
            async with session.get(f"http://{address}:{self._ops_port}/readyz") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


class Half(asyncio.Protocol):
    """One of a relay's two connections: what it receives leaves at its peer, no faster than the peer takes it.

    Args:
        opened: Called once the connection stands, with nothing read from it yet; None for the side towards a container.
    """

    def __init__(self, opened: Callable[[Half], None] | None = None) -> None:
        self.peer: Half | None = None
        self.closed = asyncio.Event()
        self._opened = opened
        self._transport: asyncio.Transport

    def join(self, peer: Half) -> None:
        """Starts relaying between the two."""
        self.peer, peer.peer = peer, self
        for half in (self, peer):
            if half.closed.is_set():
                half.connection_lost(None)
            else:
                half._transport.resume_reading()

    def close(self) -> None:
        """Ends the connection once what was written to it is sent."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)
        self._transport.pause_reading()
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._opened is not None:
            self._opened(self)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if (out := self._out()) is not None:
            out.write(data)

    def eof_received(self) -> bool:
        """A client that has said everything may still wait for its answer; a container that ends has ended."""
        if self._opened is not None and (out := self._out()) is not None:
            out.write_eof()
            return True
        return False

    def pause_writing(self) -> None:  # noqa: D102
        if (out := self._out()) is not None:
            out.pause_reading()

    def resume_writing(self) -> None:  # noqa: D102
        if (out := self._out()) is not None:
            out.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if (out := self._out()) is not None:
            out.close()
        self.closed.set()

    def _out(self) -> asyncio.Transport | None:
        transport = self.peer._transport if self.peer is not None else None
        return transport if transport is not None and not transport.is_closing() else None


class Edge:
    """Listens on the published ports and relays.

    Args:
        config: Where to listen and how much to take.
        registry: Gets the edge's metrics.
        resolve: Finds the containers of a service.
    """

    def __init__(
        self, config: EdgeConfig, registry: prometheus_client.CollectorRegistry, resolve: Resolve = resolve_all
    ) -> None:
        self._config = config
        self.routers = Backends(config.router, config.backend_ops_port, resolve)
        self.control_planes = Backends(config.control_plane, config.backend_ops_port, resolve)
        self._doors = {
            config.http_port: self.routers,
            config.grpc_port: self.routers,
            config.admin_port: self.control_planes,
        }
        self._open = prometheus_client.Gauge(
            "fairlead_edge_open_connections", "Connections being relayed", ["service"], registry=registry
        )
        self._taken = prometheus_client.Counter(
            "fairlead_edge_connections",
            "Connections, by what became of them",
            ["service", "outcome"],
            registry=registry,
        )
        self._relays: set[asyncio.Task[None]] = set()

    def readiness(self) -> str | None:
        """Says why nothing can be served, or None."""
        return None if any(self.routers.ready.values()) else f"no {self.routers.name} is ready"

    async def serve(self, stop: asyncio.Event) -> None:
        """Relays until `stop`, then lets open connections end for the configured grace."""
        loop = asyncio.get_running_loop()
        probes = [asyncio.create_task(backends.run()) for backends in (self.routers, self.control_planes)]
        servers = [
            await loop.create_server(self._door(backends, port), self._config.bind_host, port)
            for port, backends in self._doors.items()
        ]
        log.info("listening", ports=sorted(self._doors))
        stopping = asyncio.create_task(stop.wait())
        # A probe loop ends only by a defect; then the edge ends too, loudly, and Docker starts it again.
        await asyncio.wait([stopping, *probes], return_when=asyncio.FIRST_COMPLETED)
        for server in servers:
            server.close()
        if self._relays:
            await asyncio.wait(self._relays, timeout=self._config.drain_grace_s)
        for task in (*self._relays, stopping):
            task.cancel()
        for probe in probes:
            probe.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probe

    def _door(self, backends: Backends, port: int) -> Callable[[], Half]:
        def opened(client: Half) -> None:
            task = asyncio.create_task(self._relay(client, backends, port))
            self._relays.add(task)
            task.add_done_callback(self._relays.discard)

        return lambda: Half(opened)

    async def _relay(self, client: Half, backends: Backends, port: int) -> None:
        """Joins one client connection to a container and waits until both have ended."""
        if len(self._relays) > self._config.connections_max:
            self._refuse(client, backends, "too_many")
            return
        for address in backends.order():
            upstream = await self._connect(address, port)
            if upstream is not None:
                break
        else:
            self._refuse(client, backends, "no_backend")
            return
        self._taken.labels(backends.name, "relayed").inc()
        self._open.labels(backends.name).inc()
        backends.connections[address] += 1
        try:
            client.join(upstream)
            await upstream.closed.wait()
            await client.closed.wait()
        finally:
            client.close()
            upstream.close()
            self._open.labels(backends.name).dec()
            backends.connections[address] -= 1

    async def _connect(self, address: str, port: int) -> Half | None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, upstream = await asyncio.get_running_loop().create_connection(Half, address, port)
        except OSError:  # refused, unreachable, or TimeoutError
            return None
        return upstream

    def _refuse(self, client: Half, backends: Backends, outcome: str) -> None:
        self._taken.labels(backends.name, outcome).inc()
        log.warning("connection closed", service=backends.name, reason=outcome)
        client.close()


def main() -> int:
    """Runs the edge until it is told to stop.

    Returns:
        Exit status.
    """
    config = load_config(EdgeConfig, "edge", sys.argv[1:])

    async def serve(stop: asyncio.Event) -> None:
        telemetry = Telemetry("edge", config)
        edge = Edge(config, telemetry.registry)
        ops = OpsServer(config, telemetry.registry, edge.readiness)
        await ops.start()
        try:
            await edge.serve(stop)
        finally:
            await ops.stop()
            telemetry.shutdown()

    return run_service("edge", config, serve)


if __name__ == "__main__":
    sys.exit(main())
