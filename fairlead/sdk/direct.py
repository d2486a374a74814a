"""Streams that come from the replica itself: the router issues a ticket, and the relay is there for when that fails.

    IssueTicket     -> a router: admits, holds, picks the replica
    StreamGenerate  -> the replica, with the ticket
    ReturnTicket    -> the same router, where the replica gave no token; then everything goes through the relay

The API key is shown to routers only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Final, TypeAlias

from fairlead.errors import FairleadError, InternalError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2, ticket_pb2
from fairlead.sdk.folding import StreamFold
from fairlead.sdk.results import Generation
from fairlead.sdk.steps import Deliver, Open, Read, Send, StreamStep, Wait
from fairlead.sdk.tracing import CallSpan
from fairlead.sdk.transport import Outgoing, StreamResponse, UnaryResponse
from fairlead.sdk.tries import Tries

REST_S: Final = 30.0
"""How long the relay is used without asking once a replica could not be reached or no ticket was to be had, seconds:
whoever is outside the replicas' network stays there."""

_RETURN_TIMEOUT_S: Final = 2.0

_AT_THE_REPLICA: Final = frozenset(
    {
        Reason.QUEUE_FULL,
        Reason.TICKET_INVALID,
        Reason.TICKET_MISMATCH,
        Reason.TICKET_ELSEWHERE,
        Reason.TICKET_EXPIRED,
        Reason.TICKET_USED,
    }
)
"""Refusals of a replica that say nothing about the request: the relay may find another."""

Steps: TypeAlias = Generator[StreamStep, StreamResponse | UnaryResponse | None, Generation | int]


class DirectMode:
    """Whether tickets are asked for.

    Args:
        wanted: The caller wants it so.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._rests_until_s = float("-inf")

    def wanted(self, now_s: float) -> bool:
        """Whether to ask for a ticket at monotonic time `now_s`, seconds."""
        return self._wanted and now_s >= self._rests_until_s

    def rest(self, now_s: float) -> None:
        """Notes that there is no use in tickets for a while."""
        self._rests_until_s = now_s + REST_S


def stream_direct(
    mode: DirectMode,
    tries: Tries,
    request: inference_pb2.GenerateRequest,
    span: CallSpan,
    now_s: Callable[[], float],
) -> Steps:
    """The steps of one stream from a replica. Nothing is tried again after the first message.

    Args:
        mode: Told where tickets are of no use.
        tries: Of IssueTicket.
        request: What to send.
        span: Of the call.
        now_s: Monotonic time.

    Returns:
        The answer; or, where the relay must be used, the tries that were made.
    """
    while True:
        issuing = tries.next()
        try:
            ticket = yield Send(issuing)
            break
        except FairleadError as error:
            if _has_no_tickets(error):
                mode.rest(now_s())
                return tries.attempts - 1
            yield Wait(tries.failed(error))
    tries.succeeded()
    if not isinstance(ticket, inference_pb2.Ticket):
        raise TypeError(f"the transport answered IssueTicket with {type(ticket).__name__}")
    redeeming = tries.at_replica(
        ticket.address, ticket_pb2.RedeemRequest(token=ticket.token, request=request), span.metadata
    )
    try:
        yield Open(redeeming)
        message = yield from read()
    except FairleadError as error:
        if not isinstance(error, UnavailableError) and error.reason not in _AT_THE_REPLICA:
            tries.broken(error)
        if error.reason is Reason.UNSPECIFIED:
            mode.rest(now_s())
        span.retried(error, tries.attempts, 0.0)
        with contextlib.suppress(FairleadError):
            returned = inference_pb2.ReturnTicketRequest(token=ticket.token)
            yield Send(Outgoing(issuing.address, "ReturnTicket", returned, issuing.metadata, _RETURN_TIMEOUT_S))
        return tries.attempts
    if message is not None:
        span.first_token()
    folded, tokens = StreamFold(request), 0
    while message is not None:
        piece = folded.add(message)
        if piece is not None:
            tokens += piece.output_tokens
            yield Deliver(piece)
        try:
            message = yield from read()
        except FairleadError as error:
            tries.broken(_broken(error, tokens))
    return folded.result(tries.attempts)


def read() -> Generator[Read, StreamResponse | UnaryResponse | None, StreamResponse | None]:
    """Reads the open stream."""
    message = yield Read()
    if message is not None and not isinstance(message, inference_pb2.StreamGenerateResponse):
        raise TypeError(f"the transport answered a stream with {type(message).__name__}")
    return message


def _has_no_tickets(error: FairleadError) -> bool:
    """Whether the router has none to give: those before tickets do not know the method."""
    return error.reason is Reason.TICKETS_UNAVAILABLE or (
        isinstance(error, InternalError) and error.reason is Reason.UNSPECIFIED
    )


def _broken(error: FairleadError, tokens: int) -> FairleadError:
    """A replica that vanishes after the first token breaks the stream, whatever grpcio calls it."""
    if not isinstance(error, UnavailableError) or error.reason is Reason.STREAM_BROKEN:
        return error
    return UnavailableError(
        f"the stream broke after {tokens} tokens; what arrived was charged",
        reason=Reason.STREAM_BROKEN,
        metadata={"output_tokens": str(tokens)},
    )
