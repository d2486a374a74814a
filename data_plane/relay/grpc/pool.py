"""Connections to servers of gRPC: one each while it has room for more calls, opened when the first one needs it."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Final, cast

from common.logs import get_logger
from data_plane.relay.grpc.client_end import ClientCall, ClientEnd, Reply
from data_plane.relay.grpc.status import CONTENT_TYPE
from data_plane.relay.http2.endpoint import Patience
from data_plane.relay.http2.header_blocks import encoded, named, string
from data_plane.relay.http2.limits import Limits
from fairlead.errors import Reason, UnavailableError

log = get_logger(__name__)

CONNECT_S: Final = 2.0
"""How long a connection may take to come about. The calls that wait for it are tried elsewhere after that."""

CONNECTIONS_MAX: Final = 16
"""To one server, which takes fewer calls on each than are to be sent."""

WAITING_MAX: Final = 10_000
"""Calls that wait for a connection to one server."""

MESSAGE_BYTES_MAX: Final = 64 << 20

PATIENCE: Final = Patience(greeting_s=CONNECT_S, silence_s=1.0, answer_s=1.5)
"""A server that is frozen is given up within seconds, be it in the middle of streams or before it has said a word: its
kernel goes on taking connections."""

LIMITS: Final = Limits(stream_window_bytes=65_535)
"""What a server may send that a slow client has not taken yet is what a stream costs at most."""

_AUTHORITY_CHARS_MAX: Final = 255
_TIMEOUT: Final = named(b"grpc-timeout")


class Pool:
    """See the module.

    Args:
        tls: How servers prove who they are; None for plain connections.
        patience: How long they are waited for.
        limits: What they may cost.
    """

    def __init__(
        self, *, tls: ssl.SSLContext | None = None, patience: Patience = PATIENCE, limits: Limits = LIMITS
    ) -> None:
        self._tls = tls
        self._patience = patience
        self._limits = limits
        self._servers: dict[str, _Server] = {}

    def open(self, address: str, path: str, more: bytes, body: bytes, reply: Reply) -> ClientCall:
        """Makes a call. Never raises, and never tells the reply anything before it has returned.

        Args:
            address: host:port.
            path: The method's: "/fairlead.engine.v1.EngineService/Generate".
            more: Further headers, a block.
            body: The request's messages, with their prefixes.
            reply: Told of the answer. Where no connection came about, that is UnavailableError, NOT_READY.
        """
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = _Server(self, address)
        call = ClientCall((server.heads.get(path) or self._head(server, path)) + more, body, reply)
        server.send(call)
        return call

    def connected(self) -> dict[str, int]:
        """Open connections by address."""
        return {address: len(server.ends) for address, server in self._servers.items()}

    async def close(self) -> None:
        """Closes everything at once."""
        for server in list(self._servers.values()):
            server.close()
        await asyncio.sleep(0)

    def _head(self, server: _Server, path: str) -> bytes:
        head = server.heads[path] = encoded(
            (
                (b":method", b"POST"),
                (b":scheme", b"https" if self._tls else b"http"),
                (b":path", path.encode()),
                (b":authority", server.address.encode()[:_AUTHORITY_CHARS_MAX]),
                (b"te", b"trailers"),
                (b"content-type", CONTENT_TYPE),
            )
        )
        return head

    async def _connect(self, server: _Server) -> ClientEnd:
        host, _, port = server.address.rpartition(":")
        end = ClientEnd(self._limits, self._patience, message_bytes_max=MESSAGE_BYTES_MAX, freed=server.freed)
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().create_connection(
                lambda: cast(asyncio.Protocol, end.endpoint), host.strip("[]"), int(port), ssl=self._tls
            )
        return end

    def _forget(self, server: _Server) -> None:
        if self._servers.get(server.address) is server:
            del self._servers[server.address]


def timeout_header(left_ns: int) -> bytes:
    """grpc-timeout as a block of one header.

    Args:
        left_ns: Until the deadline.
    """
    left_ms = max(1, left_ns // 1_000_000)
    return _TIMEOUT + string(b"%dm" % left_ms if left_ms < 100_000_000 else b"%dS" % min(left_ms // 1_000, 99_999_999))


class _Server:
    """The connections to one address."""

    def __init__(self, pool: Pool, address: str) -> None:
        self.address = address
        self.heads: dict[str, bytes] = {}  # of requests, by path
        self.ends: list[ClientEnd] = []
        self._pool = pool
        self._waiting: deque[ClientCall] = deque()
        self._connecting: asyncio.Task[None] | None = None

    def send(self, call: ClientCall) -> None:
        if not self._waiting:
            for end in self.ends:
                if end.can_open:
                    call.begin(end)
                    return
        self._waiting.append(call)
        if len(self._waiting) > WAITING_MAX:
            self._refuse("too many calls wait for a connection to the replica")
        else:
            self._open_another()

    def freed(self, end: ClientEnd) -> None:
        """There may be room on a connection: those that wait longest are sent."""
        while self._waiting and end.can_open:
            call = self._waiting.popleft()
            if call.reply is not None:
                call.begin(end)
        if self._waiting:
            self._open_another()

    def _open_another(self) -> None:
        """Connects once more, where nobody does already and none that has come about has yet to say what it takes."""
        ungreeted = any(not end.endpoint.connection.greeted for end in self.ends)
        if self._connecting is None and not ungreeted and len(self.ends) < CONNECTIONS_MAX:
            self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        try:
            end = await self._pool._connect(self)  # a part of it
        except (OSError, TimeoutError, ValueError) as error:
            self._connecting = None
            log.warning("cannot connect", address=self.address, error=str(error) or type(error).__name__)
            if not any(each.can_open for each in self.ends):
                self._refuse(f"failed to connect to the replica: {error or type(error).__name__}")
            self._forget_if_unused()
            return
        self._connecting = None
        self.ends.append(end)
        end.endpoint.lost.add_done_callback(lambda _: self._lost(end))

    def _lost(self, end: ClientEnd) -> None:
        self.ends.remove(end)
        if not end.endpoint.connection.greeted:
            self._refuse("the replica closed the connection at once")
        elif self._waiting:
            self._open_another()
        self._forget_if_unused()

    def _refuse(self, message: str) -> None:
        """Nobody waits any more."""
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            asyncio.get_running_loop().call_soon(call.over, UnavailableError(message, reason=Reason.NOT_READY))

    def _forget_if_unused(self) -> None:
        if not self.ends and not self._waiting and self._connecting is None:
            self._pool._forget(self)  # a part of it

    def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        self._refuse("the router is going down")
        for end in self.ends:
            transport = end.endpoint.transport
            if transport is not None:
                transport.abort()
