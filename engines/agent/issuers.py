"""The routers whose tickets this replica takes: their keys, their clocks, and what they have to hear."""

from __future__ import annotations

import asyncio
from typing import Final

from google.protobuf.message import DecodeError

from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.tickets import KEY_BYTES, TicketKey, name_in, request_digest
from engines.agent.core.tickets import End, RouterClock, TicketRegister, TicketState, Verdict
from fairlead.engine.v1 import ticket_pb2
from fairlead.errors import (
    FailedPreconditionError,
    FairleadError,
    InvalidArgumentError,
    PermissionDeniedError,
    Reason,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2
from fairlead.inference.v1 import ticket_pb2 as public_pb2

log = get_logger(__name__)

ISSUERS_MAX: Final = 1024
"""Most router processes whose tickets are taken."""
GONE_AFTER_S: Final = 60.0
"""A router process that has not followed its tickets for so long has ended: what it did not hear is dropped. A router
gives a replica up after half of that."""

_OUTCOMES: Final = {
    None: ticket_pb2.TICKET_OUTCOME_UNSPECIFIED,
    End.COMPLETED: ticket_pb2.TICKET_OUTCOME_COMPLETED,
    End.FAILED: ticket_pb2.TICKET_OUTCOME_FAILED,
    End.CANCELLED: ticket_pb2.TICKET_OUTCOME_CANCELLED,
    End.UNUSED: ticket_pb2.TICKET_OUTCOME_UNUSED,
}


class Issuer:
    """One router process.

    Args:
        router_id: As in WatchLoadRequest.
        key: Of its tickets here.
        clock: The replica's.

    Attributes:
        news: Set when it should hear something at once.
        streams: Counts the streams it has opened; only the newest is served.
        left_ns: When its last stream ended; None while it follows.
    """

    def __init__(self, router_id: str, key: TicketKey, clock: Clock) -> None:
        self.router_id = router_id
        self.key = key
        self.register = TicketRegister()
        self.news = asyncio.Event()
        self.streams = 0
        self.left_ns: int | None = None
        self._clock = clock
        self._router_clock = RouterClock()

    @property
    def now_ns(self) -> int:
        """The router's time now."""
        return self._router_clock.now_ns(self._clock.monotonic_ns())

    def begin(self) -> int:
        """A stream begins; returns its count."""
        self.streams += 1
        self.left_ns = None
        self.register.begin_stream()
        return self.streams

    def leave(self, stream: int) -> None:
        """A stream ended."""
        if stream == self.streams:
            self.left_ns = self._clock.monotonic_ns()

    def hear(self, request: ticket_pb2.FollowTicketsRequest) -> None:
        """The router said something."""
        self._router_clock.hear(request.now_ns, self._clock.monotonic_ns())
        self.register.acknowledge(request.acknowledged)
        for number in request.returned:
            self.register.take_back(number, self.now_ns)
        if self.register.urgent:
            self.news.set()

    def message(self, *, whole: bool) -> ticket_pb2.TicketReports:
        """What the router should hear now; see `TicketRegister.message`."""
        as_of_ns = self.now_ns
        number, states = self.register.message(whole=whole)
        return ticket_pb2.TicketReports(number=number, as_of_ns=as_of_ns, reports=[_report(state) for state in states])


class Redeemed:
    """A ticket that was redeemed, from then on to its one end.

    Args:
        issuer: Who issued it.
        claims: What it says.

    Attributes:
        claims: As given.
        router_id: Who issued it, as in WatchLoadRequest.
    """

    def __init__(self, issuer: Issuer, claims: ticket_pb2.TicketClaims) -> None:
        self.claims = claims
        self.router_id = issuer.router_id
        self._issuer = issuer

    @property
    def left_s(self) -> float:
        """Until the answer must have ended."""
        return (self.claims.deadline_ns - self._issuer.now_ns) / NS_PER_S

    def delivered(self, tokens: int) -> None:
        """The client got more of the answer."""
        register = self._issuer.register
        register.delivered(self.claims.number, tokens, self._issuer.now_ns)
        if register.urgent:
            self._issuer.news.set()

    def completed(self, finish_reason: int, usage: inference_pb2.Usage) -> None:
        """The answer is whole."""
        state = self._issuer.register.state(self.claims.number)
        state.finish_reason = finish_reason
        state.usage = (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens)
        self._end(End.COMPLETED)

    def failed(self, reason: Reason) -> None:
        """It ended by an error. Does nothing where it has ended before."""
        self._end(End.FAILED, reason.value)

    def cancelled(self) -> None:
        """The client is gone. Does nothing where it has ended before."""
        self._end(End.CANCELLED)

    def _end(self, end: End, reason: str = "") -> None:
        self._issuer.register.ended(self.claims.number, end, self._issuer.now_ns, reason=reason)
        self._issuer.news.set()


class Issuers:
    """All routers whose tickets are taken.

    Args:
        clock: The replica's.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_name: dict[bytes, Issuer] = {}

    @property
    def unacknowledged(self) -> int:
        """Tickets that run, or whose end their router has not acknowledged."""
        return sum(issuer.register.unacknowledged for issuer in self._by_name.values())

    def follow(self, request: ticket_pb2.FollowTicketsRequest) -> Issuer:
        """A router begins to follow its tickets.

        Args:
            request: Its first message.

        Raises:
            InvalidArgumentError: The key has the wrong length.
            UnavailableError: There are too many routers.
        """
        if len(request.key) != KEY_BYTES:
            raise InvalidArgumentError(f"a key has {KEY_BYTES} bytes", field="key")
        self._forget()
        key = TicketKey(request.key)
        issuer = self._by_name.get(key.name)
        if issuer is None:
            if len(self._by_name) >= ISSUERS_MAX:
                raise UnavailableError("the tickets of too many routers are taken already", reason=Reason.NOT_READY)
            issuer = self._by_name[key.name] = Issuer(request.router_id, key, self._clock)
        return issuer

    def redeem(self, request: public_pb2.RedeemRequest) -> Redeemed:
        """Checks a ticket and uses it up.

        Args:
            request: The ticket, and the request it must have been issued for.

        Raises:
            FairleadError: It is not good; the reason says why.
        """
        issuer = self._by_name.get(name_in(request.token))
        if issuer is None:
            raise FailedPreconditionError(
                "no router that issues tickets for this replica has signed this one", reason=Reason.TICKET_ELSEWHERE
            )
        claims = _claims(issuer.key, request.token)
        if claims.request_digest != request_digest(request.request):
            raise PermissionDeniedError("the ticket was issued for another request", reason=Reason.TICKET_MISMATCH)
        verdict = issuer.register.use(claims.number, claims.expires_ns, issuer.now_ns)
        if verdict is not Verdict.GOOD:
            raise _refusal(verdict)
        return Redeemed(issuer, claims)

    def _forget(self) -> None:
        """Forgets routers that have ended, with all that they did not hear."""
        now_ns = self._clock.monotonic_ns()
        for name, issuer in list(self._by_name.items()):
            if issuer.left_ns is not None and now_ns - issuer.left_ns > GONE_AFTER_S * NS_PER_S:
                lost = issuer.register.unacknowledged
                if lost:
                    log.warning("the issuer of tickets is gone", router=issuer.router_id, unacknowledged=lost)
                del self._by_name[name]


def _claims(key: TicketKey, token: bytes) -> ticket_pb2.TicketClaims:
    sealed = key.unseal(token)
    if sealed is not None:
        try:
            return ticket_pb2.TicketClaims.FromString(sealed)
        except DecodeError:
            pass
    raise PermissionDeniedError("the ticket was changed after it was signed", reason=Reason.TICKET_INVALID)


def _refusal(verdict: Verdict) -> FairleadError:
    match verdict:
        case Verdict.EXPIRED:
            return FailedPreconditionError("the ticket has expired", reason=Reason.TICKET_EXPIRED)
        case Verdict.USED:
            return FailedPreconditionError("the ticket was used before", reason=Reason.TICKET_USED)
        case _:
            return UnavailableError("too many tickets are open here", reason=Reason.NOT_READY)


def _report(state: TicketState) -> ticket_pb2.TicketReport:
    report = ticket_pb2.TicketReport(
        number=state.number,
        outcome=_OUTCOMES[state.end],
        output_tokens=state.output_tokens,
        finish_reason=state.finish_reason,  # type: ignore[arg-type]  # as on the wire
        reason=state.reason,
        first_token_ns=state.first_token_ns,
        ended_ns=state.ended_ns,
    )
    if state.usage is not None:
        input_tokens, cached_input_tokens, output_tokens = state.usage
        report.usage.input_tokens, report.usage.cached_input_tokens = input_tokens, cached_input_tokens
        report.usage.output_tokens = output_tokens
    return report
