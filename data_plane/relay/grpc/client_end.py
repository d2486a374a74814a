"""The client's end of one connection of gRPC: calls become streams, and content becomes messages.

A call that fails is told why in the error tree. Where nothing was begun at the other end the reason is NOT_READY, where
something may have been it is REPLICA_LOST.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import unquote_to_bytes

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from data_plane.relay.grpc.framing import Cutter, is_one_message
from data_plane.relay.grpc.status import RpcFaultError, from_binary
from data_plane.relay.http2.endpoint import Endpoint, Patience
from data_plane.relay.http2.frames import ErrorCode
from data_plane.relay.http2.header_blocks import Fields
from data_plane.relay.http2.limits import Limits
from data_plane.relay.http2.stream import Stream
from fairlead.errors import STATUS_DETAILS_KEY, FairleadError, InternalError, Reason, UnavailableError, from_status

_DETAILS: Final = STATUS_DETAILS_KEY.encode()


class Reply(Protocol):
    """Whom a call tells. None of these may wait or raise; after `ClientCall.cancel` none is called any more."""

    def on_message(self, framed: bytes) -> None:
        """A message came, whole, with its prefix."""
        ...

    def on_end(self, failure: FairleadError | None) -> None:
        """The call is over; None when it went well."""
        ...


class ClientCall:
    """One call.

    Args:
        head: The request's headers, a block.
        body: The request's messages, with their prefixes; all that is sent.
        reply: Told of the answer.

    Attributes:
        reply: As given; None after the end.
        stream: Its stream; None before it is sent.
        cutter: Of its content; None while each frame was one message.
    """

    __slots__ = ("_end", "_held", "body", "cutter", "head", "reply", "stream")

    def __init__(self, head: bytes, body: bytes, reply: Reply) -> None:
        self.head = head
        self.body = body
        self.reply: Reply | None = reply
        self.stream: Stream | None = None
        self.cutter: Cutter | None = None
        self._end: ClientEnd | None = None
        self._held = False

    def begin(self, end: ClientEnd) -> None:
        """Sends it.

        Args:
            end: A connection that `can_open`.
        """
        connection = end.endpoint.connection
        self._end = end
        stream = self.stream = connection.ask(self.head, self.body)
        stream.context = self
        if self._held:
            connection.hold(stream)
        self.head = self.body = b""
        end.endpoint.touch()

    def cancel(self) -> None:
        """Gives it up: the server is told at once. Harmless after the end."""
        self.reply = None
        if self.stream is not None and self._end is not None:
            end, stream = self._end, self.stream
            self._end = self.stream = None
            end.endpoint.connection.reset(stream, ErrorCode.CANCEL)
            end.endpoint.touch()
            end.freed()

    def pause(self) -> None:
        """Takes no more from the network than is under way."""
        self._held = True
        if self.stream is not None and self._end is not None:
            self._end.endpoint.connection.hold(self.stream)

    def resume(self) -> None:
        """Takes more."""
        self._held = False
        if self.stream is not None and self._end is not None:
            self._end.endpoint.connection.release(self.stream)
            self._end.endpoint.touch()

    def over(self, failure: FairleadError | None) -> None:
        """It has ended."""
        self._end = self.stream = None
        reply, self.reply = self.reply, None
        if reply is not None:
            reply.on_end(failure)


class ClientEnd:
    """See the module. It is the handler of its connection.

    Args:
        limits: What the server may cost.
        patience: How long it is waited for.
        message_bytes_max: Longest message that is taken.
        freed: Told whenever a stream has ended.

    Attributes:
        endpoint: Its end of the connection.
    """

    def __init__(
        self, limits: Limits, patience: Patience, *, message_bytes_max: int, freed: Callable[[ClientEnd], None]
    ) -> None:
        self._message_bytes_max = message_bytes_max
        self._freed = freed
        self.endpoint = Endpoint(self, limits, patience, client=True)
        self.endpoint.connection.on_greeted = self.freed

    @property
    def can_open(self) -> bool:
        """Whether another call may be sent now. Not before the server has said how many it takes."""
        connection = self.endpoint.connection
        return connection.greeted and connection.can_open

    def freed(self) -> None:
        """A stream has ended."""
        self._freed(self)

    def on_head(self, stream: Stream, fields: Fields, ended: bool) -> None:
        """See http2.Handler."""
        if ended:
            self._over(stream, failure_of(fields))
        elif fields.status != b"200" and not fields.interim:
            self._break(stream, InternalError(f"the replica answered with HTTP status {fields.status.decode()}"))

    def on_data(self, stream: Stream, data: bytes, ended: bool) -> None:
        """See http2.Handler."""
        call: ClientCall = stream.context
        if call.cutter is None and is_one_message(data, self._message_bytes_max):
            if call.reply is not None:
                call.reply.on_message(data)
        elif data:
            self._on_parts(stream, call, data)
        if ended:
            self._over(stream, UnavailableError("the replica ended without a status", reason=Reason.REPLICA_LOST))

    def on_trailers(self, stream: Stream, fields: Fields) -> None:
        """See http2.Handler."""
        call: ClientCall = stream.context
        failure = failure_of(fields)
        if failure is None and call.cutter is not None:
            failure = UnavailableError("the replica ended within a message", reason=Reason.REPLICA_LOST)
        self._over(stream, failure)

    def on_reset(self, stream: Stream, code: int) -> None:
        """See http2.Handler."""
        self._over(stream, _reset(code))

    def on_sent(self, stream: Stream) -> None:
        """See http2.Handler."""

    def on_pong(self, payload: bytes) -> None:
        """See http2.Handler."""

    def _on_parts(self, stream: Stream, call: ClientCall, data: bytes) -> None:
        if call.cutter is None:
            call.cutter = Cutter(self._message_bytes_max)
        try:
            messages = call.cutter.feed(data)
        except RpcFaultError as error:
            self._break(stream, InternalError(f"the replica's message is not taken: {error.message}"))
            return
        for message in messages:
            if call.reply is not None:
                call.reply.on_message(message)
        if not call.cutter.waiting_bytes:
            call.cutter = None

    def _break(self, stream: Stream, error: FairleadError) -> None:
        self.endpoint.connection.reset(stream, ErrorCode.CANCEL)
        self.endpoint.touch()
        self._over(stream, error)

    def _over(self, stream: Stream, failure: FairleadError | None) -> None:
        call: ClientCall = stream.context
        call.over(failure)
        self._freed(self)


def failure_of(fields: Fields) -> FairleadError | None:
    """What trailers say of a call; None when it went well."""
    code = fields.header(b"grpc-status")
    if code == b"0":
        return None
    if code is None or not code.isdigit() or len(code) > 3:
        return UnavailableError("the replica ended without a status", reason=Reason.REPLICA_LOST)
    message = unquote_to_bytes(fields.header(b"grpc-message") or b"").decode(errors="replace")
    status = status_pb2.Status(code=int(code), message=message)
    details = fields.header(_DETAILS)
    if details is not None:
        read = from_binary(details)
        try:
            told = status_pb2.Status.FromString(read or b"")
        except DecodeError:
            told = status
        if told.code == status.code:
            status = told
    return from_status(status)


def _reset(code: int) -> FairleadError:
    if code == ErrorCode.REFUSED_STREAM:
        return UnavailableError("the replica takes no more streams", reason=Reason.NOT_READY)
    name = ErrorCode(code).name if code in ErrorCode.__members__.values() else str(code)
    return UnavailableError(f"the connection to the replica broke ({name})", reason=Reason.REPLICA_LOST)
