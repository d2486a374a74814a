"""A request for text, from its head to the end of its answer: whole, or as a stream of server-sent events.

Tokens come as pieces of gRPC messages and leave as events: per token their text is escaped and put between constant
bytes, nothing else.
"""

from __future__ import annotations

from typing import Final

from common.clock import NS_PER_S, Clock
from common.rpc import as_fairlead_error
from common.telemetry import trace_fields
from data_plane.gateway import errors, limits, render, replies, translate
from data_plane.relay.grpc.pieces import text_of
from data_plane.relay.http1.answers import lines
from data_plane.relay.http1.calls import HttpCall
from data_plane.relay.http1.requests import Fault
from data_plane.router.core.keys import Caller
from data_plane.router.exchange import Call, Finished, Receipt
from data_plane.router.flow import Flow
from data_plane.router.life import Exchange
from fairlead.errors import FairleadError, InvalidArgumentError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb

_TRACE: Final = (b"traceparent", b"tracestate")
_CROWDED_RETRY_S: Final = 1.0
_STREAMED: Final = lines(
    {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",
    }
)


class Generation:
    """One call of /v1/chat/completions or /v1/completions; see Served.

    The key is looked at before the body is read: who has none cannot make a router hold megabytes.

    Args:
        flow: Runs requests.
        clock: Wall time for `created`.
        call: The call.
        chat: Which of the two.
    """

    __slots__ = ("_authorization", "_call", "_caller", "_chat", "_clock", "_exchange", "_flow")

    def __init__(self, flow: Flow, clock: Clock, call: HttpCall, *, chat: bool) -> None:
        self._flow = flow
        self._clock = clock
        self._call = call
        self._chat = chat
        self._exchange: Exchange | None = None
        self._caller: Caller | None = None
        self._authorization = replies.authorization(call)
        try:
            self._caller = flow.admission.authenticate(self._authorization)
        except FairleadError as error:
            self._refuse(error)

    def on_body(self, body: bytes) -> None:
        """See Served."""
        try:
            self._start(body)
        except FairleadError as error:
            self._refuse(error)
        except Exception as error:  # noqa: BLE001  # the boundary: nothing may leak, everything is logged
            self._refuse(as_fairlead_error(error, self._call.path))

    def on_fault(self, fault: Fault) -> None:
        """See Served."""
        error: FairleadError = InvalidArgumentError(fault.message)
        if fault.status == 503:
            error = UnavailableError(fault.message, reason=Reason.QUEUE_FULL, retry_after_s=_CROWDED_RETRY_S)
        known_id = self._flow.refuse(error, self._authorization).request_id
        body = errors.of_fault(fault.status, fault.message, request_id=known_id)
        replies.refused(self._call, fault.status, body, known_id, errors.lines_of(error))

    def on_gone(self) -> None:
        """See Served."""
        if self._exchange is not None:
            self._exchange.cancel()

    def on_writable(self) -> None:
        """See Served."""
        if self._exchange is not None:
            self._exchange.resume()

    def _start(self, body: bytes) -> None:
        call, chat = self._call, self._chat
        headers = call.headers
        wanted, decoded = translate.chat(body, headers) if chat else translate.completion(body, headers)
        request = pb.GenerateRequest.FromString(wanted)
        traced = [(name.decode(), headers[name].decode("latin-1")) for name in _TRACE if name in headers]
        exchange = self._exchange = self._flow.open(
            Call(request, self._authorization, None, trace_fields(traced) if traced else (), self._caller, wanted)
        )
        receipt, created_s = exchange.receipt, self._clock.wall_ns() // NS_PER_S
        if decoded.stream:
            usage = translate.wants_usage(decoded)
            exchange.start(Streamed(call, receipt, chat=chat, created_s=created_s, include_usage=usage))
        else:
            exchange.start(Whole(call, receipt, chat=chat, created_s=created_s))

    def _refuse(self, error: FairleadError) -> None:
        """Counts and answers a request that the flow does not see."""
        known_id = self._flow.refuse(error, self._authorization).request_id
        replies.failed(self._call, error, known_id)


class Whole:
    """An answer in one piece; see Sink.

    Args:
        call: The call.
        receipt: Of the request.
        chat: A chat, or a plain completion.
        created_s: Unix time.
    """

    __slots__ = ("_call", "_chat", "_created_s", "_receipt", "_texts")

    def __init__(self, call: HttpCall, receipt: Receipt, *, chat: bool, created_s: int) -> None:
        self._call = call
        self._receipt = receipt
        self._chat = chat
        self._created_s = created_s
        self._texts: list[bytes] = []

    def on_piece(self, piece: bytes) -> bool:
        """See Sink."""
        self._texts.append(text_of(piece))
        return True

    def on_finished(self, finished: Finished) -> None:
        """See Sink."""
        receipt, text = self._receipt, b"".join(self._texts)
        body = render.whole(receipt, finished, text, chat=self._chat, created_s=self._created_s)
        replies.found(self._call, body, receipt.request_id, limits.receipt_lines(receipt, final=True))

    def on_failed(self, error: FairleadError) -> None:
        """See Sink."""
        replies.failed(self._call, error, self._receipt.request_id, self._receipt)


class Streamed:
    """An answer as server-sent events; see Sink.

    Nothing is sent before the first token: until then a failed replica is replaced unseen, and an error has a status.

    Args:
        call: The call.
        receipt: Of the request.
        chat: A chat, or a plain completion.
        created_s: Unix time.
        include_usage: See render.Stream.
    """

    __slots__ = ("_call", "_chat", "_created_s", "_include_usage", "_receipt", "_stream")

    def __init__(self, call: HttpCall, receipt: Receipt, *, chat: bool, created_s: int, include_usage: bool) -> None:
        self._call = call
        self._receipt = receipt
        self._chat = chat
        self._created_s = created_s
        self._include_usage = include_usage
        self._stream: render.Stream | None = None

    def on_piece(self, piece: bytes) -> bool:
        """See Sink."""
        call, stream, text = self._call, self._stream, text_of(piece)
        if stream is None:
            call.write(self._begin().first(text))
        else:
            call.write(render.quoted(text), stream.before, stream.after)
        return not call.blocked

    def on_finished(self, finished: Finished) -> None:
        """See Sink."""
        call, stream = self._call, self._stream
        if stream is None:
            stream = self._begin()
            call.write(stream.first(b""))
        call.write(stream.end(finished))
        call.end()

    def on_failed(self, error: FairleadError) -> None:
        """See Sink."""
        call, receipt = self._call, self._receipt
        if self._stream is None:
            replies.failed(call, error, receipt.request_id, receipt)
        else:
            call.write(render.error_event(errors.body(error, request_id=receipt.request_id)))
            call.end()

    def _begin(self) -> render.Stream:
        call, receipt = self._call, self._receipt
        headers = limits.receipt_lines(receipt, final=False)
        call.begin(200, _STREAMED + headers + replies.echo(receipt.request_id, call))
        stream = self._stream = render.Stream(
            receipt, chat=self._chat, created_s=self._created_s, include_usage=self._include_usage
        )
        return stream
