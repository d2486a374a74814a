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
import enum
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import httptools

ALPN: Final = ["http/1.1"]

_SWEPT_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Where requests go.

    Attributes:
        host: Name or address.
        port: TCP port.
        tls: Whether it is spoken to over TLS, with its certificate verified for `host`.
    """

    host: str
    port: int
    tls: bool = False


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What a server may cost.

    Attributes:
        connections_max: Connections to one origin, with those being opened.
        connect_s: For a connection to be there, TLS included.
        idle_s: A connection without a request is kept so long. Less than the five seconds after which uvicorn, under
            which vLLM and SGLang run, closes it: who closes first loses no request.
        head_bytes_max: Bytes in a row that belong to no body: headers, trailers, chunk extensions.
    """

    connections_max: int = 2048
    connect_s: float = 5.0
    idle_s: float = 4.0
    head_bytes_max: int = 65_536


class Fault(enum.Enum):
    """Why there is no (whole) answer."""

    UNREACHABLE = "unreachable"
    """No connection: the server has not seen the request."""
    LOST = "lost"
    """The connection ended before the answer did."""
    GARBAGE = "garbage"
    """What came is not HTTP/1.1, or more of it than allowed."""


class HttpReceiver(Protocol):
    """Whom a request's answer is told. No call may raise; each may cancel, pause or resume the request."""

    def on_head(self, status: int, fields: Mapping[bytes, bytes]) -> None:
        """The answer begins.

        Args:
            status: 200 or more; interim answers are passed over.
            fields: Headers by their names in lower case; of repeated ones the last.
        """
        ...

    def on_body(self, data: bytes) -> None:
        """Content came, one byte or more."""
        ...

    def on_end(self, fault: Fault | None) -> None:
        """Nothing comes after this; None: the answer is whole."""
        ...


class HttpCall:
    """One request on its way. Made by the pool."""

    __slots__ = ("_paused", "_pool", "connecting", "connection", "ended", "origin", "receiver", "request", "resent")

    def __init__(self, pool: HttpPool, origin: Origin, request: bytes, receiver: HttpReceiver) -> None:
        self._pool = pool
        self._paused = False
        self.origin = origin
        self.request = request
        self.receiver = receiver
        self.connection: _Connection | None = None
        self.connecting: asyncio.Task[_Connection | None] | None = None
        self.resent = False
        self.ended = False

    def cancel(self) -> None:
        """Gives the request up at once; the receiver is told nothing more. Harmless after the end."""
        if self.ended:
            return
        self.ended = True
        if self.connecting is not None:
            self.connecting.cancel()
        if self.connection is not None:
            self.connection.abort()

    def pause(self) -> None:
        """Takes nothing more from the network; what it has brought already still comes."""
        self._paused = True
        if self.connection is not None:
            self.connection.read(False)

    def resume(self) -> None:
        """Takes more."""
        self._paused = False
        if self.connection is not None:
            self.connection.read(True)

    def carried(self, connection: _Connection) -> None:
        """It has got a connection."""
        self.connection, self.connecting = connection, None
        if self._paused:
            connection.read(False)

    def end(self, fault: Fault | None) -> None:
        """It is over."""
        self.connection = self.connecting = None
        if not self.ended:
            self.ended = True
            self.receiver.on_end(fault)


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
        self._idle: dict[Origin, list[_Connection]] = {}
        self._counts: dict[Origin, int] = {}
        self._connections: set[_Connection] = set()
        self._connecting: set[asyncio.Task[_Connection | None]] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    def send(self, origin: Origin, request: bytes, receiver: HttpReceiver) -> HttpCall:
        """Sends a request.

        Args:
            origin: Where to.
            request: All its bytes, head and content; it must not ask for the connection to be closed.
            receiver: Told of the answer, but never before this has returned.
        """
        call = HttpCall(self, origin, request, receiver)
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
        call.connecting = self._loop.create_task(self._connect(call.origin))
        self._connecting.add(call.connecting)
        call.connecting.add_done_callback(lambda task: self._connected(call, task))

    async def _connect(self, origin: Origin) -> _Connection | None:
        if origin.tls and self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(ALPN)
        try:
            async with asyncio.timeout(self.limits.connect_s):
                _, made = await self._loop.create_connection(
                    lambda: _Connection(self, origin),
                    origin.host,
                    origin.port,
                    ssl=self._tls if origin.tls else None,
                    server_hostname=origin.host if origin.tls else None,
                )
                return made
        except (OSError, TimeoutError, UnicodeError):  # the last: a host that is no name
            return None

    def _connected(self, call: HttpCall, task: asyncio.Task[_Connection | None]) -> None:
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

    def idle(self, connection: _Connection) -> None:
        """A connection has brought its answer and may carry another request."""
        connection.idle_since_s = self._loop.time()
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweep is None and not self._closed:
            self._sweep = self._loop.call_later(_SWEPT_EVERY_S, self._retire)

    def gone(self, connection: _Connection) -> None:
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


class _Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, pool: HttpPool, origin: Origin) -> None:
        self.origin = origin
        self.idle_since_s = 0.0
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._call: HttpCall | None = None
        self._reading = True
        self._kept = False  # it has carried a request before
        self._heard = False  # something of this answer came
        self._plain_bytes = 0  # since the last content
        self._clear()

    def _clear(self) -> None:
        self._fields: dict[bytes, bytes] = {}
        self._headed = self._whole = self._excess = self._keep = False

    def carry(self, call: HttpCall) -> None:
        """Sends a request."""
        self._clear()
        self._heard, self._plain_bytes = False, 0
        self._call = call
        call.carried(self)
        transport = self._transport
        if transport is None:
            # It was lost between its opening and now.
            self._pool.gone(self)
            self._end(Fault.LOST if call.resent else Fault.UNREACHABLE)
        else:
            transport.write(call.request)

    def read(self, wanted: bool) -> None:
        """Takes from the network, or not."""
        transport = self._transport
        if transport is None or wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def abort(self) -> None:
        """Closes the connection at once. Its request, unless it was given up, is lost."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._pool.gone(self)
        self._end(Fault.LOST)

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._call is None:
            self.abort()  # nobody asked
            return
        self._heard = True
        self._plain_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            self._fail(Fault.GARBAGE)
            raise
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # What ends in order and then goes on is an answer all the same, on a connection for no other.
            self._fail(None if self._whole else Fault.GARBAGE)
            return
        if self._whole:
            self._done()
        elif self._plain_bytes > self._pool.limits.head_bytes_max:
            self._fail(Fault.GARBAGE)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self._pool.gone(self)
        call = self._call
        if call is None:
            return
        if self._kept and not self._heard and not call.resent and not call.ended:
            self._call = None
            self._pool.send_again(call)
        elif self._headed and exc is None and self._until_closed():
            self._end(None)
        else:
            self._end(Fault.LOST)

    # --- llhttp

    def on_message_begin(self) -> None:
        """Another answer begins; there is none to come."""
        if self._whole:
            self._excess = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nobody needs."""
        if not self._headed:
            self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head of an answer is whole."""
        status, call = self._parser.get_status_code(), self._call
        if status >= 200 and call is not None and not self._whole:
            self._headed = True
            call.receiver.on_head(status, self._fields)

    def on_body(self, data: bytes) -> None:
        """Content."""
        self._plain_bytes = 0
        call = self._call
        if call is not None and not call.ended and not self._whole:
            call.receiver.on_body(data)

    def on_message_complete(self) -> None:
        """An answer is whole, perhaps an interim one."""
        if self._headed:
            self._whole, self._keep = True, self._parser.should_keep_alive()
        else:
            self._fields = {}

    # --- its end

    def _until_closed(self) -> bool:
        """Whether the answer's content goes to the end of the connection."""
        return b"content-length" not in self._fields and b"transfer-encoding" not in self._fields

    def _done(self) -> None:
        transport = self._transport
        if transport is None:
            return
        if self._excess or not self._keep or transport.is_closing():
            self._fail(None)
            return
        self.read(True)
        self._kept = True
        call, self._call = self._call, None
        self._pool.idle(self)
        if call is not None:
            call.end(None)

    def _fail(self, fault: Fault | None) -> None:
        self._end(fault)
        self.abort()

    def _end(self, fault: Fault | None) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.end(fault)
