"""The router's side of tickets in one process: what is held, settled and told, whatever the replica reports."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from common.clock import FakeClock
from common.tickets import TOKEN_BYTES_MAX, TicketKey, request_digest
from data_plane.router.core.accounts import Outcome
from data_plane.router.core.fleet import Link
from data_plane.router.exchange import Call, Delta
from data_plane.router.ticket_ledger import LOST_AFTER_S, UNREDEEMED_COUNTS_S
from fairlead.engine.v1 import ticket_pb2
from fairlead.errors import (
    ConflictError,
    FailedPreconditionError,
    FairleadError,
    InvalidArgumentError,
    NotFoundError,
    QuotaExceededError,
    Reason,
    UnauthenticatedError,
)
from fairlead.inference.v1 import inference_pb2 as pb
from tests.support.router_lab import KEY, MODEL, OTHER_KEY, TENANT, RouterLab, Script, prompt_request
from tests.support.waiting import eventually

COMPLETED = ticket_pb2.TICKET_OUTCOME_COMPLETED
FAILED = ticket_pb2.TICKET_OUTCOME_FAILED
CANCELLED = ticket_pb2.TICKET_OUTCOME_CANCELLED
UNUSED = ticket_pb2.TICKET_OUTCOME_UNUSED
S = 10**9


class Lab(RouterLab):
    """A router whose one replica takes tickets, on a clock that the test moves."""

    def __init__(self, **options: object) -> None:
        self.time = FakeClock()
        super().__init__(("r1",), clock=self.time, **options)  # type: ignore[arg-type]  # test shorthand
        self.desk = self.router.tickets
        self.link("r1")

    def link(self, replica_id: str) -> None:
        """The replica has the key and reports."""
        self.desk.linked(replica_id)
        self.desk.ledger.booked(replica_id, ticket_pb2.TicketReports(number=1))

    async def issue(self, request: pb.GenerateRequest | None = None, *, key: str = KEY) -> pb.Ticket:
        return await self.desk.issue(Call(request or prompt_request(), f"Bearer {key}"))

    async def refused(self, request: pb.GenerateRequest | None = None, *, key: str = KEY) -> FairleadError:
        with pytest.raises(FairleadError) as caught:
            await self.issue(request, key=key)
        return caught.value

    def claims(self, ticket: pb.Ticket) -> ticket_pb2.TicketClaims:
        sealed = TicketKey(self.desk.key(ticket.replica_id)).unseal(ticket.token)
        assert sealed is not None
        return ticket_pb2.TicketClaims.FromString(sealed)

    def report(self, ticket: pb.Ticket | None = None, *, as_of_ns: int = 0, **fields: Any) -> None:
        reports = ticket_pb2.TicketReports(number=1, as_of_ns=as_of_ns)
        if ticket is not None:
            reports.reports.add(number=self.claims(ticket).number, **fields)
        self.desk.ledger.booked("r1" if ticket is None else ticket.replica_id, reports)

    @property
    def settled_milli_mu(self) -> int:
        return self.router.holds.settled_milli_mu

    def outcomes(self) -> dict[tuple[str, str], int]:
        return {(outcome.value, reason): n for (_, _, outcome, reason), n in self.router.accounts.finished.items()}

    def in_flight_at_replica(self) -> int:
        member = self.router.fleet.get("r1")
        assert member is not None
        return len(member.load._in_flight)


async def relay(lab: Lab, request: pb.GenerateRequest) -> str:
    """The same request through the router."""
    exchange = lab.router.flow.open(Call(request, f"Bearer {KEY}"))
    async with aclosing(exchange.events()) as events:
        return "".join([event.text async for event in events if isinstance(event, Delta)])


async def test_a_ticket_says_what_the_replica_needs_and_is_settled_by_its_report() -> None:
    """Held at issue; delivered, priced and written down as reported; the same report again changes nothing."""
    lab = Lab()
    request = prompt_request(request_id="mine")
    ticket = await lab.issue(request)
    claims = lab.claims(ticket)
    assert (claims.request_id, claims.tenant_id) == ("mine", TENANT)
    assert claims.request_digest == request_digest(request)
    assert claims.expires_ns - lab.time.monotonic_ns() == 10 * S
    assert claims.max_tokens == 256
    assert claims.dispatch_number == 1
    assert claims.price.estimated_milli_mu == ticket.estimated_milli_mu > 0
    assert len(ticket.token) < TOKEN_BYTES_MAX / 8
    assert (lab.router.holds.open_holds, lab.in_flight_at_replica()) == (1, 1)

    lab.time.advance(2.0)
    lab.report(ticket, output_tokens=2, first_token_ns=lab.time.monotonic_ns() - S)
    usage = pb.Usage(input_tokens=7, output_tokens=5)
    for _ in range(3):
        lab.report(
            ticket,
            output_tokens=5,
            outcome=COMPLETED,
            finish_reason=pb.FINISH_REASON_STOP,
            usage=usage,
            ended_ns=lab.time.monotonic_ns() + S,  # a clock that is wrong
        )
    (receipt,) = lab.router.flow.books.decisions.find("mine", TENANT)
    usage = receipt.usage
    assert usage is not None
    assert (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens) == (7, 0, 5)
    assert receipt.outcome is Outcome.COMPLETED
    assert receipt.settled_milli_mu == lab.settled_milli_mu == lab.router.accounts.settled_milli_mu[TENANT, MODEL] > 0
    assert lab.router.accounts.output_tokens[TENANT, MODEL] == 5
    assert lab.desk.ledger.counts.unknown == 2
    assert lab.router.accounts.time_to_first_token_s[MODEL].sum == pytest.approx(1.0)
    assert lab.router.accounts.time_per_output_token_s[MODEL].sum == pytest.approx(1.0 / 4)
    assert lab.in_flight_at_replica() == 0
    assert lab.received_equals_finished()


@pytest.mark.parametrize(
    ("tokens", "fields", "outcome"),
    [
        (3, {"outcome": CANCELLED}, ("cancelled", "CANCELLED")),
        (0, {"outcome": CANCELLED}, ("cancelled", "CANCELLED")),
        (3, {"outcome": FAILED, "reason": "ENGINE_FAILED"}, ("failed", "STREAM_BROKEN")),
        (0, {"outcome": FAILED, "reason": "ENGINE_FAILED"}, ("failed", "ENGINE_FAILED")),
        (0, {"outcome": FAILED, "reason": "INVALID_ARGUMENT"}, ("refused", "INVALID_ARGUMENT")),
        (2, {"outcome": FAILED, "reason": "DEADLINE_EXCEEDED"}, ("failed", "DEADLINE_EXCEEDED")),
        (1, {"outcome": FAILED, "reason": "what?"}, ("failed", "INTERNAL")),
        (0, {"outcome": UNUSED}, ("cancelled", "CANCELLED")),
    ],
)
async def test_every_end_charges_what_was_delivered(
    tokens: int, fields: dict[str, Any], outcome: tuple[str, str]
) -> None:
    """Whatever ends a ticket: tokens are charged, none are free, the rest of the hold goes back."""
    lab = Lab()
    ticket = await lab.issue()
    lab.report(ticket, output_tokens=tokens, **fields)
    assert (lab.settled_milli_mu > 0) is (tokens > 0)
    assert lab.outcomes() == {outcome: 1}
    assert lab.in_flight_at_replica() == 0
    assert lab.received_equals_finished()


async def test_a_stream_that_outruns_its_estimate_holds_more() -> None:
    """Progress extends the hold before the end settles it."""
    lab = Lab()
    ticket = await lab.issue(prompt_request(sampling=pb.SamplingParameters(max_tokens=4000)))
    lab.report(ticket, output_tokens=3900)
    assert lab.router.holds.held()[TENANT, MODEL] > ticket.estimated_milli_mu
    lab.report(ticket, output_tokens=3950, outcome=CANCELLED)
    assert lab.received_equals_finished()


async def test_an_unused_ticket_ends_when_the_replica_is_past_it() -> None:
    """Not by the router's own clock, however late it is; one that was redeemed stays."""
    lab = Lab()
    unused, used = await lab.issue(), await lab.issue()
    expires_ns = lab.claims(unused).expires_ns
    lab.time.advance(25.0)
    lab.desk.ledger.sweep()
    lab.report(used, as_of_ns=expires_ns - 1)
    assert lab.router.holds.open_holds == 2
    lab.report(as_of_ns=expires_ns)
    assert lab.outcomes() == {("cancelled", "TICKET_EXPIRED"): 1}
    assert lab.router.holds.open_holds == 1
    lab.report(used, outcome=CANCELLED)
    assert lab.settled_milli_mu == 0
    assert lab.received_equals_finished()


async def test_what_nobody_redeems_does_not_keep_others_away() -> None:
    """After two seconds an unredeemed ticket is no load of its replica; its hold stays, and a late use is charged."""
    lab = Lab()
    used, held = await lab.issue(), await lab.issue()
    lab.report(used)
    lab.time.advance(UNREDEEMED_COUNTS_S - 0.1)
    lab.desk.ledger.sweep()
    assert lab.in_flight_at_replica() == 2
    lab.time.advance(0.1)
    lab.desk.ledger.sweep()
    assert lab.in_flight_at_replica() == 1
    assert lab.router.holds.open_holds == 2
    for ticket in (held, used):
        lab.report(ticket, output_tokens=3)
        lab.report(ticket, output_tokens=5, outcome=CANCELLED)
    assert lab.in_flight_at_replica() == 0
    assert lab.settled_milli_mu > 0
    assert lab.received_equals_finished()


async def test_a_replica_that_falls_silent_is_given_up() -> None:
    """What it had reported is charged, what was not redeemed goes back, and what it says later counts for nothing."""
    lab = Lab()
    running, waiting = await lab.issue(), await lab.issue()
    lab.report(running, output_tokens=4)
    lab.time.advance(LOST_AFTER_S)
    lab.desk.ledger.sweep()
    assert lab.router.holds.open_holds == 2
    lab.time.advance(0.1)
    lab.desk.ledger.sweep()
    charged = lab.settled_milli_mu
    assert charged > 0
    assert lab.outcomes() == {("failed", "STREAM_BROKEN"): 1, ("cancelled", "REPLICA_LOST"): 1}
    for late in (running, waiting):
        lab.report(late, output_tokens=99, outcome=COMPLETED, usage=pb.Usage(output_tokens=99))
    assert lab.settled_milli_mu == charged
    assert lab.desk.ledger.counts.unknown == 2
    assert lab.received_equals_finished()


async def test_a_prompt_that_kills_two_replicas_gets_no_ticket() -> None:
    """Tickets feed the quarantine as the relay does, and heed it."""
    lab = Lab()
    for replica_id, next_id in (("r1", "r2"), ("r2", "r3")):
        ticket = await lab.issue()
        assert ticket.replica_id == replica_id
        lab.report(ticket)
        lab.desk.ledger.lost(replica_id)
        now_ns = lab.time.monotonic_ns()
        lab.router.fleet.delist(replica_id, now_ns)
        lab.router.fleet.link(replica_id, Link.SILENT, now_ns)
        lab.add_replica(next_id)
        lab.link(next_id)
    assert (await lab.refused()).reason is Reason.REQUEST_QUARANTINED
    assert lab.router.accounts.quarantined[MODEL] == 1
    assert (await lab.issue(prompt_request("another prompt"))).replica_id == "r3"
    lab.desk.ledger.close()
    assert lab.received_equals_finished()


async def test_a_returned_ticket_frees_its_id_at_once_and_its_hold_when_the_replica_agrees() -> None:
    """The relay may have the id right away, and keeps it when the ticket ends; a stranger can return nothing."""
    lab = Lab()
    told: list[str] = []
    lab.desk.on_given_back = lambda: told.append("told")
    request = prompt_request(request_id="mine")
    ticket = await lab.issue(request)
    with pytest.raises(UnauthenticatedError):
        lab.desk.give_back(ticket.token, None)
    for token, key in ((ticket.token, OTHER_KEY), (ticket.token[:-1], KEY), (b"", KEY)):
        with pytest.raises(NotFoundError):
            lab.desk.give_back(token, f"Bearer {key}")
    assert not lab.desk.ledger.book.returned("r1")

    lab.desk.give_back(ticket.token, f"Bearer {KEY}")
    lab.desk.give_back(ticket.token, f"Bearer {KEY}")
    assert told == ["told", "told"]
    assert lab.desk.ledger.book.returned("r1") == [lab.claims(ticket).number]
    gate = asyncio.Event()
    lab.upstream.scripts["r1"] = Script(gate=gate)
    relayed = asyncio.create_task(relay(lab, request))
    await eventually(lambda: lab.upstream.running == 1)
    lab.report(ticket, outcome=UNUSED)
    assert isinstance(await lab.refused(request), ConflictError), "the relay's request still has the id"
    gate.set()
    assert await relayed == "Hello world"
    assert lab.received_equals_finished()
    with pytest.raises(NotFoundError):
        lab.desk.give_back(ticket.token, f"Bearer {KEY}")


async def test_a_ticket_that_was_used_cannot_be_returned() -> None:
    """Its client pays for it."""
    lab = Lab()
    ticket = await lab.issue(prompt_request(request_id="mine"))
    lab.report(ticket, output_tokens=1)
    lab.desk.give_back(ticket.token, f"Bearer {KEY}")
    assert not lab.desk.ledger.book.returned("r1")
    assert isinstance(await lab.refused(prompt_request(request_id="mine")), ConflictError)
    lab.report(ticket, output_tokens=6, outcome=CANCELLED)
    assert lab.settled_milli_mu > 0
    assert lab.received_equals_finished()


async def test_one_id_is_one_ticket_and_one_hold() -> None:
    """The same request again gets the same ticket; another one under its id, the relay's too, is refused."""
    lab = Lab()
    request = prompt_request(request_id="mine")
    ticket = await lab.issue(request)
    assert await lab.issue(request) == ticket
    assert lab.router.holds.open_holds == 1
    assert isinstance(await lab.refused(prompt_request("else", request_id="mine")), InvalidArgumentError)
    with pytest.raises(ConflictError) as caught:
        await relay(lab, request)
    assert caught.value.reason is Reason.REQUEST_IN_FLIGHT
    lab.report(ticket, outcome=CANCELLED)
    assert await relay(lab, request) == "Hello world"
    answered = await lab.refused(request)
    assert answered.reason is Reason.TICKETS_UNAVAILABLE, "the relay repeats the answer it keeps"
    assert lab.received_equals_finished()


async def test_no_ticket_without_a_replica_that_takes_it() -> None:
    """Not linked yet, silent for long, or gone: nothing stays held, and the reason says to use the relay."""
    lab = Lab()
    lab.desk.unlinked("r1")
    assert (await lab.refused()).reason is Reason.TICKETS_UNAVAILABLE
    lab.desk.linked("r1")
    lab.time.advance(6.0)
    assert (await lab.refused()).reason is Reason.TICKETS_UNAVAILABLE
    lab.report()
    await lab.issue()
    lab.desk.ledger.close()
    assert lab.settled_milli_mu == 0
    assert lab.in_flight_at_replica() == 0
    assert lab.received_equals_finished()


async def test_refusals_are_those_of_the_relay() -> None:
    """Quota, key, model: typed, counted once, remembered."""
    lab = Lab(rate=60, burst=1)
    assert isinstance(await lab.refused(), QuotaExceededError)
    assert isinstance(await lab.refused(key="fl-x"), UnauthenticatedError)
    error = await lab.refused(pb.GenerateRequest(model=MODEL, request_id="mine"))
    assert isinstance(error, InvalidArgumentError)
    assert error.metadata["request_id"] == "mine"
    assert lab.router.flow.books.decisions.find("mine", TENANT)
    assert not isinstance(error, FailedPreconditionError)
    assert {outcome for outcome, _ in lab.outcomes()} == {"refused"}
    assert lab.received_equals_finished()


async def test_a_client_that_leaves_while_batch_waits_holds_nothing() -> None:
    """Cancelled while it waits for quota: cancelled in the books."""
    lab = Lab(rate=60_000, burst=200)
    first = await lab.issue(prompt_request(sampling=pb.SamplingParameters(max_tokens=256, ignore_end_token=True)))
    lab.report(first, output_tokens=4000)
    waiting = asyncio.create_task(lab.issue(prompt_request(priority=pb.PRIORITY_BATCH)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    lab.report(first, outcome=CANCELLED)
    assert lab.outcomes() == {("cancelled", "CANCELLED"): 2}
    assert lab.received_equals_finished()
