"""Issues tickets: a request is admitted and its replica picked as for the relay, and the client streams by itself."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from common.clock import NS_PER_S
from common.rpc import as_fairlead_error
from common.shard_map import Generation
from common.tickets import KEY_BYTES, key_name, name_in, replica_key, request_digest, seal, unseal
from data_plane.router.admission import Order
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.fleet import Fleet
from data_plane.router.core.quarantine import Quarantine, fingerprint
from data_plane.router.core.tickets import OPEN_MAX
from data_plane.router.exchange import Call, Receipt, Try
from data_plane.router.flow import Flow, receipt_id
from data_plane.router.giving_up import given_up
from data_plane.router.routing import Chosen, NoReplicaError, Route, Routing, weight
from data_plane.router.tab import Tab
from data_plane.router.ticket_ledger import Held, TicketLedger
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
from model_units.cost import CostForm, CostProfile
from model_units.prefix import prompt_chunks

# A replica reports every second; what has been silent for five of them gets no new tickets.
_SILENT_S: Final = 5.0


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
        self._admission = flow.admission
        self._attempts = flow.attempts
        self._books = flow.books
        self._tracing = flow.tracing
        self._clock = flow.clock
        self._routing = routing
        self._quarantine = quarantine
        self._life_ns = int(life_s * NS_PER_S)
        self._secret = secrets.token_bytes(KEY_BYTES)
        self._keys: dict[str, tuple[bytes, bytes]] = {}
        self._replicas: dict[bytes, str] = {}
        self.ledger = TicketLedger(flow.books, routing=routing, fleet=fleet, quarantine=quarantine)
        self.on_given_back: Callable[[], None] = lambda: None

    def key(self, replica_id: str) -> bytes:
        """The key of this router's tickets for a replica."""
        return replica_key(self._secret, replica_id)

    def linked(self, replica_id: str) -> None:
        """A replica has the key: tickets for it can be issued."""
        if replica_id not in self._keys:
            key = self.key(replica_id)
            self._keys[replica_id] = key, key_name(key)
            self._replicas[key_name(key)] = replica_id

    def unlinked(self, replica_id: str) -> None:
        """A replica is gone for good."""
        key = self._keys.pop(replica_id, None)
        if key is not None:
            del self._replicas[key[1]]

    async def issue(self, call: Call) -> pb.Ticket:
        """Admits a request and issues a ticket for it. What it holds is settled when its replica has reported it.

        Args:
            call: The request.

        Raises:
            FairleadError: It was refused; nothing is held.
        """
        receipt = Receipt(receipt_id(call.request))
        receipt.arrive_ns, receipt.arrive_wall_ns = self._clock.monotonic_ns(), self._clock.wall_ns()
        self._books.accounts.received += 1
        trace = self._tracing.request(call.trace, call.request, receipt)
        try:
            return await self._issue(call, receipt, trace)
        except FairleadError as error:
            error.metadata.setdefault("request_id", receipt.request_id)
            self._refused(receipt, trace, Outcome.REFUSED, error, error.reason)
            raise
        except asyncio.CancelledError as error:
            self._refused(receipt, trace, Outcome.CANCELLED, error, Reason.CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001  # the boundary: a request that ends must be written down
            self._refused(receipt, trace, Outcome.REFUSED, error, Reason.INTERNAL)
            raise as_fairlead_error(error, "IssueTicket") from None

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
        sealed = unseal(self._keys[replica_id][0], token) if replica_id is not None else None
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

    def _refused(
        self, receipt: Receipt, trace: RequestTrace, outcome: Outcome, error: BaseException, reason: Reason
    ) -> None:
        self.ledger.write_down(receipt, trace, outcome, error, reason=reason.value)

    async def _issue(self, call: Call, receipt: Receipt, trace: RequestTrace) -> pb.Ticket:
        try:
            order = self._admission.order(call, receipt)
        finally:
            self._books.decisions.remember(receipt)
        digest = request_digest(order.request)
        named = bool(order.request.request_id)
        if named:
            again = self._again(order, receipt, digest)
            if again is not None:
                receipt.replica_id, receipt.replayed = again.replica_id, True
                self.ledger.write_down(receipt, trace, Outcome.COMPLETED)
                return again
        tab = Tab(self._books, order, receipt)
        chosen: Chosen | None = None
        try:
            self._attempts.refuse_poison(order)
            if len(self.ledger.book) >= OPEN_MAX:
                raise QuotaExceededError("too many tickets are open", reason=Reason.QUEUE_FULL, retry_after_s=1.0)
            tab.open(await self._admission.hold(order, receipt))
            route = self._routing.route(order, receipt)
            chosen = await self._choose(route)
            message, expires_ns = self._sealed(route, chosen, digest)
        except BaseException:
            if chosen is not None:
                self._routing.ended(chosen)
            tab.close()
            if named:
                self._books.answers.abandon(order.tenant_id, receipt.request_id)
            raise
        receipt.tried(Try(chosen.pick, self._clock.monotonic_ns()))
        self.ledger.enter(expires_ns, Held(order, receipt, tab, chosen, trace, digest, named, message))
        return message

    def _again(self, order: Order, receipt: Receipt, digest: bytes) -> pb.Ticket | None:
        """The ticket of a request that is repeated before its ticket was redeemed, as when the first answer was lost.

        Raises:
            ConflictError: It is in flight.
            InvalidArgumentError: The id belongs to another request.
            FailedPreconditionError: It was answered; reason TICKETS_UNAVAILABLE, for the relay repeats the answer.
        """
        ticket = self.ledger.named(order.tenant_id, receipt.request_id)
        if ticket is not None and not ticket.redeemed and ticket.held.digest == digest:
            return ticket.held.message
        answer = self._books.answers.begin(order.tenant_id, receipt.request_id, digest, receipt.arrive_ns)
        if answer is not None:
            raise _unavailable("this request was answered before; the relay repeats its answer")
        return None

    async def _choose(self, route: Route) -> Chosen:
        """Picks a replica.

        Raises:
            FailedPreconditionError: It takes no tickets; reason TICKETS_UNAVAILABLE.
            FairleadError: None can take the request.
        """
        order, receipt = route.order, route.receipt
        try:
            chosen = await self._routing.choose(route)
        except NoReplicaError:
            raise given_up(order, receipt, 0, None) from None
        record = chosen.member.record
        receipt.replica_id = record.replica_id
        receipt.engine = chosen.member.engine
        try:
            if record.replica_id not in self._keys or self.ledger.silent_s(record.replica_id) > _SILENT_S:
                raise _unavailable("the replica for this request takes no tickets at present")
            if self._quarantine:
                self._attempts.refuse_poison(order)
                prompt = fingerprint(order.tenant_id, order.model.model_id, prompt_chunks(order.request))
                self._quarantine.try_once(prompt, self._clock.monotonic_ns())
        except FairleadError:
            self._routing.ended(chosen)
            raise
        return chosen

    def _sealed(self, route: Route, chosen: Chosen, digest: bytes) -> tuple[pb.Ticket, int]:
        """The ticket, and when it ends."""
        order, receipt, record = route.order, route.receipt, chosen.member.record
        expires_ns = min(self._clock.monotonic_ns() + self._life_ns, order.deadline_ns)
        claims = ticket_pb2.TicketClaims(
            number=self.ledger.book.next_number(),
            request_digest=digest,
            expires_ns=expires_ns,
            deadline_ns=order.deadline_ns,
            request_id=receipt.request_id,
            tenant_id=order.tenant_id,
            max_tokens=order.checked.max_tokens,
            priority=order.checked.priority,
            prefill_milli_mu=chosen.pick.uncached_prefill_milli_mu,
            decode_milli_mu=order.price.cost.decode_milli_mu,
            weight=weight(receipt),
            dispatch_number=chosen.dispatch.number,
            shard_key=route.shard_key,
            with_prefix_blocks=bool(route.blocks),
            price=_price(order.profile, order.price.input_tokens, receipt),
        )
        if chosen.generation != Generation():
            claims.assignment.CopyFrom(chosen.generation.message())
        key, name = self._keys[record.replica_id]
        message = pb.Ticket(
            request_id=receipt.request_id,
            address=record.ticket_address,
            token=seal(key, name, claims.SerializeToString()),
            replica_id=record.replica_id,
            estimated_milli_mu=receipt.estimated_milli_mu,
            quota_left_milli_mu=receipt.quota_left_milli_mu,
        )
        left_ns = expires_ns - self._clock.monotonic_ns()
        message.expire_time.FromNanoseconds(self._clock.wall_ns() + left_ns)
        return message, expires_ns


def _price(profile: CostProfile, input_tokens: int, receipt: Receipt) -> ticket_pb2.TicketPrice:
    return ticket_pb2.TicketPrice(
        estimated_milli_mu=receipt.estimated_milli_mu,
        quota_left_milli_mu=receipt.quota_left_milli_mu,
        input_tokens=input_tokens,
        a=profile.a,
        b=profile.b,
        d=profile.d,
        g=profile.g,
        product=profile.form is CostForm.PRODUCT,
    )


def _unavailable(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"{message}; use StreamGenerate", reason=Reason.TICKETS_UNAVAILABLE)
