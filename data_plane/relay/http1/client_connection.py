"""A connection of the HTTP/1.1 client: one request at a time, its answer parsed by llhttp as it comes."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools

from data_plane.relay.http1.client_calls import Fault, HttpCall, HttpLimits, Origin


class Keeper(Protocol):
    """Who keeps connections.

    Attributes:
        limits: What a server may cost.
    """

    limits: HttpLimits

    def idle(self, connection: Connection) -> None:
        """A connection has brought its answer and may carry another request."""
        ...

    def gone(self, connection: Connection) -> None:
        """A connection has ended."""
        ...

    def send_again(self, call: HttpCall) -> None:
        """Sends a request on a fresh connection."""
        ...


class Connection:
    """One connection; an asyncio.Protocol in all but name.

    Args:
        pool: Who keeps it.
        origin: The other end.

    Attributes:
        idle_since_s: Since when it has no request.
    """

    def __init__(self, pool: Keeper, origin: Origin) -> None:
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
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by their class

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

    def eof_received(self) -> None:
        """See asyncio.Protocol: the transport closes itself."""

    def pause_writing(self) -> None:
        """See asyncio.Protocol. A request is sent whole."""

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""

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
