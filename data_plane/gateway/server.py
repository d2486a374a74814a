"""The gateway's server: where it listens, what clients may cost, and the drain."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from dataclasses import replace

from data_plane.gateway.app import Gateway
from data_plane.relay.http1.limits import Limits, Patience
from data_plane.relay.http1.server import Server
from fairlead.errors import InvalidArgumentError


class HttpServer:
    """Serves the gateway.

    Args:
        gateway: Serves the requests.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        reuse_port: Lets several processes of one host share the port.
        grace_s: Seconds for requests in flight when it stops.
        limits: What clients may cost; the largest body is the gateway's.
        patience: How long they are waited for.
        tls: For https, or None.
        sockets: Bound sockets to listen on instead of an address of its own.
    """

    def __init__(
        self,
        gateway: Gateway,
        *,
        host: str,
        port: int,
        reuse_port: bool,
        grace_s: float,
        limits: Limits | None = None,
        patience: Patience | None = None,
        tls: ssl.SSLContext | None = None,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        self._gateway = gateway
        self._host = host
        self._port = port
        self._reuse_port = reuse_port
        self._grace_s = grace_s
        self._limits = replace(limits or Limits(), body_bytes_max=gateway.body_bytes_max)
        self._patience = patience or Patience()
        self._tls = tls
        self._sockets = sockets
        self._server: Server | None = None

    async def start(self) -> int:
        """Listens.

        Returns:
            The port.

        Raises:
            InvalidArgumentError: The port cannot be had; the message names it.
        """
        self._server = Server(self._gateway, self._limits, self._patience, tls=self._tls)
        if self._sockets:
            return await self._server.listen_on(self._sockets)
        try:
            return await self._server.listen(self._host, self._port, reuse_port=self._reuse_port)
        except OSError as error:
            raise InvalidArgumentError(
                f"cannot listen on {self._host}:{self._port} ({error.strerror}): is the port taken? Set http_port"
            ) from error

    @property
    def connections(self) -> int:
        """Connections there are."""
        return self._server.connections if self._server is not None else 0

    @property
    def turned_away(self) -> int:
        """Connections that were too many."""
        return self._server.turned_away if self._server is not None else 0

    @property
    def bodies_bytes(self) -> int:
        """What unfinished bodies take up."""
        return self._server.bodies_bytes if self._server is not None else 0

    async def listen_on(self, sockets: Sequence[socket.socket]) -> int:
        """Takes connections from further inherited sockets, while it serves; returns the first one's port."""
        assert self._server is not None
        return await self._server.listen_on(sockets)

    async def leave(self, sockets: Sequence[socket.socket]) -> None:
        """Takes no more connections from these sockets and closes them; the connections it has stay."""
        assert self._server is not None
        await self._server.leave(sockets)

    async def drain_and_stop(self) -> None:
        """Takes no new connections, tells those there are to go elsewhere, and lets requests in flight finish."""
        if self._server is not None:
            await self._server.drain_and_stop(self._grace_s)
