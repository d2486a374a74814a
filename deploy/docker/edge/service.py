"""Listens on the published ports and joins each connection to a container."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import prometheus_client

from common.logs import get_logger
from deploy.docker.edge.backends import Backends, Resolve, resolve_all
from deploy.docker.edge.config import EdgeConfig
from deploy.docker.edge.relay import Half

log = get_logger(__name__)

CONNECT_TIMEOUT_S = 2.0


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
        ready = prometheus_client.Gauge(
            "fairlead_edge_ready_backends", "Containers that are ready", ["service"], registry=registry
        )
        for backends in (self.routers, self.control_planes):
            ready.labels(backends.name).set_function(backends.ready_count)
        self._taken = prometheus_client.Counter(
            "fairlead_edge_connections",
            "Connections, by what became of them",
            ["service", "outcome"],
            registry=registry,
        )
        self._relays: set[asyncio.Task[None]] = set()

    def readiness(self) -> str | None:
        """Says why nothing can be served, or None."""
        return None if self.routers.ready_count() else f"no {self.routers.name} is ready"

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
