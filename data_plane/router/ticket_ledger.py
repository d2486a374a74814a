"""Open tickets at a router: what their replicas report is delivered, charged and written down, each once."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from common.clock import NS_PER_S
from common.logs import get_logger
from data_plane.router import tracing
from data_plane.router.admission import Order
from data_plane.router.books import Books
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.fleet import Fleet
from data_plane.router.core.quarantine import Quarantine, fingerprint
from data_plane.router.core.retry import casts_doubt
from data_plane.router.core.tickets import OpenTicket, TicketBook
from data_plane.router.exchange import Finished, Receipt
from data_plane.router.routing import Chosen, Routing
from data_plane.router.tab import Tab
from data_plane.router.tracing import RequestTrace
from fairlead.engine.v1 import ticket_pb2
from fairlead.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    FairleadError,
    InternalError,
    InvalidArgumentError,
    Reason,
    RequestCancelledError,
    UnavailableError,
)
from model_units.prefix import prompt_chunks

log = get_logger(__name__)

LOST_AFTER_S: Final = 30.0
"""A replica that has not been heard for so long is given up with all its tickets. It keeps what it has to report twice
as long, so that a network that comes back in time loses nothing."""

UNREDEEMED_COUNTS_S: Final = 2.0
"""So long the work of a ticket that is not redeemed counts as on its way to its replica. A client that is there redeems
it at once, and the replica says so within a second; what somebody only holds must not keep others away for longer."""

_REASONS: Final = {reason.value: reason for reason in Reason}


def _not_used(reason: Reason) -> FailedPreconditionError:
    return FailedPreconditionError("the ticket was not used", reason=reason)


# What is written down of tickets that nobody redeemed; never raised. Many end so at a time, all alike.
_EXPIRED: Final = _not_used(Reason.TICKET_EXPIRED)
_RETURNED: Final = _not_used(Reason.CANCELLED)
_LOST: Final = _not_used(Reason.REPLICA_LOST)
_SHUT_DOWN: Final = _not_used(Reason.SHUTTING_DOWN)


class Held:
    """What an open ticket stands for.

    Attributes:
        order: The request.
        receipt: Its receipt.
        tab: What it holds, gets and pays.
        chosen: The replica, with the request counted on it.
        trace: Of the request.
        digest: Of what the client sent.
        named: Its id is kept from being used twice while the ticket is open.
        ticket: As the client got it.
    """

    __slots__ = ("chosen", "digest", "named", "order", "receipt", "tab", "ticket", "trace")

    def __init__(
        self,
        order: Order,
        receipt: Receipt,
        tab: Tab,
        chosen: Chosen,
        trace: RequestTrace,
        digest: bytes,
        named: bool,
        ticket: bytes,
    ) -> None:
        self.order = order
        self.receipt = receipt
        self.tab = tab
        self.chosen = chosen
        self.trace = trace
        self.digest = digest
        self.named = named
        self.ticket = ticket


@dataclass
class TicketCounts:
    """What is counted of tickets, for metrics.

    Attributes:
        issued: Tickets issued.
        unused: Those that were never redeemed.
        lost: Those whose replica was given up.
        unknown: Reports of ends that this router does not know: it has settled them before.
    """

    issued: int = 0
    unused: int = 0
    lost: int = 0
    unknown: int = 0


class TicketLedger:
    """See the module.

    Args:
        books: Where everything is written down.
        routing: Told when a request starts and leaves its replica.
        fleet: The replicas.
        quarantine: Told of prompts that were lost and answered.

    Attributes:
        book: The open tickets.
        counts: For metrics.
    """

    def __init__(self, books: Books, *, routing: Routing, fleet: Fleet, quarantine: Quarantine) -> None:
        self.book: TicketBook[Held] = TicketBook()
        self.counts = TicketCounts()
        self._books = books
        self._routing = routing
        self._fleet = fleet
        self._quarantine = quarantine
        self._now_ns = books.now_ns
        self._heard_ns: dict[str, int] = {}
        self._by_id: dict[tuple[str, str], OpenTicket[Held]] = {}
        self._awaited: deque[tuple[int, OpenTicket[Held]]] = deque()  # those counted unredeemed, since when

    def enter(self, held: Held, expires_ns: int, now_ns: int) -> None:
        """Enters a ticket that is being issued.

        Args:
            held: What it stands for.
            expires_ns: When it can no longer be redeemed.
            now_ns: Monotonic now.
        """
        ticket = self.book.add(held.receipt.replica_id, expires_ns, held)
        self.counts.issued += 1
        self._awaited.append((now_ns, ticket))
        if held.named:
            self._by_id[held.order.tenant_id, held.receipt.request_id] = ticket

    def named(self, tenant_id: str, request_id: str) -> OpenTicket[Held] | None:
        """The open ticket of a request that its client named."""
        return self._by_id.get((tenant_id, request_id))

    def give_back(self, ticket: OpenTicket[Held]) -> None:
        """A client cannot use a ticket: its id is free at once, and its hold once the replica agrees."""
        if not ticket.redeemed and not ticket.returned:
            ticket.returned = True
            self._free_id(ticket.held)

    def silent_s(self, replica_id: str, now_ns: int) -> float:
        """Since when a replica has not been heard, seconds."""
        heard_ns = self._heard_ns.get(replica_id)
        return math.inf if heard_ns is None else (now_ns - heard_ns) / NS_PER_S

    def booked(self, replica_id: str, reports: ticket_pb2.TicketReports) -> None:
        """Books what a replica reports."""
        self._heard_ns[replica_id] = self._now_ns()
        for report in reports.reports:
            ended = report.outcome != ticket_pb2.TICKET_OUTCOME_UNSPECIFIED
            moved = self.book.report(replica_id, report.number, report.output_tokens, ended=ended)
            if moved is None:
                self.counts.unknown += ended
                continue
            held = moved.ticket.held
            if moved.output_tokens:
                self._deliver(held, moved.output_tokens, report.first_token_ns)
            if ended:
                self._end(held, report)
        for ticket in self.book.caught_up(replica_id, reports.as_of_ns):
            self._unused(ticket.held, _EXPIRED)

    def sweep(self) -> None:
        """Gives up replicas that are not heard any more, and work that nobody redeems. To be called twice a second."""
        now_ns = self._now_ns()
        counted_ns = now_ns - int(UNREDEEMED_COUNTS_S * NS_PER_S)
        while self._awaited and self._awaited[0][0] <= counted_ns:
            ticket = self._awaited.popleft()[1]
            if not ticket.redeemed:
                self._routing.ended(ticket.held.chosen)
        for replica_id in self.book.replicas():
            if self.silent_s(replica_id, now_ns) > LOST_AFTER_S:
                self.lost(replica_id)
        for replica_id in [each for each in self._heard_ns if self.silent_s(each, now_ns) > LOST_AFTER_S]:
            del self._heard_ns[replica_id]

    def lost(self, replica_id: str) -> None:
        """A replica is given up: what it reported is charged, the rest goes back."""
        tickets = self.book.lost(replica_id)
        if tickets:
            log.warning("a replica with open tickets is given up", replica_id=replica_id, tickets=len(tickets))
        for ticket in tickets:
            held = ticket.held
            self.counts.lost += 1
            if not ticket.redeemed:
                self._unused(held, _LOST)
                continue
            now_ns = self._now_ns()
            poison = self._quarantine.lost(_prompt(held.order), replica_id, now_ns)
            self._books.accounts.quarantined[held.order.model.model_id] += poison
            self._fail(held, Reason.REPLICA_LOST)

    def close(self) -> None:
        """The router ends: what was reported is charged, the rest goes back."""
        for replica_id in self.book.replicas():
            for ticket in self.book.lost(replica_id):
                if ticket.redeemed:
                    self._fail(ticket.held, Reason.SHUTTING_DOWN)
                else:
                    self._unused(ticket.held, _SHUT_DOWN)

    def write_down(
        self,
        receipt: Receipt,
        trace: RequestTrace,
        outcome: Outcome,
        error: BaseException | None = None,
        *,
        reason: str = "",
        finished: Finished | None = None,
    ) -> None:
        """Writes down the one end of a request.

        Args:
            receipt: Its receipt.
            trace: Of the request.
            outcome: How it ended.
            error: What ended it, or None.
            reason: Why it did not end well.
            finished: The end of its answer.
        """
        receipt.end(outcome, reason, self._now_ns(), error)
        self._books.accounts.finish(receipt.tenant_id, receipt.model_id, outcome, reason)
        if trace.span is not None:
            tracing.finish_request(trace.span, receipt, error, finished)

    def _deliver(self, held: Held, tokens: int, first_token_ns: int) -> None:
        this = held.receipt.tries[-1]
        if not this.first_token_ns:
            this.first_token_ns = self._sane(held, first_token_ns)
            held.tab.begin(this.first_token_ns)
            self._routing.started(held.chosen)
        held.tab.deliver(tokens)

    def _sane(self, held: Held, at_ns: int) -> int:
        """A time that a replica tells: not before the request, nor after now."""
        return max(held.receipt.arrive_ns, min(at_ns, self._now_ns()))

    def _end(self, held: Held, report: ticket_pb2.TicketReport) -> None:
        match report.outcome:
            case ticket_pb2.TICKET_OUTCOME_COMPLETED:
                finished = held.tab.finish(report.finish_reason, report.usage, self._sane(held, report.ended_ns))
                self._left(held)
                if self._quarantine:
                    self._quarantine.answered(_prompt(held.order))
                self.write_down(held.receipt, held.trace, Outcome.COMPLETED, finished=finished)
            case ticket_pb2.TICKET_OUTCOME_UNUSED:
                self._unused(held, _RETURNED)
            case ticket_pb2.TICKET_OUTCOME_CANCELLED:
                self._close(held, Outcome.CANCELLED, RequestCancelledError("the client is gone"))
            case _:
                self._fail(held, _REASONS.get(report.reason, Reason.INTERNAL))

    def _unused(self, held: Held, error: FailedPreconditionError) -> None:
        self.counts.unused += 1
        self._close(held, Outcome.CANCELLED, error)

    def _fail(self, held: Held, reason: Reason) -> None:
        receipt, error = held.receipt, _failure(reason, held.receipt.output_tokens)
        if isinstance(error, UnavailableError) and casts_doubt(reason):
            self._fleet.failed(receipt.replica_id, self._now_ns())
        receipt.tries[-1].failure_reason = reason.value
        wrong = isinstance(error, InvalidArgumentError) and not receipt.output_tokens
        self._close(held, Outcome.REFUSED if wrong else Outcome.FAILED, error)

    def _close(self, held: Held, outcome: Outcome, error: FairleadError) -> None:
        held.tab.close()
        self._left(held)
        self.write_down(held.receipt, held.trace, outcome, error, reason=str(error.reason))

    def _left(self, held: Held) -> None:
        self._routing.ended(held.chosen)
        self._free_id(held)

    def _free_id(self, held: Held) -> None:
        """Another request may have the id from now on. Only once: it may have it already."""
        if held.named:
            held.named = False
            del self._by_id[held.order.tenant_id, held.receipt.request_id]
            self._books.answers.abandon(held.order.tenant_id, held.receipt.request_id)


def _failure(reason: Reason, output_tokens: int) -> FairleadError:
    """What the client saw, for those who ask for the decision."""
    if reason is Reason.DEADLINE_EXCEEDED:
        return DeadlineExceededError("the deadline passed before the answer was whole")
    if reason is Reason.INVALID_ARGUMENT:
        return InvalidArgumentError("the engine refused the request")
    if reason is Reason.INTERNAL:
        return InternalError("the replica failed")
    if output_tokens:
        reason = Reason.STREAM_BROKEN
    return UnavailableError(f"the replica failed after {output_tokens} tokens", reason=reason)


def _prompt(order: Order) -> bytes:
    return fingerprint(order.tenant_id, order.model.model_id, prompt_chunks(order.request))
