"""A connection of HTTP/2 on an asyncio transport: bytes to and fro, back pressure, no peer that is waited for for ever.

Whoever tells a connection to send something outside a call of its handler touches its endpoint afterwards (see
`outbox`); within such a call that is done once everything that came is dealt with.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import cast

from data_plane.relay.http2.connection import Connection
from data_plane.relay.http2.frames import ErrorCode
from data_plane.relay.http2.limits import Limits
from data_plane.relay.http2.sending import WRITE_BYTES_MAX, Handler
from data_plane.relay.outbox import Outbox

_CHECKED_EVERY_S = 1.0
_CHECKS_A_WAIT = 4
_SIGN_OF_LIFE = b"are you?"


@dataclass(frozen=True)
class Patience:
    """How long a peer is waited for, seconds.

    Attributes:
        greeting_s: For its first frame, and for a header block that it has begun.
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


class Endpoint:
    """One end of one connection; an asyncio.Protocol in all but name.

    Args:
        handler: Whom the connection tells.
        limits: What the peer may cost.
        patience: How long it is waited for.
        client: Whether this end opens the streams.

    Attributes:
        connection: The connection.
        lost: Done once the transport is closed.
        touched: See `outbox.Writer`.
    """

    def __init__(self, handler: Handler, limits: Limits, patience: Patience, *, client: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._patience = patience
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stuck_since_s: float | None = None
        self._ended_s: float | None = None
        self._unfinished: object = None
        self._unfinished_s = 0.0
        self._asked_s: float | None = None
        self._checked_every_s = min(
            _CHECKED_EVERY_S, patience.silence_s / _CHECKS_A_WAIT, patience.answer_s / _CHECKS_A_WAIT
        )
        self._due_s = 0.0
        self._begun_s = self._heard_s = self._used_s = self._loop.time()
        self._frames = 0  # of data, that the outbox knows of
        self._client = client
        self._outbox = Outbox.here()
        self.touched = False
        self.connection = Connection(handler, limits, client=client, now_s=self._begun_s)
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        transport.set_write_buffer_limits(high=WRITE_BYTES_MAX)
        plain = transport.get_extra_info("socket")
        if plain is not None and plain.family in (socket.AF_INET, socket.AF_INET6):
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._due_s = self._loop.time() + self._checked_every_s
        self._timer = self._loop.call_at(self._due_s, self._check)
        self.flush()

    @property
    def transport(self) -> asyncio.Transport | None:
        """What it writes to; None before it is connected and after it is lost."""
        return self._transport

    @property
    def peer(self) -> str:
        """Who is at the other end, as gRPC writes it: "ipv4:192.0.2.1:50000"; empty where that is not known."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        if not isinstance(name, tuple):
            return f"unix:{name}" if name else ""
        return f"ipv6:[{name[0]}]:{name[1]}" if ":" in name[0] else f"ipv4:{name[0]}:{name[1]}"

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        now_s = self._loop.time()
        self._heard_s, self._asked_s = now_s, None
        outbox = self._outbox
        outbox.reading = self.touched = True
        try:
            self.connection.receive(data, now_s)
        finally:
            self.touched = False
            self.flush()
            if self._client:
                frames = self.connection.data_frames
                outbox.came(self, frames - self._frames, now_s)
                self._frames = frames
            else:
                outbox.flush()

    def eof_received(self) -> None:
        """See asyncio.Protocol: the transport closes itself."""

    def abort(self) -> None:
        """Ends the connection at once, whatever waits to be written."""
        if self._transport is not None:
            self._transport.abort()

    def touch(self) -> None:
        """The connection was told to send something: it will be written soon."""
        if not self.touched:
            self._outbox.touch(self)

    def pause(self) -> bool:
        """See outbox.Reader."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.pause_reading()
        return True

    def read_on(self) -> None:
        """See outbox.Reader."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def flush(self) -> None:
        """Writes what the connection has to send, and closes it at its end."""
        transport = self._transport
        if transport is None:
            return
        if self._stuck_since_s is None:
            data = self.connection.take()
            if data and not transport.is_closing():  # uvloop's would raise
                transport.write(data)
                if self.connection.has_more:
                    self._outbox.touch(self)
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
        """Looks every now and then whether anybody is waited for for too long."""
        transport, now_s, patience = self._transport, self._loop.time(), self._patience
        if transport is None:
            return
        stood_still_s = now_s - self._due_s
        self._due_s = now_s + self._checked_every_s
        self._timer = self._loop.call_at(self._due_s, self._check)
        if stood_still_s > self._checked_every_s:
            # This process itself was not run: what came meanwhile is still to be read, and nobody was silent.
            self._forgive(stood_still_s)
            return
        if self.connection.streams:
            self._used_s = now_s
        if self.connection.unfinished is not self._unfinished:
            self._unfinished, self._unfinished_s = self.connection.unfinished, now_s
        if (
            (not self.connection.greeted and now_s - self._begun_s >= patience.greeting_s)
            or (self._unfinished is not None and now_s - self._unfinished_s >= patience.greeting_s)
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

    def _forgive(self, seconds: float) -> None:
        self._begun_s += seconds
        self._heard_s += seconds
        self._used_s += seconds
        self._unfinished_s += seconds
        if self._asked_s is not None:
            self._asked_s += seconds
        if self._stuck_since_s is not None:
            self._stuck_since_s += seconds
