"""The agent's side of tickets in one process: redeemed, streamed, reported, whatever the client and the engine do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc.aio
import pytest
from opentelemetry.context import Context

from common.clock import FakeClock, SystemClock
from common.generation import Finish, TokenBatch
from common.tickets import TicketKey, replica_key, request_digest
from engines.agent.core.tickets import End, TicketState
from engines.agent.issuers import GONE_AFTER_S, ISSUERS_MAX, Issuer, Issuers
from engines.agent.requests import Produced
from engines.agent.ticket_reports import TicketReportServicer
from engines.agent.ticket_service import TicketServicer
from fairlead.engine.v1 import engine_pb2, ticket_pb2
from fairlead.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    FairleadError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.inference.v1 import ticket_pb2 as public_pb2
from model_units.cost import cost_in_range
from model_units.prefix import prefix_blocks, prompt_chunks
from model_units.profiles import built_in_profiles
from tests.support.waiting import eventually

SECRET = b"s" * 32
KEY = replica_key(SECRET, "r1")
REQUEST = pb.GenerateRequest(model="m", prompt="x" * 3000, request_id="mine")
S = 10**9


class Engine:
    """Stands for Requests: a word per token, until told otherwise."""

    def __init__(self) -> None:
        self.seen: list[engine_pb2.EngineGenerateRequest] = []
        self.tokens = 3
        self.failure: FairleadError | None = None
        self.hangs_after: int | None = None
        self.closed = 0

    async def serve(self, request: engine_pb2.EngineGenerateRequest, parent: Context) -> AsyncGenerator[Produced, None]:
        self.seen.append(request)
        try:
            for count in range(1, self.tokens + 1):
                if self.hangs_after == count - 1:
                    await asyncio.Event().wait()
                if self.failure is not None and count == self.tokens:
                    raise self.failure
                finish = Finish.STOP if count == self.tokens else None
                batch = TokenBatch("w", 1, finish, *((750, 100) if finish else (0, 0)))
                yield Produced(batch, count == 1, count)
        finally:
            self.closed += 1


class Bench:
    """A replica's ticket service, and the router whose tickets it takes."""

    def __init__(self, *, left_s: float = 60.0) -> None:
        self.clock = SystemClock()
        self.issuers, self.engine = Issuers(self.clock), Engine()
        self.issuer = follow(self.issuers)
        self.issuer.hear(ticket_pb2.FollowTicketsRequest(now_ns=5 * S))
        self.servicer = TicketServicer("r1", self.issuers, self.engine)  # type: ignore[arg-type]  # the same shape
        self.left_s = left_s
        self.profile = built_in_profiles().default_for("h100")
        self._number = 0

    def redeem(self, **claims: object) -> AsyncIterator[pb.StreamGenerateResponse]:
        self._number += 1
        fields: dict[str, Any] = {
            "number": self._number,
            "request_digest": request_digest(REQUEST),
            "request_id": "mine",
            "expires_ns": 15 * S,
            "deadline_ns": 5 * S + int(self.left_s * S),
            "max_tokens": 64,
            **claims,
        }
        token = TicketKey(KEY).seal(ticket_pb2.TicketClaims(**fields).SerializeToString())
        request = public_pb2.RedeemRequest(token=token, request=REQUEST)
        return self.servicer.StreamGenerate(request, Call())

    def reported(self) -> TicketState:
        """The newest ticket, as the router will hear of it."""
        _, states = self.issuer.register.message(whole=True)
        state = states[-1]
        assert (state.first_token_ns > 0) is (state.output_tokens > 0)
        assert self.issuer.now_ns >= state.ended_ns >= state.first_token_ns >= 0
        state.first_token_ns = state.ended_ns = 0
        return state


class Call:
    def invocation_metadata(self) -> tuple[()]:
        return ()


def follow(issuers: Issuers, key: bytes = KEY) -> Issuer:
    issuer = issuers.follow(ticket_pb2.FollowTicketsRequest(replica_id="r1", router_id="router", key=key))
    issuer.begin()
    return issuer


async def test_a_redeemed_request_runs_as_the_router_would_have_sent_it() -> None:
    """Claims and request make the engine's request; the stream looks like the relay's, its cost is the router's."""
    bench = Bench()
    price = ticket_pb2.TicketPrice(
        estimated_milli_mu=9,
        quota_left_milli_mu=8,
        input_tokens=700,
        **{name: getattr(bench.profile, name) for name in "abdg"},
    )
    messages = [
        message
        async for message in bench.redeem(
            tenant_id="acme", weight=5, dispatch_number=7, shard_key=11, with_prefix_blocks=True, price=price
        )
    ]
    assert "".join(message.text for message in messages) == "www"
    assert [message.replica_id for message in messages] == ["r1", "", "r1"]
    assert [message.request_id for message in messages] == ["mine", "", "mine"]
    (seen,) = bench.engine.seen
    assert (seen.tenant_id, seen.weight, seen.dispatch_number, seen.shard_key) == ("acme", 5, 7, 11)
    assert (seen.router_id, seen.request.sampling.max_tokens) == ("router", 64)
    assert tuple(seen.prefix_blocks) == prefix_blocks(prompt_chunks(REQUEST)) != ()
    last = messages[-1]
    cost = cost_in_range(bench.profile, 750, 3, 100)
    assert (last.cost.settled_milli_mu, last.cost.estimated_milli_mu) == (cost.total_milli_mu, 9)
    assert (last.cost.prefill_milli_mu, last.cost.decode_milli_mu) == cost[:2]
    assert bench.reported() == TicketState(1, 3, End.COMPLETED, pb.FINISH_REASON_STOP, (750, 100, 3))


@pytest.mark.parametrize(
    ("tokens", "failure", "told", "reported"),
    [
        (1, UnavailableError("x", reason=Reason.ENGINE_FAILED), Reason.ENGINE_FAILED, "ENGINE_FAILED"),
        (3, UnavailableError("x", reason=Reason.ENGINE_FAILED), Reason.STREAM_BROKEN, "ENGINE_FAILED"),
        (1, InvalidArgumentError("x"), Reason.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    ],
)
async def test_a_failed_stream_says_how_much_arrived(
    tokens: int, failure: FairleadError, told: Reason, reported: str
) -> None:
    """The client is told as the relay tells it, the router what the engine said."""
    bench = Bench()
    bench.engine.tokens, bench.engine.failure = tokens, failure
    with pytest.raises(FairleadError) as caught:
        [message async for message in bench.redeem()]
    assert caught.value.reason is told
    assert caught.value.metadata.get("output_tokens", "0") == str(tokens - 1)
    assert bench.reported() == TicketState(1, tokens - 1, End.FAILED, reason=reported)


async def test_a_client_that_leaves_stops_the_engine() -> None:
    """What it was handed is reported, and the engine's work ends."""
    bench = Bench()
    stream = bench.redeem()
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]  # it is an async generator
    assert bench.engine.closed == 1
    assert bench.reported() == TicketState(1, 1, End.CANCELLED)


async def test_the_requests_deadline_holds_without_the_clients() -> None:
    """An engine that hangs is cut off, and so is a client that stops reading."""
    bench = Bench(left_s=0.2)
    bench.engine.hangs_after = 1
    with pytest.raises(DeadlineExceededError):
        [message async for message in bench.redeem()]
    assert bench.reported() == TicketState(1, 1, End.FAILED, reason="DEADLINE_EXCEEDED")

    async def reads_one() -> None:
        async for _ in bench.redeem():
            await asyncio.Event().wait()  # as in a write that the client does not take

    stuck = asyncio.create_task(reads_one())
    await asyncio.wait([stuck])
    assert stuck.cancelled()
    await eventually(lambda: bench.engine.closed == 2)


async def test_only_good_tickets_run() -> None:
    """Expired by the router's clock, or garbage signed by the router itself: nothing reaches the engine."""
    bench = Bench()
    for claims, reason in (
        ({"expires_ns": 5 * S}, Reason.TICKET_EXPIRED),
        ({"request_digest": b"another"}, Reason.TICKET_MISMATCH),
    ):
        with pytest.raises(FairleadError) as caught:
            [message async for message in bench.redeem(**claims)]
        assert caught.value.reason is reason
    garbage = public_pb2.RedeemRequest(token=TicketKey(KEY).seal(b"\xff\xff\xff"), request=REQUEST)
    with pytest.raises(FairleadError) as caught:
        bench.issuers.redeem(garbage)
    assert caught.value.reason is Reason.TICKET_INVALID
    assert not bench.engine.seen
    assert bench.issuers.unacknowledged == 0


def test_a_router_that_is_gone_is_forgotten_after_a_while() -> None:
    """Its tickets are good, and what it must hear is kept, for a minute after its stream ended; then both end."""
    clock = FakeClock()
    issuers = Issuers(clock)
    issuer = follow(issuers)
    number = issuer.streams
    issuer.register.use(1, 10**18, 0)
    token = TicketKey(KEY).seal(ticket_pb2.TicketClaims(number=2, expires_ns=10**18).SerializeToString())
    redeem = public_pb2.RedeemRequest(token=token)
    issuer.leave(number - 1)
    assert issuer.left_ns is None, "an older stream's end says nothing"
    issuer.leave(number)
    clock.advance(GONE_AFTER_S)
    follow(issuers, replica_key(SECRET, "another router"))
    with pytest.raises(FairleadError) as caught:
        issuers.redeem(redeem)
    assert caught.value.reason is Reason.TICKET_MISMATCH, "its key is known still"
    assert issuers.unacknowledged == 1
    clock.advance(0.1)
    follow(issuers, replica_key(SECRET, "yet another"))
    with pytest.raises(FailedPreconditionError) as gone:
        issuers.redeem(redeem)
    assert gone.value.reason is Reason.TICKET_ELSEWHERE
    assert issuers.unacknowledged == 0


def test_routers_are_bounded_and_keys_have_a_length() -> None:
    """One more than the limit is refused, a known one is not; so are keys that are too short or too long."""
    issuers = Issuers(FakeClock())
    keys = [replica_key(SECRET, str(number)) for number in range(ISSUERS_MAX)]
    for key in keys:
        follow(issuers, key)
    with pytest.raises(UnavailableError):
        follow(issuers)
    assert follow(issuers, keys[0]).streams == 2
    for bad in (b"", b"k" * 31, b"k" * 33):
        with pytest.raises(InvalidArgumentError):
            follow(issuers, bad)


class Record:
    replica_id = "r1"


async def said(*requests: ticket_pb2.FollowTicketsRequest) -> AsyncIterator[ticket_pb2.FollowTicketsRequest]:
    for request in requests:
        yield request
    await asyncio.Event().wait()


async def test_a_stream_of_reports_begins_whole_and_the_newest_wins() -> None:
    """A second stream of the same router ends the first and is told everything again, until it acknowledges."""
    issuers = Issuers(SystemClock())
    servicer = TicketReportServicer(Record(), issuers)  # type: ignore[arg-type]  # all that it reads of it
    hello = ticket_pb2.FollowTicketsRequest(replica_id="r1", router_id="router", key=KEY, now_ns=S)
    context: grpc.aio.ServicerContext[Any, Any] = None  # type: ignore[assignment]  # not looked at
    first = servicer.FollowTickets(said(hello), context)
    assert (await anext(first)).number == 1
    issuer = next(iter(issuers._by_name.values()))
    issuer.register.use(1, 10**18, issuer.now_ns)
    issuer.register.ended(1, End.CANCELLED, issuer.now_ns)
    issuer.news.set()
    told = await anext(first)
    assert [(each.number, each.outcome) for each in told.reports] == [(1, ticket_pb2.TICKET_OUTCOME_CANCELLED)]
    assert told.as_of_ns >= S

    second = servicer.FollowTickets(said(hello), context)
    again = await anext(second)
    assert (again.number, list(again.reports)) == (1, list(told.reports))
    with pytest.raises(StopAsyncIteration):
        await anext(first)
    assert issuer.left_ns is None
    servicer.close()
    issuer.register.acknowledge(again.number)
    issuer.news.set()
    with pytest.raises(StopAsyncIteration):
        await anext(second)
    assert issuer.left_ns is not None


async def test_another_replicas_router_is_refused() -> None:
    """A router that dialled an address which another replica has now learns so."""
    servicer = TicketReportServicer(Record(), Issuers(SystemClock()))  # type: ignore[arg-type]  # as above
    hello = ticket_pb2.FollowTicketsRequest(replica_id="r0", router_id="router", key=KEY)
    with pytest.raises(NotFoundError) as caught:
        await anext(servicer.FollowTickets(said(hello), None))
    assert caught.value.reason is Reason.UNKNOWN_REPLICA
