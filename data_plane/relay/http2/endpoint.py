"""A connection of HTTP/2 on an asyncio transport: bytes to and fro, back pressure, no peer that is waited for for ever.

Whoever tells a connection to send something outside a call of its handler flushes its endpoint afterwards; within such
a call that is done once everything that came is dealt with.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from data_plane.relay.http2.connection import Connection
from data_plane.relay.http2.frames import ErrorCode
from data_plane.relay.http2.limits import Limits
from data_plane.relay.http2.sending import Handler

WRITE_BYTES_MAX = 1 << 18
"""Bytes that wait for the network before data waits in its streams instead."""

_CHECKED_EVERY_S = 1.0
_SIGN_OF_LIFE = b"are you?"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a peer is waited for, seconds.

    Attributes:
        greeting_s: For its first frame.
        stuck_s: For the network to take anything of what waits for it, and the rest once the connection has ended.
        silence_s: For anything from it while streams are open, before it is asked for a sign of life.
        answer_s: And for that.
        idle_s: For a stream, before the connection is given up.
    """

    greeting_s: float = 10.0
    stuck_s: float = 60.0
    silence_s: float = 30.0
    answer_s: float = 10.0
    idle_s: float = 900.0


class Endpoint(asyncio.Protocol):
    """One end of one connection.

    Args:
        handler: Whom the connection tells.
        limits: What the peer may cost.
        patience: How long it is waited for.
        client: Whether this end opens the streams.

    Attributes:
        connection: The connection.
        lost: Done once the transport is closed.
    """

    def __init__(self, handler: Handler, limits: Limits, patience: Patience, *, client: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stuck_since_s: float | None = None
        self._ended_s: float | None = None
        self._asked_s: float | None = None
        self._begun_s = self._heard_s = self._used_s = self._loop.time()
        self.connection = Connection(handler, limits, client=client, now_s=self._begun_s)
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_BYTES_MAX)
        plain = transport.get_extra_info("socket")
        if plain is not None and plain.family in (socket.AF_INET, socket.AF_INET6):
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timer = self._loop.call_later(_CHECKED_EVERY_S, self._check)
        self.flush()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        now_s = self._loop.time()
        self._heard_s, self._asked_s = now_s, None
        self.connection.receive(data, now_s)
        self.flush()

    def flush(self) -> None:
        """Writes what the connection has to send, and closes it at its end."""
        transport = self._transport
        if transport is None:
            return
        if self._stuck_since_s is None:
            data = self.connection.take()
            if data:
                transport.write(data)
            if self.connection.finished and self._ended_s is None:
                self._ended_s = self._loop.time()
                transport.close()
        elif self.connection.fault is not None:
            transport.abort()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._stuck_since_s = self._loop.time()
        self.connection.pause()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._stuck_since_s = None
        self.connection.resume()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self.connection.lost()
        if not self.lost.done():
            self.lost.set_result(None)

    def _check(self) -> None:
        """Looks once a second whether anybody is waited for for too long."""
        transport, now_s, patience = self._transport, self._loop.time(), self._patience
        if transport is None:
            return
        self._timer = self._loop.call_later(_CHECKED_EVERY_S, self._check)
        if self.connection.streams:
            self._used_s = now_s
        if (
            (not self.connection.greeted and now_s - self._begun_s >= patience.greeting_s)
            or (self._stuck_since_s is not None and now_s - self._stuck_since_s >= patience.stuck_s)
            or (self._ended_s is not None and now_s - self._ended_s >= patience.stuck_s)
            or (self._asked_s is not None and now_s - self._asked_s >= patience.answer_s)
        ):
            transport.abort()
        elif now_s - self._used_s >= patience.idle_s:
            self.connection.fail(ErrorCode.NO_ERROR, "idle")
        elif self.connection.streams and self._asked_s is None and now_s - self._heard_s >= patience.silence_s:
            self._asked_s = now_s
            self.connection.ping(_SIGN_OF_LIFE)
        self.flush()
