"""A server of HTTP/1.1: listening sockets, everybody's patience, and the drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import Final

from data_plane.relay.http1.calls import Application
from data_plane.relay.http1.connection import Connection, Shared
from data_plane.relay.http1.limits import BodyRoom, Limits, Patience
from data_plane.relay.outbox import Outbox

_BACKLOG: Final = 1024
_CHECKED_EVERY_S: Final = 1.0
_CHECKS_A_WAIT: Final = 4
_CUT_OFF_S: Final = 1.0


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
        if tls is not None:
            tls.set_alpn_protocols(["http/1.1"])
        self.shared = Shared(application, limits, patience, BodyRoom(limits.bodies_bytes_max), Outbox.here())
        shortest_s = min(patience.request_s, patience.idle_s, patience.stuck_s, patience.linger_s)
        self._checked_every_s = min(_CHECKED_EVERY_S, shortest_s / _CHECKS_A_WAIT)
        self._servers: list[asyncio.Server] = []
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Connections there are."""
        return len(self.shared.open)

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
            self._made, host, port, ssl=self._tls, backlog=_BACKLOG, reuse_port=reuse_port or None
        )
        self._opened(server)
        return int(server.sockets[0].getsockname()[1])

    async def listen_on(self, sockets: Sequence[socket.socket]) -> int:
        """Listens at sockets that are bound already, such as inherited ones.

        Returns:
            The first one's port.
        """
        for each in sockets:
            self._opened(await self._loop.create_server(self._made, sock=each, ssl=self._tls, backlog=_BACKLOG))
        return int(sockets[0].getsockname()[1])

    async def drain_and_stop(self, grace_s: float) -> None:
        """Takes no new connections, lets answers under way end and their connections with them.

        Args:
            grace_s: After this long what is left is cut off.
        """
        for server in self._servers:
            server.close()
        shared = self.shared
        shared.draining = True
        for connection in list(shared.open):
            connection.drain()
        await self._emptied(grace_s)
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

    def _made(self) -> Connection:
        return Connection(self.shared)

    def _opened(self, server: asyncio.Server) -> None:
        self._servers.append(server)
        if self._timer is None:
            self._timer = self._loop.call_later(self._checked_every_s, self._check)

    def _check(self) -> None:
        self._timer = self._loop.call_later(self._checked_every_s, self._check)
        now_s = self._loop.time()
        for connection in list(self.shared.open):
            connection.check(now_s)
