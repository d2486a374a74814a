"""A server of gRPC on the relay: listening sockets, health, reflection, and a graceful end.

It has the surface of `common.rpc.GrpcServer`, and hosts the same servicers. What must be quick is served without a task
of its own: `serve`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import _async as reflection_aio
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from common.config import CommonConfig
from common.telemetry import Telemetry
from data_plane.relay.binding import bound
from data_plane.relay.grpc.calls import Method, Route
from data_plane.relay.grpc.hosting import Host
from data_plane.relay.grpc.limits import CallLimits, Tally
from data_plane.relay.grpc.server_end import ServerEnd
from data_plane.relay.http2.endpoint import Endpoint, Patience
from data_plane.relay.http2.limits import Limits
from data_plane.relay.listening import Gate, Listener
from fairlead.errors import InvalidArgumentError, Reason, UnavailableError

_CHECKED_EVERY_S: Final = 0.25
_DRAIN_STEP_S: Final = 0.05
_HEARD_OUT_S: Final = 2.0
"""Seconds that a client has to answer the ping of a drain: what it sent before is served."""

_CLOSED_WITHIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What clients may cost.

    Attributes:
        connections_max: Connections at a time; who comes beyond is closed at once.
        handshake_s: Seconds for a TLS handshake.
        calls: Of calls.
        connection: Of one connection.
        patience: How long a client is waited for.
    """

    connections_max: int = 10_000
    handshake_s: float = 10.0
    calls: CallLimits = field(default_factory=CallLimits)
    connection: Limits = field(default_factory=Limits)
    patience: Patience = field(default_factory=Patience)


class RelayServer:
    """See the module.

    Args:
        config: Where to listen.
        telemetry: Joins traces.
        reuse_port: Lets several processes of one host share the port.
        own_port: Listens on a free port as well, which no other process shares; without TLS, for the platform itself.
        sockets: Listens on these, inherited from a supervisor, instead of on the port.
        tls: For TLS, as from `tls.server_context`; None for plain text.
        limits: What clients may cost.

    Attributes:
        address: host:port that others dial, once it listens; it may be shared.
        own_address: host:port that reaches this very process.
        gate: Connections now, and those turned away.
        tally: Calls, and what waits.
    """

    def __init__(
        self,
        config: CommonConfig,
        telemetry: Telemetry,
        *,
        reuse_port: bool = False,
        own_port: bool = False,
        sockets: Sequence[socket.socket] = (),
        tls: ssl.SSLContext | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        self._config = config
        self._reuse_port = reuse_port
        self._own_port = own_port
        self._sockets = sockets
        self._tls = tls
        self._limits = limits or ServerLimits()
        self._host = Host(telemetry.tracer)
        self._health = health_aio.HealthServicer()
        self._names: list[str] = [health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        self._ends: set[ServerEnd] = set()
        self._listeners: list[Listener] = []
        self._timer: asyncio.TimerHandle | None = None
        self.gate = Gate(self._limits.connections_max)
        self.tally = Tally()
        self.address = self.own_address = ""
        self._host.add(health_pb2_grpc.add_HealthServicer_to_server, self._health, standing=True)

    def add(self, add_to_server: Callable[[Any, Any], None], servicer: object, name: str) -> None:
        """Hosts a servicer of grpc.aio.

        Args:
            add_to_server: The generated add_…Servicer_to_server.
            servicer: Its implementation.
            name: Full service name, for health and reflection: "fairlead.quota.v1.RateLimiterService".
        """
        self._host.add(add_to_server, servicer)
        self._names.append(name)

    def serve(self, name: str, methods: Mapping[str, Method]) -> None:
        """Serves methods without a task for each call. What is served so is not asked of a servicer of the same name.

        Args:
            name: Full service name.
            methods: By name; each takes one message.
        """
        if name not in self._names:
            self._names.append(name)
        for method_name, method in methods.items():
            self._host.routes[f"/{name}/{method_name}".encode()] = Route(method)

    async def start(self) -> str:
        """Listens and says it is serving.

        Returns:
            host:port that others dial.

        Raises:
            InvalidArgumentError: The port cannot be had; the message names it.
        """
        reflector = reflection_aio.ReflectionServicer([*self._names, reflection.SERVICE_NAME])
        self._host.add(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, reflector, standing=True)
        await self.set_serving(True)
        host, port = self._config.bind_host, self._config.grpc_port
        public = list(self._sockets)
        try:
            if not public:
                public.append(bound(host, port, reuse_port=self._reuse_port))
            for each in public:
                self._listen(each, self._tls, inherited=bool(self._sockets))
        except OSError as error:
            for each in public:
                each.close()
            raise InvalidArgumentError(f"cannot listen on {host}:{port}: is the port taken? Set grpc_port") from error
        self.address = self.own_address = f"{self._config.reachable_host}:{_port(public[0])}"
        if self._own_port:
            own = bound(host, 0, reuse_port=False)
            self._listen(own, None)
            self.own_address = f"{self._config.reachable_host}:{_port(own)}"
        self._timer = asyncio.get_running_loop().call_later(_CHECKED_EVERY_S, self._check)
        return self.address

    async def listen_on(self, sockets: Sequence[socket.socket]) -> int:
        """Takes connections from further inherited sockets, while it serves.

        Args:
            sockets: Bound; they are closed when it leaves them.

        Returns:
            The first one's port.
        """
        for each in sockets:
            self._listen(each, self._tls, inherited=True)
        return _port(sockets[0])

    async def leave(self, sockets: Sequence[socket.socket]) -> None:
        """Takes no more connections from these sockets and closes them; the connections it has stay."""
        for listener in self._listeners:
            if listener.listening in sockets:
                listener.stop()

    async def set_serving(self, serving: bool) -> None:
        """Answers health checks with SERVING or NOT_SERVING."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def drain_and_stop(self, grace_s: float) -> None:
        """Says it is not serving, lets calls in flight finish for up to `grace_s` seconds, then ends the rest."""
        await self._health.enter_graceful_shutdown()
        for listener in self._listeners:
            listener.stop()
        leaving = UnavailableError("this process is ending: ask again", reason=Reason.SHUTTING_DOWN, retry_after_s=0.1)
        clock = asyncio.get_running_loop().time
        begun_s = clock()
        while self.gate.open and (elapsed_s := clock() - begun_s) < grace_s:
            for end in list(self._ends):
                end.drain()
                heard_out = end.endpoint.connection.heard_out or elapsed_s >= _HEARD_OUT_S
                if heard_out and not end.calls_to_wait_for:
                    end.leave(leaving)
            await asyncio.sleep(min(_DRAIN_STEP_S, grace_s))
        for end in list(self._ends):
            end.leave(leaving)
        left = [end.endpoint.lost for end in self._ends if end.endpoint.transport is not None]
        if left:
            await asyncio.wait(left, timeout=_CLOSED_WITHIN_S)
        for end in list(self._ends):
            end.endpoint.abort()
        for listener in self._listeners:
            await listener.closed()
        if self._timer is not None:
            self._timer.cancel()

    def _listen(self, listening: socket.socket, tls: ssl.SSLContext | None, *, inherited: bool = False) -> None:
        handshake_s = self._limits.handshake_s
        self._listeners.append(
            Listener(listening, self._connected, self.gate, tls=tls, handshake_s=handshake_s, inherited=inherited)
        )

    def _connected(self) -> Endpoint:
        limits = self._limits
        end = ServerEnd(self._host.routes, limits.calls, self.tally, limits.connection, limits.patience)
        self._ends.add(end)
        end.endpoint.lost.add_done_callback(lambda _: self._ends.discard(end))
        return end.endpoint

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_CHECKED_EVERY_S, self._check)
        now_s = loop.time()
        for end in self._ends:
            end.check(now_s)


def _port(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])
