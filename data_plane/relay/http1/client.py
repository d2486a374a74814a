"""The client's side of HTTP/1.1: requests on connections that are kept, answers pushed as they come.

A connection carries one request at a time. What it brings goes through llhttp straight to the request's receiver: per
piece there is no coroutine, task or timer. Cancelling a request closes its connection, because HTTP/1.1 knows no other
way; a receiver that does not keep up pauses its connection, so that the network holds the sender.

A server closes a kept connection whenever it likes, perhaps while a request is on its way to it. So a request whose
*kept* connection ended before a single byte of the answer came is sent once more on a fresh one. Where that cannot be
opened, the request counts as lost and not as unsent: it may have been what ended the server.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final, cast

from common.logs import get_logger
from data_plane.relay.http1.client_calls import Fault, HttpCall, HttpLimits, HttpReceiver, Origin
from data_plane.relay.http1.client_connection import Connection

log = get_logger(__name__)

ALPN: Final = ["http/1.1"]

_SWEPT_EVERY_S: Final = 1.0


class HttpPool:
    """Connections to any number of origins. Belongs to the loop that runs when it is made.

    Args:
        limits: What a server may cost.
        tls: For origins over TLS; None verifies by the system's certificates.
    """

    def __init__(self, limits: HttpLimits | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self.limits = limits or HttpLimits()
        self._tls = tls
        self._idle: dict[Origin, list[Connection]] = {}
        self._counts: dict[Origin, int] = {}
        self._connections: set[Connection] = set()
        self._connecting: set[asyncio.Task[Connection | None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def send(self, origin: Origin, request: bytes, receiver: HttpReceiver) -> HttpCall:
        """Sends a request.

        Args:
            origin: Where to.
            request: All its bytes, head and content; it must not ask for the connection to be closed.
            receiver: Told of the answer, but never before this has returned.
        """
        call = HttpCall(origin, request, receiver)
        idle = self._idle.get(origin)
        if idle:
            idle.pop().carry(call)
        else:
            self._open(call)
        return call

    def count(self, origin: Origin) -> int:
        """Connections to an origin, with those being opened."""
        return self._counts.get(origin, 0)

    async def close(self) -> None:
        """Ends every connection, and the requests on them."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in list(self._connections):
            connection.abort()
        for task in list(self._connecting):
            task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting)

    def send_again(self, call: HttpCall) -> None:
        """Sends a request on a fresh connection."""
        call.resent = True
        call.connection = None
        self._open(call)

    def _open(self, call: HttpCall) -> None:
        if self._closed or self.count(call.origin) >= self.limits.connections_max:
            self._loop.call_soon(call.end, Fault.UNREACHABLE)
            return
        self._counts[call.origin] = self.count(call.origin) + 1
        task = self._loop.create_task(self._connect(call.origin))
        call.connecting = task
        self._connecting.add(task)
        task.add_done_callback(lambda task: self._connected(call, task))

    async def _connect(self, origin: Origin) -> Connection | None:
        if origin.tls and self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(ALPN)
        try:
            async with asyncio.timeout(self.limits.connect_s):
                _, made = await self._loop.create_connection(
                    lambda: cast(asyncio.Protocol, Connection(self, origin)),
                    origin.host,
                    origin.port,
                    ssl=self._tls if origin.tls else None,
                    server_hostname=origin.host if origin.tls else None,
                )
                return cast(Connection, made)
        except (OSError, TimeoutError, UnicodeError) as error:  # the last: a host that is no name
            log.warning("cannot connect", host=origin.host, port=origin.port, error=str(error) or type(error).__name__)
            return None

    def _connected(self, call: HttpCall, task: asyncio.Task[Connection | None]) -> None:
        self._connecting.discard(task)
        made = None if task.cancelled() else task.result()
        if made is None:
            self._fewer(call.origin)
            call.end(Fault.LOST if call.resent else Fault.UNREACHABLE)
            return
        self._connections.add(made)
        if call.ended or self._closed:
            made.abort()
            call.end(Fault.UNREACHABLE)
        else:
            made.carry(call)

    def idle(self, connection: Connection) -> None:
        """A connection has brought its answer and may carry another request."""
        connection.idle_since_s = self._loop.time()
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweep is None and not self._closed:
            self._sweep = self._loop.call_later(_SWEPT_EVERY_S, self._retire)

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        if connection in self._connections:
            self._connections.discard(connection)
            self._fewer(connection.origin)
        idle = self._idle.get(connection.origin)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def _fewer(self, origin: Origin) -> None:
        self._counts[origin] -= 1
        if not self._counts[origin]:
            del self._counts[origin]

    def _retire(self) -> None:
        """Closes what has had nothing to do for too long; those used last go last."""
        self._sweep = None
        since_s = self._loop.time() - self.limits.idle_s
        for origin, idle in list(self._idle.items()):
            for connection in [each for each in idle if each.idle_since_s <= since_s]:
                connection.abort()
            if not self._idle[origin]:
                del self._idle[origin]
        if self._idle:
            self._sweep = self._loop.call_later(_SWEPT_EVERY_S, self._retire)
