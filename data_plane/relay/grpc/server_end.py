"""The server's end of one connection of gRPC: streams become calls, and content becomes messages.

A request that breaks a rule is answered before anything of it is read. Where a client says less than it began to say,
it has a time for that, and what it has sent until then is bounded: for each connection, and for all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from common.rpc import as_fairlead_error
from data_plane.relay.grpc.calls import Route, Served, ServerCall
from data_plane.relay.grpc.framing import PREFIX_BYTES, is_one_message
from data_plane.relay.grpc.limits import CallLimits, Tally, Waiting
from data_plane.relay.grpc.status import CONTENT_TYPE, HEAD, Code, RpcFaultError, failure, status, timeout_s
from data_plane.relay.http2.endpoint import Endpoint, Patience
from data_plane.relay.http2.frames import ErrorCode
from data_plane.relay.http2.header_blocks import Fields, encoded
from data_plane.relay.http2.limits import Limits
from data_plane.relay.http2.stream import Stream
from fairlead.errors import DeadlineExceededError, FairleadError

_METHOD_NOT_ALLOWED: Final = encoded(((b":status", b"405"), (b"allow", b"POST")))
_UNSUPPORTED_MEDIA_TYPE: Final = encoded(((b":status", b"415"), (b"accept", CONTENT_TYPE)))
_PROXY_BETWEEN: Final = HEAD + status(Code.INTERNAL, "te: trailers is missing: a proxy on the way drops trailers")


@dataclass(frozen=True)
class _Asked:
    """What a block of headers asks for.

    Attributes:
        path: The method's.
        route: Where it goes.
        refusal: How it is answered instead, a block of headers; empty where it is served.
        timeout_s: What the caller gives it.
    """

    path: str = ""
    route: Route | None = None
    refusal: bytes = b""
    timeout_s: float | None = None


class ServerEnd:
    """See the module. It is the handler of its connection.

    Args:
        routes: Paths that are served.
        limits: What calls may cost.
        tally: Shared with the other connections.
        connection_limits: What the client may cost.
        patience: How long it is waited for.

    Attributes:
        endpoint: Its end of the connection.
    """

    def __init__(
        self,
        routes: Mapping[bytes, Route],
        limits: CallLimits,
        tally: Tally,
        connection_limits: Limits | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._routes = routes
        self._limits = limits
        self._tally = tally
        self._waiting = Waiting(limits, tally)
        self.endpoint = Endpoint(self, connection_limits or Limits(), patience or Patience(), client=False)

    # --- what the connection tells

    def on_head(self, stream: Stream, fields: Fields, ended: bool) -> None:
        """See http2.Handler."""
        asked: _Asked | None = fields.memo
        if asked is None:
            asked = fields.memo = self._asked(fields)
        connection, tally = self.endpoint.connection, self._tally
        tally.calls += 1
        route, limits = asked.route, self._limits
        if route is None:
            tally.refused += 1
            connection.end(stream, asked.refusal)
            return
        now_s = connection.now_s
        deadline_s = None if asked.timeout_s is None else now_s + asked.timeout_s
        due_s = math.inf if ended or route.streams_requests else now_s + limits.request_s
        call = ServerCall(self.endpoint, self._waiting, stream, fields, route, asked.path, deadline_s, due_s)
        stream.context = call
        try:
            if asked.timeout_s == 0.0:
                raise DeadlineExceededError("the deadline had passed when the call came")
            served = route.method(call)
            if not call.over:
                call.served = served
                if ended:
                    self._on_half_closed(call, served, route)
        except Exception as error:  # noqa: BLE001  # the boundary: a connection serves others too
            self._break(call, error)

    def on_data(self, stream: Stream, data: bytes, ended: bool) -> None:
        """See http2.Handler."""
        call: ServerCall | None = stream.context
        if call is None or call.served is None:
            return
        served, route = call.served, call.route
        most = self._limits.message_bytes_max
        try:
            if data:
                if not call.partial and is_one_message(data, most):
                    self._on_message(call, served, route, data)
                else:
                    self._on_part(call, served, route, call.cut(data, most))
            if ended and not call.over:
                self._on_half_closed(call, served, route)
        except Exception as error:  # noqa: BLE001  # the boundary: a connection serves others too
            self._break(call, error)

    def on_trailers(self, stream: Stream, fields: Fields) -> None:
        """See http2.Handler: a client of gRPC sends none, but it may."""
        self.on_data(stream, b"", True)

    def on_reset(self, stream: Stream, code: int) -> None:
        """See http2.Handler."""
        call: ServerCall | None = stream.context
        stream.context = None
        if call is not None:
            self._gone(call)

    def on_sent(self, stream: Stream) -> None:
        """See http2.Handler."""
        call: ServerCall | None = stream.context
        if call is not None and call.blocked:
            call.blocked = False
            if call.served is not None:
                call.served.on_writable()
        if stream.closed:
            stream.context = None

    def on_pong(self, payload: bytes) -> None:
        """See http2.Handler."""

    # --- what the server tells

    def check(self, now_s: float) -> None:
        """Ends calls whose time is over; to be called now and then."""
        for stream in list(self.endpoint.connection.streams.values()):
            call: ServerCall | None = stream.context
            if call is None:
                continue
            if call.over:
                # The end of its answer waits for the client.
                if call.due_s == math.inf:
                    call.due_s = now_s + self._limits.unread_s
                elif now_s >= call.due_s:
                    self.endpoint.connection.reset(stream, ErrorCode.CANCEL)
                    self.endpoint.touch()
            elif call.deadline_s is not None and now_s >= call.deadline_s:
                self._break(call, DeadlineExceededError("the caller's deadline passed"))
            elif now_s >= call.due_s:
                self._break(
                    call, DeadlineExceededError(f"the request did not come within {self._limits.request_s:g} s")
                )

    def end_calls(self, error: FairleadError) -> None:
        """Ends all calls."""
        for stream in list(self.endpoint.connection.streams.values()):
            call: ServerCall | None = stream.context
            if call is not None and not call.over:
                self._break(call, error)

    @property
    def calls_to_wait_for(self) -> bool:
        """Whether calls go on that are not standing."""
        for stream in self.endpoint.connection.streams.values():
            call: ServerCall | None = stream.context
            if call is not None and not call.route.standing:
                return True
        return False

    def drain(self) -> None:
        """Takes no new calls."""
        if not self.endpoint.connection.leaving:
            self.endpoint.connection.drain()
            self.endpoint.touch()

    def leave(self, error: FairleadError) -> None:
        """Ends all calls and the connection."""
        self.end_calls(error)
        self.endpoint.connection.fail(ErrorCode.NO_ERROR, "the process is ending")
        self.endpoint.touch()

    # --- parts of these

    def _asked(self, fields: Fields) -> _Asked:
        if fields.header(b":method") != b"POST":
            return _Asked(refusal=_METHOD_NOT_ALLOWED)
        kind = fields.header(b"content-type") or b""
        if not kind.startswith(CONTENT_TYPE) or kind[len(CONTENT_TYPE) :][:1] not in (b"", b"+", b";"):
            return _Asked(refusal=_UNSUPPORTED_MEDIA_TYPE)
        if fields.header(b"te") != b"trailers":
            return _Asked(refusal=_PROXY_BETWEEN)
        path = fields.header(b":path") or b""
        route = self._routes.get(path)
        if route is None:
            return _Asked(refusal=HEAD + status(Code.UNIMPLEMENTED, "there is no such method"))
        given = fields.header(b"grpc-timeout")
        try:
            return _Asked(path.decode("ascii"), route, timeout_s=None if given is None else timeout_s(given))
        except RpcFaultError as error:
            return _Asked(refusal=HEAD + failure(error))

    def _on_part(self, call: ServerCall, served: Served, route: Route, messages: list[bytes]) -> None:
        begun = call.due_s == math.inf or messages
        for message in messages:
            self._on_message(call, served, route, message)
        if route.streams_requests and not call.over:
            if not call.partial:
                call.due_s = math.inf
            elif begun:
                call.due_s = self.endpoint.connection.now_s + self._limits.request_s

    def _on_message(self, call: ServerCall, served: Served, route: Route, message: bytes) -> None:
        if call.over:
            return
        call.messages += 1
        if call.messages > 1 and not route.streams_requests:
            raise RpcFaultError(Code.UNIMPLEMENTED, "this method takes one message")
        served.on_message(message[PREFIX_BYTES:])

    def _on_half_closed(self, call: ServerCall, served: Served, route: Route) -> None:
        call.due_s = math.inf
        if call.partial:
            raise RpcFaultError(Code.INTERNAL, "the request ends within a message")
        if not call.messages and not route.streams_requests:
            raise RpcFaultError(Code.UNIMPLEMENTED, "this method takes one message")
        served.on_half_closed()

    def _break(self, call: ServerCall, error: Exception) -> None:
        """Ends a call that what serves it has not ended."""
        served = call.served
        call.fail(error if isinstance(error, RpcFaultError) else as_fairlead_error(error, call.method))
        if served is not None:
            served.on_gone()

    def _gone(self, call: ServerCall) -> None:
        served = call.served
        call.close()
        if served is not None:
            served.on_gone()
