"""A connection of HTTP/1.1 on an asyncio transport: requests one after the other, answers in order, nobody waited for
for ever."""

from __future__ import annotations

import asyncio
from typing import Final

from data_plane.relay.http1 import answers
from data_plane.relay.http1.calls import Application, HttpCall, Line, Served
from data_plane.relay.http1.limits import BodyRoom, Limits, Patience
from data_plane.relay.http1.requests import Fault, Reader, Request
from data_plane.relay.http1.sockets import unread_bytes
from data_plane.relay.outbox import Outbox

WRITE_BYTES_MAX: Final = 64 << 10
"""Bytes that wait for the network before those who answer are told to stop."""

UNREAD_BYTES_MAX: Final = 64 << 10
"""A body that nobody wants is read to its end if no more of it is to come; otherwise the connection ends."""


class Shared:
    """What all connections of a server share.

    Args:
        application: Serves the requests.
        limits: What clients may cost.
        patience: How long they are waited for.
        room: For bodies.
        outbox: Of the event loop.

    Attributes:
        application: As given, as all the others.
        open: The connections there are.
        emptied: The last of them was lost.
        turned_away: Connections that were too many.
        draining: Every connection ends with the answer under way.
    """

    __slots__ = (
        "application",
        "draining",
        "emptied",
        "limits",
        "open",
        "outbox",
        "patience",
        "room",
        "turned_away",
    )

    def __init__(
        self, application: Application, limits: Limits, patience: Patience, room: BodyRoom, outbox: Outbox
    ) -> None:
        self.application = application
        self.limits = limits
        self.patience = patience
        self.room = room
        self.outbox = outbox
        self.open: set[Connection] = set()
        self.emptied = asyncio.Event()
        self.turned_away = 0
        self.draining = False


class Connection(Line):
    """One connection; an asyncio.Protocol in all but name.

    Args:
        shared: See Shared.

    Attributes:
        touched: See Outbox.
        transport: Its transport, or None before and after.
    """

    __slots__ = (
        "_begun",
        "_input",
        "_input_at",
        "_loop",
        "_over",
        "_paused",
        "_pending",
        "_pending_bytes",
        "_pumping",
        "_reader",
        "_request",
        "_served",
        "_shared",
        "_since_s",
        "_stuck_since_s",
        "_taken",
        "_told",
        "_written",
        "touched",
        "transport",
    )

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self._reader = Reader(shared.limits, shared.room)
        self._input, self._input_at = b"", 0
        self._pending: list[bytes] = []
        self._request: Request | None = None
        self._served: Served | None = None
        self._told = False
        self._over = False
        self._pumping = False
        self._paused = False
        self._written = self._taken = self._begun = self._pending_bytes = 0
        self._stuck_since_s: float | None = None
        self._since_s = self._loop.time()
        self.touched = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        """See asyncio.Protocol."""
        shared = self._shared
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_BYTES_MAX)
        if len(shared.open) >= shared.limits.connections_max:
            self._over = True
            shared.turned_away += 1
            transport.write(self._malformed(Fault(503, "too many connections; try again")))
            transport.close()
        else:
            shared.open.add(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._over:
            return
        # What a replica is told by this goes out at the next step of the loop, in one write with what all the other
        # clients say now: a write for each would wake the replica for each, and it the router for every answer.
        self._input, self._input_at = (self._input[self._input_at :] + data if self._input else data), 0
        self._pump()
        if not self._paused and self._waiting_bytes > self._shared.limits.ahead_bytes_max and self.transport:
            self._paused = True
            self.transport.pause_reading()

    def eof_received(self) -> None:
        """See asyncio.Protocol. A client that half closes is gone, as everywhere: the transport closes by itself."""
        if self.call is not None:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        shared = self._shared
        shared.open.discard(self)
        if not shared.open:
            shared.emptied.set()
        self.transport = None
        self._over = True
        self._input, self._input_at = b"", 0
        self._pending.clear()
        self._pending_bytes = 0
        if self._request is not None:
            self._reader.body(self._request)
        self._reader.close()
        served, self._served, self.call = self._served, None, None
        if served is not None:
            served.on_gone()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.blocked = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.blocked = False
        if self._served is not None:
            self._served.on_writable()
        self._pump()

    def flush(self) -> None:
        """See Writer."""
        pending, transport = self._pending, self.transport
        if transport is None or not pending:
            return
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        pending.clear()
        self._pending_bytes = 0
        self._written += len(data)
        transport.write(data)

    def say(self, data: bytes) -> None:
        """See Line."""
        if self._over:
            return
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > WRITE_BYTES_MAX:
            self.flush()  # it has to be seen within this step of the loop whether the client keeps up
        elif not self.touched:
            self._shared.outbox.touch(self)

    def stream(self, data: bytes) -> None:
        """See Line."""
        if self.blocked and self.queued_bytes + len(data) > self._shared.limits.answer_bytes_max:
            self.abort()
        self.say(data)

    def closes(self, request: Request) -> bool:
        """See Line."""
        if not request.keeps or request.fault is not None or self._shared.draining:
            return True
        if request.whole:
            return False
        if request.length is None or (request.expects and not request.received):
            return True
        return request.length - request.received > UNREAD_BYTES_MAX

    def ended(self, *, closes: bool) -> None:
        """See Line."""
        request, self._request = self._request, None
        self._served = self.call = None
        self._since_s = self._loop.time()
        if request is not None:
            self._reader.body(request)  # whoever answered early did not want it
        # Also while the server ends: a client that was not told in its answer's head may be sending its next request.
        if closes:
            self._finish()
        else:
            self._pump()

    def check(self, now_s: float) -> None:
        """Looks whether anybody is waited for for too long; to be called now and then.

        Args:
            now_s: The loop's time.
        """
        transport, patience = self.transport, self._shared.patience
        if transport is None:
            return
        waited_s = now_s - self._since_s
        if self._stuck(transport, now_s):
            self.abort()
        elif self._over:
            if waited_s >= patience.linger_s and not transport.get_write_buffer_size():
                transport.close()
        elif self._reader.partial and (self._request is None or not self._request.whole):
            if waited_s >= patience.request_s:
                self._reader.give_up(Fault(408, f"the request was not whole within {patience.request_s:g} s"))
                self._pump()
        elif self.call is None and not self.queued_bytes and waited_s >= patience.idle_s:
            self._over = True
            transport.close()

    def drain(self, idle_since_s: float) -> None:
        """The server ends: closes the connection if nothing is under way.

        Args:
            idle_since_s: Only if that has been so since this time of the loop, or longer.
        """
        under_way = self.call is not None or self._reader.partial or self._reader.arrived
        if not under_way and self._since_s <= idle_since_s and self.transport is not None:
            self._finish()

    def abort(self) -> None:
        """Ends it now; who serves is told in the loop's next step."""
        self._over = True
        self._input, self._input_at = b"", 0
        self._pending.clear()
        self._pending_bytes = 0
        if self.transport is not None:
            self.transport.abort()

    @property
    def _waiting_bytes(self) -> int:
        return len(self._input) - self._input_at

    @property
    def queued_bytes(self) -> int:
        """What was said and the network has not taken."""
        return self._pending_bytes + (self.transport.get_write_buffer_size() if self.transport else 0)

    def _pump(self) -> None:
        """Does all that can be done now; what it calls may call it again."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while not self._over and self._step():
                pass
        finally:
            self._pumping = False
        if self._paused and self.transport is not None and self._waiting_bytes <= self._shared.limits.ahead_bytes_max:
            self._paused = False
            self.transport.resume_reading()

    def _step(self) -> bool:
        """Does one thing of what can be done.

        Returns:
            Whether there was one.
        """
        request, served, reader = self._request, self._served, self._reader
        if request is None:
            if self.blocked:
                return False
            if reader.arrived:
                self._begin(reader.arrived.pop(0))
                return True
            if reader.broken:  # within a body that nobody waits for
                self._finish()
                return False
        elif request.whole or request.fault is not None:
            if self._told or served is None:
                return False
            self._told = True
            if request.fault is not None:
                served.on_fault(request.fault)
            else:
                served.on_body(reader.body(request))
            return True
        if not self._waiting_bytes:
            return False
        self._feed()
        return True

    def _feed(self) -> None:
        data, at, reader = self._input, self._input_at, self._reader
        end = at + reader.appetite
        if at == 0 and end >= len(data):
            self._input = b""
            reader.feed(data)
        else:
            self._input_at = end
            reader.feed(data[at:end])
            if end >= len(data):
                self._input, self._input_at = b"", 0
        if reader.begun != self._begun:
            self._begun = reader.begun
            self._since_s = self._loop.time()

    def _begin(self, request: Request) -> None:
        if not request.method:
            assert request.fault is not None
            self.say(self._malformed(request.fault))
            self._finish()
            return
        self._request, self._told = request, False
        call = self.call = HttpCall(self, request)
        served = self._shared.application.serve(call)
        if not self._answered(call):
            self._served = served
            if request.expects and not request.received and not request.whole and request.fault is None:
                self.say(answers.CONTINUE)

    def _answered(self, call: HttpCall) -> bool:
        """Whether a call is over. A step of its own: whoever has just set `call` is taken to know what it is."""
        return self.call is not call

    def _malformed(self, fault: Fault) -> bytes:
        headers, body = self._shared.application.malformed(fault)
        return answers.head(fault.status, headers, b"Content-Length: %d\r\nConnection: close\r\n" % len(body)) + body

    def _finish(self) -> None:
        """Ends the connection after what was said; the client gets a moment to read it and to close.

        Closing at once while something of it is still unread would make the kernel throw the answer away.
        """
        transport = self.transport
        if transport is None or self._over:
            return
        unread = self._reader.partial or self._reader.broken
        self._over = True
        self._since_s = self._loop.time()
        self._input, self._input_at = b"", 0
        self._reader.close()
        self.flush()
        if self._paused:
            self._paused = False
            transport.resume_reading()
        if transport.can_write_eof():
            transport.write_eof()
        elif not unread:
            transport.close()

    def _stuck(self, transport: asyncio.Transport, now_s: float) -> bool:
        """Whether the network took nothing of what waits for it for too long."""
        waiting = transport.get_write_buffer_size()
        if not waiting:
            self._stuck_since_s = None
            return False
        taken = self._written - waiting - unread_bytes(transport)
        if self._stuck_since_s is None or taken != self._taken:
            self._taken, self._stuck_since_s = taken, now_s
        return now_s - self._stuck_since_s >= self._shared.patience.stuck_s
