"""A server of HTTP/1.1: listening sockets, everybody's patience, and the drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import Final, cast

from data_plane.relay.http1.calls import Application
from data_plane.relay.http1.connection import Connection, Shared
from data_plane.relay.http1.limits import BodyRoom, Limits, Patience
from data_plane.relay.http1.sockets import tune
from data_plane.relay.outbox import Outbox

_BACKLOG: Final = 1024
_CHECKED_EVERY_S: Final = 1.0
_CHECKS_A_WAIT: Final = 4
_CUT_OFF_S: Final = 1.0

_LAST_REQUEST_S: Final = 2.0
"""How long a server that ends waits for a request on a connection that has none. Clients that reuse it at once, or have
just connected, are answered; to close it in the middle of what they send would leave them without an answer."""

_DRAIN_STEP_S: Final = 0.1
_ARRIVING_S: Final = 0.05
_HANDSHAKE_S: Final = 1.0
"""For connections that have been accepted and of which nobody knows yet."""


class Server:
    """Serves an application. To be made within an event loop.

    Args:
        application: Serves the requests.
        limits: What clients may cost.
        patience: How long they are waited for.
        tls: For https, or None.

    Attributes:
        shared: What its connections share.
    """

    def __init__(
        self, application: Application, limits: Limits, patience: Patience, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._tls = tls
        self._handshake_s = patience.handshake_s if tls is not None else None
        if tls is not None:
            tls.set_alpn_protocols(["http/1.1"])
        self.shared = Shared(application, limits, patience, BodyRoom(limits.bodies_bytes_max), Outbox.here())
        shortest_s = min(patience.request_s, patience.idle_s, patience.stuck_s, patience.linger_s)
        self._checked_every_s = min(_CHECKED_EVERY_S, shortest_s / _CHECKS_A_WAIT)
        self._servers: list[asyncio.Server] = []
        self._by_socket: dict[socket.socket, asyncio.Server] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Connections there are."""
        return len(self.shared.open)

    @property
    def turned_away(self) -> int:
        """Connections that were too many."""
        return self.shared.turned_away

    @property
    def bodies_bytes(self) -> int:
        """What unfinished bodies take up."""
        return self.shared.room.taken

    async def listen(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Listens at an address of its own.

        Args:
            host: Address.
            port: Port; 0 takes a free one.
            reuse_port: Lets several processes of one host share the port.

        Returns:
            The port.

        Raises:
            OSError: It cannot be had.
        """
        server = await self._loop.create_server(
            self._made,
            host,
            port,
            ssl=self._tls,
            ssl_handshake_timeout=self._handshake_s,
            backlog=_BACKLOG,
            reuse_port=reuse_port or None,
        )
        self._opened(server)
        return int(server.sockets[0].getsockname()[1])

    async def listen_on(self, sockets: Sequence[socket.socket]) -> int:
        """Listens at sockets that are bound already, such as inherited ones.

        Returns:
            The first one's port.
        """
        for each in sockets:
            server = await self._loop.create_server(
                self._made, sock=each, ssl=self._tls, ssl_handshake_timeout=self._handshake_s, backlog=_BACKLOG
            )
            self._opened(server)
            self._by_socket[each] = server
        return int(sockets[0].getsockname()[1])

    async def leave(self, sockets: Sequence[socket.socket]) -> None:
        """Takes no more connections from these sockets and closes them; the connections it has stay."""
        for each in sockets:
            server = self._by_socket.pop(each)
            self._servers.remove(server)
            server.close()

    async def drain_and_stop(self, grace_s: float) -> None:
        """Takes no new connections, lets answers under way end and their connections with them.

        What clients sent before they could know is answered too: connections without a request are closed only after
        `_LAST_REQUEST_S`, and those that are just being made are waited for.

        Args:
            grace_s: After this long what is left is cut off.
        """
        for server in self._servers:
            server.close()
        shared, clock = self.shared, self._loop.time
        shared.draining, begun_s = True, clock()
        await asyncio.sleep(min(grace_s, _ARRIVING_S if self._tls is None else _HANDSHAKE_S))
        last_request_s = min(_LAST_REQUEST_S, grace_s / 2)
        while shared.open and (left_s := begun_s + grace_s - clock()) > 0:
            if clock() - begun_s >= last_request_s:
                for connection in list(shared.open):
                    connection.drain(clock() - last_request_s)
            await self._emptied(min(_DRAIN_STEP_S, left_s))
        for connection in list(shared.open):
            connection.abort()
        await self._emptied(_CUT_OFF_S)
        if self._timer is not None:
            self._timer.cancel()

    async def _emptied(self, wait_s: float) -> None:
        """Waits for the last connection to end, for so long at most."""
        shared = self.shared
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while shared.open:
                    shared.emptied.clear()
                    await shared.emptied.wait()

    def _made(self) -> asyncio.Protocol:
        return cast(asyncio.Protocol, Connection(self.shared))

    def _opened(self, server: asyncio.Server) -> None:
        self._servers.append(server)
        for listening in server.sockets:
            tune(listening, self.shared.patience)
        if self._timer is None:
            self._timer = self._loop.call_later(self._checked_every_s, self._check)

    def _check(self) -> None:
        self._timer = self._loop.call_later(self._checked_every_s, self._check)
        now_s = self._loop.time()
        for connection in list(self.shared.open):
            connection.check(now_s)
