"""From a client's bytes to its requests, without I/O: bounded, strict, in order.

The grammar is httptools' (llhttp's without any leniency): both lengths at once, a length twice, chunks that are none,
folded headers, bare line feeds and the like are refused by it. What it leaves open is settled here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import httptools

from data_plane.relay.http1.limits import BodyRoom, Limits

SLICE_BYTES: Final = 4096
"""At most so much is parsed at once: that bounds how many small requests are there before the first is answered."""

_ONCE: Final = frozenset({b"authorization", b"content-type", b"expect", b"host"})
_ROUND_CHUNKS_BYTES: Final = 16 << 10
_CHUNKED: Final = b"chunked"


@dataclass(frozen=True)
class Fault:
    """Why a request cannot be read to its end.

    Attributes:
        status: The HTTP status to answer with.
        message: For a person.
    """

    status: int
    message: str


class Request:
    """One request, whole or on its way.

    Attributes:
        method: Upper case; empty where not even the head can be read.
        target: As sent: path and query, or a whole URL.
        headers: By name in lower case; the first of a name.
        old: It is of HTTP/1.0.
        keeps: Its connection may go on after it.
        expects: The client waits for a word before it sends the body.
        length: The body's bytes, or None where it comes in chunks.
        received: The body's bytes that have come.
        whole: All of it is here.
        fault: Why it never will be, or None.
    """

    __slots__ = (
        "_body",
        "expects",
        "fault",
        "headers",
        "keeps",
        "length",
        "method",
        "old",
        "received",
        "target",
        "whole",
    )

    def __init__(self, method: str, target: bytes, headers: dict[bytes, bytes]) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.old = False
        self.keeps = False
        self.expects = False
        self.length: int | None = 0
        self.received = 0
        self.whole = False
        self.fault: Fault | None = None
        self._body: bytes | bytearray | None = b""

    @property
    def kept_bytes(self) -> int:
        """What is kept of the body."""
        return len(self._body) if self._body is not None else 0

    @property
    def wanted(self) -> bool:
        """Somebody will read the body."""
        return self._body is not None

    def add(self, data: bytes) -> None:
        """More of the body."""
        if isinstance(self._body, bytearray):
            self._body += data
        elif self._body:
            # Not a list: a client may send every byte by itself.
            self._body = bytearray(self._body)
            self._body += data
        else:
            self._body = data

    def drop(self) -> bytes:
        """Hands the body out, or throws it away; whatever comes of it from now on is not kept."""
        body, self._body = self._body, None
        return bytes(body) if isinstance(body, bytearray) else body or b""


class _StopError(Exception):
    """Ends the parser's work from within a callback."""


class Reader:
    """Reads the requests of one connection.

    Args:
        limits: What they may cost.
        room: For bodies of the whole process.

    Attributes:
        arrived: Requests whose head is whole, in order; whoever begins with one takes it out.
        broken: Nothing can be read any more; the last request says why.
        begun: Requests begun so far.
    """

    def __init__(self, limits: Limits, room: BodyRoom) -> None:
        self._limits = limits
        self._room = room
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._partial = False
        self._upgrades = False
        self._muted = False
        self._reading: Request | None = None
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._count = 0
        self._head_bytes = 0
        self._raw_bytes = 0
        self.arrived: list[Request] = []  # an empty deque is ten times as large
        self.broken = False
        self.begun = 0

    @property
    def partial(self) -> bool:
        """A request has begun and is not whole."""
        return self._partial and not self.broken

    @property
    def appetite(self) -> int:
        """How many bytes to feed at most: no more than a slice beyond the end of this request."""
        reading = self._reading
        if reading is None or reading.length is None:
            return SLICE_BYTES
        return max(SLICE_BYTES, reading.length - reading.received)

    def feed(self, data: bytes) -> None:
        """Takes what came.

        Args:
            data: `appetite` bytes at most.
        """
        parser = self._parser
        if parser is None or self.broken:
            return
        rest = data
        try:
            while rest:
                try:
                    parser.feed_data(rest)
                    rest = b""
                except httptools.HttpParserUpgrade as upgrade:
                    rest = rest[upgrade.args[0] :]
                    self._go_on(parser)
        except httptools.HttpParserCallbackError as error:
            if not self.broken:
                raise error.__context__ or error from None
        except httptools.HttpParserError:
            self.give_up(Fault(400, "this is not a valid HTTP request"))
        else:
            self._raw_bytes += len(data)
            self._check_ado()

    def body(self, request: Request) -> bytes:
        """Hands out the body of a request, and the room it took."""
        self._room.give_back(request.kept_bytes)
        return request.drop()

    def give_up(self, fault: Fault) -> None:
        """Nothing that comes is read any more.

        Args:
            fault: What the request on its way is told.
        """
        if self.broken:
            return
        self.broken = True
        if self._reading is None:
            self._reading = Request("", b"", {})
            self.arrived.append(self._reading)
        self._reading.fault = fault
        self.body(self._reading)

    def close(self) -> None:
        """Gives everything back."""
        self.broken = True
        for request in (*self.arrived, *([self._reading] if self._reading else [])):
            self.body(request)
        self.arrived.clear()
        self._parser = None  # it and this hold each other

    def on_message_begin(self) -> None:
        """See httptools."""
        if self._muted:
            return
        self.begun += 1
        self._partial = True
        self._target, self._headers = b"", {}
        self._count = self._head_bytes = self._raw_bytes = 0

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        if self._muted:
            return
        self._target += url
        self._add_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools; a header, or a trailer, which nobody reads."""
        if self._reading is not None or self._muted:
            return
        self._count += 1
        self._add_head(len(name) + len(value) + 4)
        if self._count > self._limits.headers_max:
            self._stop(431, f"there are more than {self._limits.headers_max} headers")
        name = name.lower()
        if name not in self._headers:
            self._headers[name] = value
        elif name in _ONCE:
            self._stop(400, f"the header {name.decode()} is there twice")

    def on_headers_complete(self) -> None:
        """See httptools."""
        if self._muted:
            return
        parser = self._parser
        assert parser is not None
        headers = self._headers
        version = parser.get_http_version()
        request = Request(parser.get_method().decode(), self._target, headers)
        if version not in ("1.1", "1.0"):
            self._stop(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        request.old = version == "1.0"
        self._check_head(request)
        coding = headers.get(b"transfer-encoding")
        request.length = int(headers.get(b"content-length", b"0")) if coding is None else None
        self._upgrades = parser.should_upgrade()
        request.keeps = parser.should_keep_alive()
        self._reading = request
        self.arrived.append(request)
        if request.length is not None and request.length > self._limits.body_bytes_max:
            self._stop_large()

    def on_body(self, data: bytes) -> None:
        """See httptools."""
        request = self._reading
        assert request is not None
        request.received += len(data)
        if request.received > self._limits.body_bytes_max:
            self._stop_large()
        if request.wanted:
            if not self._room.take(len(data)):
                self._stop(503, "too many requests are being sent at once; try again")
            request.add(data)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._upgrades:
            return  # of the body it has seen nothing
        assert self._reading is not None
        self._reading.whole, self._reading, self._partial = True, None, False

    def _check_head(self, request: Request) -> None:
        """What the grammar allows and this does not.

        Raises:
            _StopError: It is refused.
        """
        headers = request.headers
        if not request.old and b"host" not in headers:
            self._stop(400, "the header host is missing")
        if request.method == "CONNECT":
            self._stop(405, "this is no proxy")
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (request.old or coding.strip().lower() != _CHUNKED):
            self._stop(501, "the only transfer coding spoken here is chunked")
        expected = headers.get(b"expect")
        if expected is not None and not request.old:
            if expected.strip().lower() != b"100-continue":
                self._stop(417, "the only thing that can be expected here is 100-continue")
            request.expects = True

    def _go_on(self, parser: httptools.HttpRequestParser) -> None:
        """After a head that asks for another protocol, which it does not get: the parser left the body out."""
        request = self._reading
        assert request is not None
        self._upgrades = False
        if request.length == 0:
            self.on_message_complete()
            return
        framing = b"Transfer-Encoding: chunked" if request.length is None else b"Content-Length: %d" % request.length
        self._muted = True
        parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n")
        self._muted = False

    def _add_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._limits.head_bytes_max:
            self._stop_head()

    def _check_ado(self) -> None:
        """What is sent around the things themselves: spaces around headers, extensions of chunks, trailers."""
        if not self._partial or self.broken:
            return
        request = self._reading
        if request is None:
            if self._raw_bytes > self._limits.head_bytes_max + SLICE_BYTES:
                self.give_up(self._large_head())
        elif request.length is None:
            fair = self._limits.head_bytes_max + SLICE_BYTES + _ROUND_CHUNKS_BYTES + 8 * request.received
            if self._raw_bytes > fair:
                self.give_up(Fault(400, "the chunks of the body are mostly not body"))

    def _large_head(self) -> Fault:
        limit = self._limits.head_bytes_max
        return Fault(431, f"a header or the request line is longer than {limit} bytes, or all of them together")

    def _stop_head(self) -> None:
        fault = self._large_head()
        self._stop(fault.status, fault.message)

    def _stop_large(self) -> None:
        self._stop(413, f"the body is larger than {self._limits.body_bytes_max} bytes")

    def _stop(self, status: int, message: str) -> None:
        self.give_up(Fault(status, message))
        raise _StopError
