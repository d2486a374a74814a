"""One call of gRPC at the server, and what those agree on that serve it.

A call is told what came (`Served`), and tells what is to be sent. Nobody waits: what is sent goes out as fast as the
client takes it, and `blocked` asks for patience until `on_writable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from data_plane.relay.grpc.framing import Cutter
from data_plane.relay.grpc.limits import Waiting
from data_plane.relay.grpc.status import HEAD, OK, RpcFaultError, failure
from data_plane.relay.http2.endpoint import Endpoint
from data_plane.relay.http2.header_blocks import Fields
from data_plane.relay.http2.stream import Stream
from fairlead.errors import FairleadError, QuotaExceededError, Reason


class Served(Protocol):
    """What serves a call. None of these may wait or raise; after `finish` or `fail` none is called any more."""

    def on_message(self, message: bytes) -> None:
        """A message came, whole, without its prefix."""
        ...

    def on_half_closed(self) -> None:
        """The client has sent all its messages."""
        ...

    def on_gone(self) -> None:
        """The client has given up, its deadline is over, or the connection was lost: nothing can be sent any more."""
        ...

    def on_writable(self) -> None:
        """`ServerCall.blocked` has become false."""
        ...


class ServerCall:
    """See the module.

    Args:
        endpoint: Of its connection.
        waiting: What waits there.
        stream: Its stream.
        fields: The request's headers.
        route: What they ask for.
        method: Its path: "/fairlead.inference.v1.InferenceService/StreamGenerate".
        deadline_s: The caller's deadline by the loop's clock; None where it gave none.
        due_s: When its request must be there.

    Attributes:
        method: See above.
        fields: See above.
        route: See above.
        deadline_s: See above.
        blocked: What was sent waits for the client: no more than what is under way is to be sent until `on_writable`.
        over: It has ended, in whichever way.
        due_s: When what the client has begun to say must be there; infinite while it has begun nothing.
        served: What serves it; None before and after.
        messages: So many came.
    """

    __slots__ = (
        "_connection",
        "_cutter",
        "_endpoint",
        "_headed",
        "_waiting",
        "blocked",
        "deadline_s",
        "due_s",
        "fields",
        "messages",
        "method",
        "over",
        "route",
        "served",
        "stream",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        waiting: Waiting,
        stream: Stream,
        fields: Fields,
        route: Route,
        method: str,
        deadline_s: float | None,
        due_s: float,
    ) -> None:
        self._endpoint = endpoint
        self._connection = endpoint.connection
        self._waiting = waiting
        self._cutter: Cutter | None = None
        self._headed = False
        self.stream = stream
        self.fields = fields
        self.route = route
        self.method = method
        self.deadline_s = deadline_s
        self.due_s = due_s
        self.blocked = self.over = False
        self.served: Served | None = None
        self.messages = 0

    @property
    def peer(self) -> str:
        """Who calls: "ipv4:192.0.2.1:50000"."""
        return self._endpoint.peer

    @property
    def left_s(self) -> float | None:
        """Seconds to the caller's deadline from when something came last; None where it gave none."""
        return None if self.deadline_s is None else self.deadline_s - self._connection.now_s

    def header(self, name: bytes) -> bytes | None:
        """The value of a request's header; None where there is none."""
        return self.fields.header(name)

    def send_head(self, fields: bytes = b"") -> None:
        """Sends the answer's headers now, with further ones; without this they go before the first message."""
        if not self._headed:
            self._headed = True
            self._connection.send_head(self.stream, HEAD + fields)
            self._endpoint.touch()

    def send(self, framed: bytes) -> None:
        """Sends messages.

        Args:
            framed: One or more, each with its prefix.
        """
        if not self._headed:
            self._headed = True
            self._connection.send_head(self.stream, HEAD)
        if not self._connection.send_data(self.stream, framed):
            self.blocked = True
        self._endpoint.touch()

    def finish(self, trailers: bytes = b"") -> None:
        """Ends it well.

        Args:
            trailers: Further trailers, a header block.
        """
        self.end(OK + trailers)

    def fail(self, error: FairleadError | RpcFaultError, trailers: bytes = b"") -> None:
        """Ends it with an error and its details.

        Args:
            error: What went wrong.
            trailers: Further trailers, a header block.
        """
        if not self.over:
            self.end(failure(error) + trailers)

    def end(self, trailers: bytes) -> None:
        """Ends it with any status.

        Args:
            trailers: All of them, a header block.
        """
        if self.over:
            return
        self.close()
        self._connection.end(self.stream, trailers if self._headed else HEAD + trailers)
        if self.stream.closed:
            self.stream.context = None  # so that neither waits for the garbage collector
        self._endpoint.touch()

    def close(self) -> None:
        """It is over: nobody is told of it any more."""
        self.over, self.served, self.due_s = True, None, math.inf
        if self._cutter is not None:
            self._waiting.add(-self._cutter.waiting_bytes)
            self._cutter = None

    @property
    def partial(self) -> bool:
        """Whether a message has come in part."""
        return self._cutter is not None and self._cutter.waiting_bytes > 0

    def cut(self, data: bytes, message_bytes_max: int) -> list[bytes]:
        """Takes content: the messages that are whole now, with their prefixes.

        Raises:
            FairleadError: Too much waits.
            RpcFaultError: A message is too large, or compressed.
        """
        cutter = self._cutter
        if cutter is None:
            cutter = self._cutter = Cutter(message_bytes_max)
        before = cutter.waiting_bytes
        try:
            messages = cutter.feed(data)
        finally:
            more = cutter.waiting_bytes - before
            self._waiting.add(more)
        if more > 0 and self._waiting.too_much:
            raise QuotaExceededError(
                "too many requests that have not come whole wait here", reason=Reason.QUEUE_FULL, retry_after_s=1.0
            )
        return messages

    def hold(self) -> None:
        """Takes no more of the request from the network than is under way."""
        self._connection.hold(self.stream)

    def release(self) -> None:
        """Takes more of it."""
        self._connection.release(self.stream)
        self._endpoint.touch()


Method = Callable[[ServerCall], Served]
"""Begins to serve a call. May raise FairleadError: the call is refused before any of its content is read."""


@dataclass(frozen=True)
class Route:
    """Where calls of one path go.

    Attributes:
        method: Serves them.
        streams_requests: Whether a client sends any number of messages, over any time; else exactly one.
        standing: Its calls last as long as the client likes: a server that drains does not wait for them.
    """

    method: Method
    streams_requests: bool = False
    standing: bool = False
