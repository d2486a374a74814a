"""The inference API over gRPC on our own relay: between a call on the wire and a request's life, nothing else.

A piece of an answer goes out as the bytes it came in; only a stream's first and last message are made here.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from common.clock import NS_PER_S, Clock
from common.telemetry import TRACE_FIELDS, trace_fields
from data_plane.relay.grpc.calls import Method, ServerCall
from data_plane.relay.grpc.framing import PREFIX_BYTES, framed
from data_plane.relay.grpc.pieces import text_of
from data_plane.relay.http2.header_blocks import named, string
from data_plane.router.answers import begin, last_message, receipt_metadata, whole_message
from data_plane.router.core.keys import Caller
from data_plane.router.exchange import Call, Finished, Receipt
from data_plane.router.flow import Flow
from data_plane.router.life import Exchange
from fairlead.errors import FairleadError, InvalidArgumentError
from fairlead.inference.v1 import inference_pb2 as pb

_TRACE_NAMES: Final = tuple(name.encode() for name in TRACE_FIELDS)


class GrpcDoor:
    """See the module.

    Args:
        flow: Runs requests.
        clock: Monotonic time.
    """

    def __init__(self, flow: Flow, clock: Clock) -> None:
        self.flow = flow
        self._clock = clock

    def methods(self) -> dict[str, Method]:
        """What it serves of InferenceService, by name."""
        return {"Generate": lambda call: Whole(self, call), "StreamGenerate": lambda call: Streamed(self, call)}

    def open(self, served: Answered, message: bytes) -> Exchange:
        """Makes a request of a message; see `read`."""
        return self.flow.open(self.read(served, message))

    def read(self, served: Answered, message: bytes) -> Call:
        """Reads a request.

        Raises:
            InvalidArgumentError: It is none.
        """
        try:
            request = pb.GenerateRequest.FromString(message)
        except DecodeError:
            raise InvalidArgumentError("the message is no GenerateRequest") from None
        left_s = served.call.left_s
        deadline_ns = None if left_s is None else self._clock.monotonic_ns() + int(left_s * NS_PER_S)
        fields = served.call.fields
        trace: tuple[tuple[str, str], ...] = ()
        for traced in _TRACE_NAMES:
            if fields.header(traced) is not None:
                trace = trace_fields(
                    [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields.pairs]
                )
                break
        return Call(request, served.authorization, deadline_ns, trace, served.caller, message)


class Answered:
    """One call, from its headers to its end; see Served and Sink.

    The key is looked at before the message is read: who has none cannot make a router hold megabytes.

    Args:
        door: Where it came in.
        call: The call.

    Attributes:
        call: As given.
        authorization: The header's value, or None.
        caller: Who calls; None where the call was refused.
    """

    __slots__ = ("_door", "_exchange", "authorization", "call", "caller")

    def __init__(self, door: GrpcDoor, call: ServerCall) -> None:
        self._door = door
        self._exchange: Exchange | None = None
        self.call = call
        self.caller: Caller | None = None
        given = call.header(b"authorization")
        self.authorization = None if given is None else given.decode("latin-1")
        try:
            self.caller = door.flow.admission.authenticate(self.authorization)
        except FairleadError as error:
            self._refuse(error)

    def on_message(self, message: bytes) -> None:
        """See Served."""
        if self._exchange is not None:
            return
        try:
            self._exchange = self._door.open(self, message)
        except FairleadError as error:
            self._refuse(error)
        else:
            self._exchange.start(self)

    def on_half_closed(self) -> None:
        """See Served."""

    def on_gone(self) -> None:
        """See Served."""
        if self._exchange is not None:
            self._exchange.cancel()

    def on_writable(self) -> None:
        """See Served."""
        if self._exchange is not None:
            self._exchange.resume()

    def on_piece(self, piece: bytes) -> bool:
        """See Sink."""
        raise NotImplementedError

    def on_finished(self, finished: Finished) -> None:
        """See Sink."""
        raise NotImplementedError

    def on_failed(self, error: FairleadError) -> None:
        """See Sink."""
        assert self._exchange is not None
        self.call.fail(error, trailers(self._exchange.receipt))

    def _refuse(self, error: FairleadError) -> None:
        receipt = self._door.flow.refuse(error, self.authorization)
        error.metadata.setdefault("request_id", receipt.request_id)
        self.call.fail(error, trailers(receipt))


class Streamed(Answered):
    """A call of StreamGenerate."""

    __slots__ = ("_begun",)

    def __init__(self, door: GrpcDoor, call: ServerCall) -> None:
        self._begun = False
        super().__init__(door, call)

    def on_piece(self, piece: bytes) -> bool:
        """See Sink."""
        if not self._begun:
            piece = self._first(piece)
        call = self.call
        call.send(piece)
        return not call.blocked

    def on_finished(self, finished: Finished) -> None:
        """See Sink."""
        assert self._exchange is not None
        receipt = self._exchange.receipt
        self.call.send(framed(last_message(receipt, finished)))
        self.call.finish(trailers(receipt))

    def _first(self, piece: bytes) -> bytes:
        """The first message says whose it is. Fields may follow one another in any order, so they are added behind."""
        assert self._exchange is not None
        self._begun = True
        return framed(piece[PREFIX_BYTES:] + begin(self._exchange.receipt))


class Whole(Answered):
    """A call of Generate."""

    __slots__ = ("_texts",)

    def __init__(self, door: GrpcDoor, call: ServerCall) -> None:
        self._texts: list[bytes] = []
        super().__init__(door, call)

    def on_piece(self, piece: bytes) -> bool:
        """See Sink."""
        self._texts.append(text_of(piece))
        return True

    def on_finished(self, finished: Finished) -> None:
        """See Sink."""
        assert self._exchange is not None
        receipt = self._exchange.receipt
        # A replica's text that is no UTF-8 would make the whole answer unreadable.
        text = b"".join(self._texts).decode("utf-8", "replace").encode()
        self.call.send(framed(whole_message(receipt, text, finished)))
        self.call.finish(trailers(receipt))


_NAMES: Final = [named(name.encode()) for name, _ in receipt_metadata(Receipt(""))]


def trailers(receipt: Receipt) -> bytes:
    """The same as a header block."""
    return b"%b%b%b%b%b%b%b%b%b%b" % (
        _NAMES[0],
        string(receipt.request_id.encode()),
        _NAMES[1],
        string(receipt.replica_id.encode()),
        _NAMES[2],
        string(b"%d" % receipt.estimated_milli_mu),
        _NAMES[3],
        string(b"%d" % receipt.settled_milli_mu),
        _NAMES[4],
        string(b"%d" % receipt.quota_left_milli_mu),
    )
