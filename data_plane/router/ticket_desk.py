"""Issues tickets: a request is admitted and its replica picked as for the relay, and the client streams by itself."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from common.clock import NS_PER_S
from common.rpc import as_fairlead_error
from common.tickets import KEY_BYTES, TicketKey, name_in, replica_key, request_digest
from data_plane.router.admission import Order
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.fleet import Fleet
from data_plane.router.core.quarantine import Quarantine, fingerprint
from data_plane.router.core.tickets import OPEN_MAX
from data_plane.router.exchange import Call, Receipt, Try
from data_plane.router.flow import Flow
from data_plane.router.giving_up import given_up
from data_plane.router.routing import Chosen, Found, NoReplicaError, Route, Routing
from data_plane.router.tab import Tab
from data_plane.router.ticket_ledger import Held, TicketLedger
from data_plane.router.ticket_messages import ClaimsWriter, ticket_message
from data_plane.router.tracing import RequestTrace
from fairlead.engine.v1 import ticket_pb2
from fairlead.errors import (
    FailedPreconditionError,
    FairleadError,
    NotFoundError,
    QuotaExceededError,
    Reason,
)
from fairlead.inference.v1 import inference_pb2 as pb
from model_units.prefix import prompt_chunks

# A replica reports every second; what has been silent for five of them gets no new tickets.
_SILENT_S: Final = 5.0


class Asked:
    """A request for a ticket on its way.

    Attributes:
        receipt: Its receipt.
        trace: Of the request.
        order: What is asked, once it was found to be in order.
        tab: What it holds.
        route: Where it may go, once it holds something.
        chosen: The replica, with the request counted on it.
        digest: Of what the client sent.
        claims_id: Its id is kept from being used twice.
        ticket: What it got, as a message's bytes; None while it waits for quota or for room.
    """

    __slots__ = ("chosen", "claims_id", "digest", "order", "receipt", "route", "tab", "ticket", "trace")

    def __init__(self, receipt: Receipt, trace: RequestTrace) -> None:
        self.receipt = receipt
        self.trace = trace
        self.order: Order | None = None
        self.tab: Tab | None = None
        self.route: Route | None = None
        self.chosen: Chosen | None = None
        self.digest = b""
        self.claims_id = False
        self.ticket: bytes | None = None


class TicketDesk:
    """See the module.

    Args:
        flow: Runs requests; tickets share what it is made of.
        routing: Picks replicas.
        fleet: The replicas.
        quarantine: Prompts that kill replicas.
        life_s: How long a ticket is good for.

    Attributes:
        ledger: The open tickets.
        on_given_back: Called when a replica should hear that a ticket was given back.
    """

    def __init__(self, flow: Flow, *, routing: Routing, fleet: Fleet, quarantine: Quarantine, life_s: float) -> None:
        self._flow = flow
        self._admission = flow.admission
        self._attempts = flow.attempts
        self._books = flow.books
        self._tracing = flow.tracing
        self._clock = flow.clock
        self._routing = routing
        self._quarantine = quarantine
        self._life_ns = int(life_s * NS_PER_S)
        self._writer = ClaimsWriter()
        self._secret = secrets.token_bytes(KEY_BYTES)
        self._keys: dict[str, TicketKey] = {}
        self._replicas: dict[bytes, str] = {}
        self.ledger = TicketLedger(flow.books, routing=routing, fleet=fleet, quarantine=quarantine)
        self.on_given_back: Callable[[], None] = lambda: None

    def key(self, replica_id: str) -> bytes:
        """The key of this router's tickets for a replica."""
        return replica_key(self._secret, replica_id)

    def linked(self, replica_id: str) -> None:
        """A replica has the key: tickets for it can be issued."""
        if replica_id not in self._keys:
            key = self._keys[replica_id] = TicketKey(self.key(replica_id))
            self._replicas[key.name] = replica_id

    def unlinked(self, replica_id: str) -> None:
        """A replica is gone for good."""
        key = self._keys.pop(replica_id, None)
        if key is not None:
            del self._replicas[key.name]

    async def issue(self, call: Call) -> pb.Ticket:
        """`begin`, and `wait` where that is needed."""
        asked = self.begin(call)
        return pb.Ticket.FromString(await self.wait(asked) if asked.ticket is None else asked.ticket)

    def begin(self, call: Call) -> Asked:
        """Admits a request and issues a ticket for it. What it holds is settled when its replica has reported it.

        Args:
            call: The request.

        Returns:
            The request with its ticket; without one where it has to wait, and `wait` goes on.

        Raises:
            FairleadError: It was refused; nothing is held.
        """
        receipt = self._flow.receipt(call.request)
        receipt.arrive_ns, receipt.arrive_wall_ns = self._clock.monotonic_ns(), self._clock.wall_ns()
        self._books.accounts.received += 1
        asked = Asked(receipt, self._tracing.request(call.trace, call.request, receipt))
        try:
            self._begin(call, asked)
        except Exception as error:  # noqa: BLE001  # the boundary: a request that ends must be written down
            raise self._refused(asked, error) from None
        return asked

    async def wait(self, asked: Asked) -> bytes:
        """Waits for quota and for room; errors as from `begin`."""
        order, tab, receipt = asked.order, asked.tab, asked.receipt
        assert order is not None
        assert tab is not None
        try:
            if tab.hold is None:
                tab.open(await self._admission.wait(order, receipt))
                self._choose(asked)
            if asked.ticket is None:
                assert asked.route is not None
                self._found(asked, await self._routing.wait(asked.route, ()))
        except asyncio.CancelledError as error:
            self._leave(asked, Outcome.CANCELLED, error, Reason.CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001  # as in `begin`
            raise self._refused(asked, error) from None
        assert asked.ticket is not None
        return asked.ticket

    def give_back(self, token: bytes, authorization: str | None) -> None:
        """Takes a ticket back that a client could not use.

        Args:
            token: The ticket.
            authorization: The authorization header's value, or None.

        Raises:
            NotFoundError: This router has no such ticket open for this tenant.
            FairleadError: The key is not known.
        """
        tenant_id = self._admission.authenticate(authorization).tenant_id
        replica_id = self._replicas.get(name_in(token))
        sealed = self._keys[replica_id].unseal(token) if replica_id is not None else None
        if replica_id is not None and sealed is not None:
            try:
                number = ticket_pb2.TicketClaims.FromString(sealed).number
            except DecodeError:
                number = 0
            ticket = self.ledger.book.find(replica_id, number)
            if ticket is not None and ticket.held.order.tenant_id == tenant_id:
                self.ledger.give_back(ticket)
                self.on_given_back()
                return
        raise NotFoundError("no such ticket is open at this router")

    def _refused(self, asked: Asked, error: Exception) -> FairleadError:
        """A request gets no ticket; what its client is told."""
        if not isinstance(error, FairleadError):
            self._leave(asked, Outcome.REFUSED, error, Reason.INTERNAL)
            return as_fairlead_error(error, "IssueTicket")
        error.metadata.setdefault("request_id", asked.receipt.request_id)
        self._leave(asked, Outcome.REFUSED, error, error.reason)
        return error

    def _leave(self, asked: Asked, outcome: Outcome, error: BaseException, reason: Reason) -> None:
        """Gives back what it had and writes down how it ended."""
        receipt, order = asked.receipt, asked.order
        if asked.chosen is not None:
            self._routing.ended(asked.chosen)
        if asked.tab is not None:
            asked.tab.close()
        if asked.claims_id and order is not None:
            self._books.answers.abandon(order.tenant_id, receipt.request_id)
        self.ledger.write_down(receipt, asked.trace, outcome, error, reason=reason.value)

    def _begin(self, call: Call, asked: Asked) -> None:
        receipt = asked.receipt
        try:
            order = asked.order = self._admission.order(call, receipt)
        finally:
            self._books.decisions.remember(receipt)
        asked.digest = request_digest(order.request)
        if order.request.request_id:
            asked.ticket = again = self._again(order, receipt, asked.digest)
            if again is not None:
                receipt.replica_id, receipt.replayed = pb.Ticket.FromString(again).replica_id, True
                self.ledger.write_down(receipt, asked.trace, Outcome.COMPLETED)
                return
            asked.claims_id = True
        self._attempts.refuse_poison(order)
        if len(self.ledger.book) >= OPEN_MAX:
            raise QuotaExceededError("too many tickets are open", reason=Reason.QUEUE_FULL, retry_after_s=1.0)
        tab = asked.tab = Tab(self._books, order, receipt)
        hold = self._admission.hold_at_once(order, receipt)
        if hold is not None:
            tab.open(hold)
            self._choose(asked)

    def _again(self, order: Order, receipt: Receipt, digest: bytes) -> bytes | None:
        """The ticket of a request that is repeated before its ticket was redeemed, as when the first answer was lost.

        Raises:
            ConflictError: It is in flight.
            InvalidArgumentError: The id belongs to another request.
            FailedPreconditionError: It was answered; reason TICKETS_UNAVAILABLE, for the relay repeats the answer.
        """
        ticket = self.ledger.named(order.tenant_id, receipt.request_id)
        if ticket is not None and not ticket.redeemed and ticket.held.digest == digest:
            return ticket.held.ticket
        answer = self._books.answers.begin(order.tenant_id, receipt.request_id, digest, receipt.arrive_ns)
        if answer is not None:
            raise _unavailable("this request was answered before; the relay repeats its answer")
        return None

    def _choose(self, asked: Asked) -> None:
        """Picks a replica, where there is no need to wait for one with room."""
        assert asked.order is not None
        route = asked.route = self._routing.route(asked.order, asked.receipt)
        found = self._routing.at_once(route, (), may_wait=True)
        if found is not None:
            self._found(asked, found)

    def _found(self, asked: Asked, found: Found) -> None:
        """Issues the ticket for the replica that was picked.

        Raises:
            FailedPreconditionError: It takes no tickets; reason TICKETS_UNAVAILABLE.
            FairleadError: None can take the request.
        """
        order, receipt, route, tab = asked.order, asked.receipt, asked.route, asked.tab
        assert order is not None
        assert route is not None
        assert tab is not None
        if isinstance(found, NoReplicaError):
            raise given_up(order, receipt, 0, None)
        if not isinstance(found, Chosen):
            raise found
        asked.chosen = found
        replica_id = receipt.replica_id = found.pick.replica_id
        receipt.engine = found.member.engine
        now_ns = self._clock.monotonic_ns()
        key = self._keys.get(replica_id)
        if key is None or self.ledger.silent_s(replica_id, now_ns) > _SILENT_S:
            raise _unavailable("the replica for this request takes no tickets at present")
        if self._quarantine:
            self._attempts.refuse_poison(order)
            prompt = fingerprint(order.tenant_id, order.model.model_id, prompt_chunks(order.request))
            self._quarantine.try_once(prompt, now_ns)
        expires_ns = min(now_ns + self._life_ns, order.deadline_ns)
        claims = self._writer.claims(route, found, self.ledger.book.next_number(), asked.digest, expires_ns)
        expire_wall_ns = receipt.arrive_wall_ns + expires_ns - receipt.arrive_ns
        address = found.member.record.ticket_address
        asked.ticket = ticket = ticket_message(receipt, address, key.seal(claims), expire_wall_ns)
        receipt.tried(Try(found.pick, now_ns))
        held = Held(order, receipt, tab, found, asked.trace, asked.digest, asked.claims_id, ticket)
        self.ledger.enter(held, expires_ns, now_ns)


def _unavailable(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"{message}; use StreamGenerate", reason=Reason.TICKETS_UNAVAILABLE)
