"""One request and its answer, as those see it who serve it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from data_plane.relay.http1 import answers
from data_plane.relay.http1.requests import Fault, Request

_SIZES_MADE: Final = 2048
_SIZES: Final = tuple(b"%x\r\n" % size for size in range(_SIZES_MADE))
"""Heads of chunks: to format one takes as long as all else that a token needs here."""


class Served(Protocol):
    """What serves one request. None of it may block or raise, and none is called after the answer's end."""

    def on_body(self, body: bytes) -> None:
        """The request is whole."""
        ...

    def on_fault(self, fault: Fault) -> None:
        """The request will never be whole: to be answered at once with that status."""
        ...

    def on_gone(self) -> None:
        """The client is gone: nothing can be sent any more."""
        ...

    def on_writable(self) -> None:
        """`blocked` has become False."""
        ...


class Application(Protocol):
    """Serves requests. Nothing here may block or raise."""

    def serve(self, call: HttpCall) -> Served:
        """A request's head has come; it may be answered before its body, which is then not kept."""
        ...

    def malformed(self, fault: Fault) -> tuple[bytes, bytes]:
        """Headers, as `answers.lines`, and body of the answer to what is no request."""
        ...


class Line:
    """The connection of a call.

    Attributes:
        blocked: What was sent waits for the client.
        call: What is served, or None.
    """

    __slots__ = ("blocked", "call")

    def __init__(self) -> None:
        self.blocked = False
        self.call: HttpCall | None = None

    def say(self, data: bytes) -> None:
        """Sends, at the end of this step of the loop."""
        raise NotImplementedError

    def stream(self, data: bytes) -> None:
        """The same, but a client that lets too much wait is given up."""
        raise NotImplementedError

    def closes(self, request: Request) -> bool:
        """Whether the connection ends with this request's answer."""
        raise NotImplementedError

    def ended(self, *, closes: bool) -> None:
        """The answer under way is complete."""
        raise NotImplementedError


class HttpCall:
    """One request at the server. What is told to one that has been answered, or whose client is gone, is ignored.

    Args:
        line: Its connection.
        request: The request.

    Attributes:
        method: Upper case.
        path: As sent, without the query.
        headers: By name in lower case; the first of a name.
    """

    __slots__ = ("_closes", "_line", "_request", "_whole", "headers", "method", "path")

    def __init__(self, line: Line, request: Request) -> None:
        self._line = line
        self._request = request
        self._closes = False
        self._whole = True
        self.method = request.method
        self.path = answers.path_of(request.target)
        self.headers: Mapping[bytes, bytes] = request.headers

    @property
    def whole(self) -> bool:
        """The whole request is here: `on_body` comes next."""
        return self._request.whole

    @property
    def blocked(self) -> bool:
        """What was sent waits for the client: send no more than what is under way until `on_writable`."""
        return self._line.blocked

    def respond(self, status: int, headers: bytes, body: bytes) -> None:
        """The whole answer.

        Args:
            status: HTTP status.
            headers: All but those of the connection and the length; see `answers.lines`.
            body: May be empty.
        """
        line = self._line
        if line.call is not self:
            return
        closes = line.closes(self._request)
        head = answers.head(status, headers, b"Content-Length: %d\r\n" % len(body) + self._connection(closes))
        line.say(head if self.method == "HEAD" else head + body)
        line.ended(closes=closes)

    def begin(self, status: int, headers: bytes) -> None:
        """The head of an answer whose body comes piece by piece; see `respond`."""
        line, request = self._line, self._request
        if line.call is not self:
            return
        self._whole = request.old
        self._closes = line.closes(request) or request.old
        framing = b"" if request.old else b"Transfer-Encoding: chunked\r\n"
        line.say(answers.head(status, headers, framing + self._connection(self._closes)))

    def write(self, data: bytes, before: bytes = b"", after: bytes = b"") -> None:
        """A piece of the body, as one chunk.

        Args:
            data: What is new.
            before: What stands before it, in many pieces.
            after: The same behind it.
        """
        line = self._line
        size = len(before) + len(data) + len(after)
        if line.call is self and size:
            head, end = b"", b""
            if not self._whole:
                head, end = _SIZES[size] if size < _SIZES_MADE else b"%x\r\n" % size, b"\r\n"
            line.stream(b"".join((head, before, data, after, end)))

    def end(self) -> None:
        """The end of an answer that has begun."""
        line = self._line
        if line.call is not self:
            return
        if not self._whole:
            line.say(b"0\r\n\r\n")
        line.ended(closes=self._closes)

    def _connection(self, closes: bool) -> bytes:
        if closes:
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if self._request.old else b""
