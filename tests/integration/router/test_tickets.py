"""Tickets with real processes: a client streams from the replica itself, and the router's books come out right."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

import fairlead
from common import keys
from fairlead.admin.v1 import usage_pb2
from fairlead.errors import Reason, from_rpc_error
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.inference.v1 import ticket_pb2, ticket_pb2_grpc
from fairlead.sdk.aio_transport import AsyncMessageStream, GrpcAsyncTransport
from fairlead.sdk.transport import Outgoing, StreamResponse, UnaryResponse
from tests.integration.router.processes import AUTH, MODEL, Platform, RouterProcess, platform
from tests.integration.router.traffic import books, generated, request, rest, serving_agent
from tests.support.etcd import EtcdServer
from tests.support.router_lab import KEY
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(180)

LIFE_S = 2.0


@pytest.fixture
async def world(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(etcd, tmp_path) as made:
        made.start_quota()
        made.start_agent("agent-1", "--tickets", "true")
        made.start_agent("agent-2", "--tickets", "true")
        yield made


@pytest.fixture
async def router(world: Platform) -> RouterProcess:
    await world.wait_replicas(2)
    router = world.start_router("router-1", "--ticket-life-s", str(LIFE_S))
    await router.wait_ready()
    await eventually(lambda: generated(router), 15.0, "the first answer")
    await eventually(lambda: issued(router), 15.0, "the first ticket")
    await settled(router)
    return router


async def issue(router: RouterProcess, what: pb.GenerateRequest) -> pb.Ticket:
    return await router.stub.IssueTicket(what, metadata=AUTH, timeout=10)


async def issued(router: RouterProcess) -> bool:
    """Whether tickets are to be had."""
    return bool((await issue(router, request(tokens=1))).token)


class Replica:
    """A client's connection to a replica, without the SDK."""

    def __init__(self, ticket: pb.Ticket) -> None:
        self.channel = grpc.aio.insecure_channel(ticket.address)
        self.stub = ticket_pb2_grpc.TicketServiceStub(self.channel)
        self.ticket = ticket

    async def __aenter__(self) -> Replica:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close(None)

    async def refused(self, what: pb.GenerateRequest, token: bytes | None = None) -> Reason:
        """Why a ticket is not taken."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.streamed(what, token)
        return from_rpc_error(caught.value).reason

    async def streamed(self, what: pb.GenerateRequest, token: bytes | None = None) -> list[pb.StreamGenerateResponse]:
        """A whole stream."""
        redeem = ticket_pb2.RedeemRequest(token=self.ticket.token if token is None else token, request=what)
        return [message async for message in self.stub.StreamGenerate(redeem, timeout=30)]


async def settled(router: RouterProcess) -> None:
    """Waits until nothing is open and everything that was received has ended."""

    async def done() -> bool:
        received, finished = await books(router)
        open_ = await router.metric("fairlead_router_tickets_open")
        holds = await router.metric("fairlead_router_open_holds")
        return received == finished and open_ == 0 == holds

    await eventually(done, 60.0, "the books balance")


async def charged(router: RouterProcess) -> float:
    return await router.metric("fairlead_router_settled_milli_mu_total")


async def ended(router: RouterProcess, outcome: str, reason: str = "") -> float:
    return await router.metric("fairlead_router_requests_finished_total", outcome=outcome, reason=reason)


async def test_the_answer_comes_from_the_replica_and_is_charged_once(world: Platform, router: RouterProcess) -> None:
    """The SDK's stream is the relay's, text and cost; the router carries none of it and charges the same, once."""
    relayed = router.stub.StreamGenerate(request(tokens=40), metadata=AUTH, timeout=20)
    by_relay = [message async for message in relayed]
    before, completed = await charged(router), await ended(router, "completed")
    options = {"max_tokens": 40, "ignore_end_token": True, "temperature": 0.0}
    async with fairlead.AsyncClient(router.grpc_address, api_key=KEY, tickets=True) as client:
        stream = client.stream_generate("Tell me a story", model=MODEL, **options)  # type: ignore[arg-type]
        answer = await stream.read_all()
    assert answer.text == "".join(message.text for message in by_relay)
    assert answer.usage.output_tokens == 40
    assert answer.attempts == 1
    assert answer.cost.settled_milli_mu == by_relay[-1].cost.settled_milli_mu > 0
    await settled(router)
    assert await charged(router) - before == answer.cost.settled_milli_mu
    assert await ended(router, "completed") - completed == 1
    with fairlead.Client(router.grpc_address, api_key=KEY, tickets=True) as blocking:
        sync_answer = await asyncio.to_thread(
            lambda: blocking.stream_generate("Tell me a story", model=MODEL, **options).read_all()  # type: ignore[arg-type]
        )
        explained = await asyncio.to_thread(blocking.explain, sync_answer.request_id)
    assert sync_answer.text == answer.text
    assert sync_answer.replica_id in explained.text()
    await settled(router)
    assert await charged(router) - before == 2 * answer.cost.settled_milli_mu


async def test_a_ticket_is_good_for_one_use_at_one_replica_for_one_request(
    world: Platform, router: RouterProcess
) -> None:
    """Changed, for another request, at another replica, used twice, too late: each refused by name, nothing charged."""
    what = request(tokens=4)
    before, unused = await charged(router), await router.metric("fairlead_router_tickets_unused_total")
    ticket = await issue(router, what)
    elsewhere = next(each for each in await world.replicas() if each.replica_id != ticket.replica_id)
    async with Replica(ticket) as replica, Replica(pb.Ticket(address=elsewhere.ticket_address)) as other:
        flipped = bytearray(ticket.token)
        flipped[-1] ^= 1
        assert await replica.refused(what, bytes(flipped)) is Reason.TICKET_INVALID
        assert await replica.refused(what, ticket.token[:20]) is Reason.TICKET_INVALID
        assert await replica.refused(what, b"") is Reason.TICKET_ELSEWHERE
        assert await replica.refused(request(tokens=400)) is Reason.TICKET_MISMATCH
        assert await other.refused(what, ticket.token) is Reason.TICKET_ELSEWHERE
        messages = await replica.streamed(what)
        assert messages[-1].usage.output_tokens == 4
        assert await replica.refused(what) is Reason.TICKET_USED
        late = await issue(router, what)
        await settled(router)  # it expires, and what it held goes back
        async with Replica(late) as where:
            assert await where.refused(what) is Reason.TICKET_EXPIRED
    await settled(router)
    assert await charged(router) - before == messages[-1].cost.settled_milli_mu
    assert await router.metric("fairlead_router_tickets_unused_total") - unused == 1


async def test_a_client_that_vanishes_pays_for_what_it_got(world: Platform, router: RouterProcess) -> None:
    """A stream cut off in the middle: the replica stops, the router charges a part of it, once."""
    what = request(tokens=2000)
    before, cancelled = await charged(router), await ended(router, "cancelled", "CANCELLED")
    ticket = await issue(router, what)
    async with Replica(ticket) as replica:
        call = replica.stub.StreamGenerate(ticket_pb2.RedeemRequest(token=ticket.token, request=what), timeout=60)
        assert isinstance(await call.read(), pb.StreamGenerateResponse)
        open_ = await router.metric("fairlead_router_tickets_open")
        assert open_ == 1
        call.cancel()
    await settled(router)
    assert 0 < await charged(router) - before < ticket.estimated_milli_mu
    assert await ended(router, "cancelled", "CANCELLED") - cancelled == 1


async def test_a_killed_replica_costs_what_it_reported(world: Platform, router: RouterProcess) -> None:
    """SIGKILL of the agent in the middle: the client is told how much arrived, the hold ends, no more is charged."""
    before, failed = await charged(router), await ended(router, "failed", "STREAM_BROKEN")
    async with fairlead.AsyncClient(router.grpc_address, api_key=KEY, tickets=True) as client:
        stream = client.stream_generate("Tell me", model=MODEL, max_tokens=2000, ignore_end_token=True)
        pieces = [await anext(stream) for _ in range(5)]
        replica_id = (await client.explain(stream.request_id)).decisions[0].attempts[0].replica_id

        async def heard() -> bool:
            return await router.metric("fairlead_router_output_tokens_total") > 0

        await eventually(heard, 10.0, "the router hears of the stream")
        (await serving_agent(world, replica_id)).kill()
        with pytest.raises(fairlead.UnavailableError) as caught:
            async for piece in stream:
                pieces.append(piece)
    assert caught.value.reason is Reason.STREAM_BROKEN
    assert caught.value.metadata["output_tokens"] == str(sum(piece.output_tokens for piece in pieces))
    await settled(router)
    assert await charged(router) > before
    assert await ended(router, "failed", "STREAM_BROKEN") - failed == 1
    assert await generated(router)


async def test_the_relay_takes_over_where_the_replica_cannot_be_reached(world: Platform, router: RouterProcess) -> None:
    """A client outside the replicas' network gets its answer all the same, under the same id, and pays once."""
    before = await charged(router)
    unreachable = Unreachable()
    async with fairlead.AsyncClient(router.grpc_address, api_key=KEY, tickets=True, transport=unreachable) as client:
        answers = [
            await client.stream_generate("Tell me", model=MODEL, max_tokens=8, request_id=f"once-{turn}").read_all()
            for turn in range(2)
        ]
    assert [answer.attempts for answer in answers] == [2, 1]
    assert unreachable.methods == ["IssueTicket", "Redeem", "ReturnTicket", "StreamGenerate", "StreamGenerate"]
    await settled(router)
    assert await charged(router) - before == sum(answer.cost.settled_milli_mu for answer in answers)


async def test_a_repeated_issue_gets_the_same_ticket(world: Platform, router: RouterProcess) -> None:
    """A client that lost the answer asks again under the same id: one ticket, one hold; once redeemed, a conflict."""
    what = request(tokens=1500, request_id="again")
    first, second = await issue(router, what), await issue(router, what)
    assert first == second
    async with Replica(first) as replica:
        call = replica.stub.StreamGenerate(ticket_pb2.RedeemRequest(token=first.token, request=what), timeout=60)
        assert isinstance(await call.read(), pb.StreamGenerateResponse)

        async def conflicts() -> bool:
            try:
                await issue(router, what)
            except grpc.aio.AioRpcError as failure:
                return from_rpc_error(failure).reason is Reason.REQUEST_IN_FLIGHT
            return False

        await eventually(conflicts, 10.0, "the router has heard that the ticket was redeemed")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.stub.Generate(what, metadata=AUTH, timeout=10)
        assert from_rpc_error(caught.value).reason is Reason.REQUEST_IN_FLIGHT
        call.cancel()
    await settled(router)


async def test_an_agent_that_stood_still_settles_late_and_once(world: Platform, router: RouterProcess) -> None:
    """SIGSTOP of the agent while a ticket is redeemed: the stream goes on after it, and is charged as a whole."""
    what = request(tokens=200)
    before = await charged(router)
    ticket = await issue(router, what)
    victim = await serving_agent(world, ticket.replica_id)
    async with Replica(ticket) as replica:
        call = replica.stub.StreamGenerate(ticket_pb2.RedeemRequest(token=ticket.token, request=what), timeout=60)
        assert isinstance(await call.read(), pb.StreamGenerateResponse)
        victim.signal(signal.SIGSTOP)
        await asyncio.sleep(LIFE_S + 4.0)  # past the ticket's end, and until the connection is given up
        victim.signal(signal.SIGCONT)
        last = (await rest(call))[-1]
    assert last.usage.output_tokens == 200
    await settled(router)
    assert await charged(router) - before == last.cost.settled_milli_mu


async def test_a_router_that_ends_settles_first(world: Platform, router: RouterProcess) -> None:
    """SIGTERM of the router in the middle of a ticket's stream: it waits for the report, and the usage is complete."""
    what = request(tokens=600)
    ticket = await issue(router, what)
    async with Replica(ticket) as replica:
        call = replica.stub.StreamGenerate(ticket_pb2.RedeemRequest(token=ticket.token, request=what), timeout=60)
        assert isinstance(await call.read(), pb.StreamGenerateResponse)
        before = await charged(router)
        router.signal(signal.SIGTERM)
        messages = await rest(call)
    assert messages[-1].usage.output_tokens == 600
    assert await router.stopped() == 0
    tables = [usage_pb2.UsageTable.FromString(entry.value) for entry in (await world.store.list(keys.USAGE)).entries]
    stored = sum(row.prefill_milli_mu + row.decode_milli_mu for table in tables for row in table.rows)
    assert stored == before + messages[-1].cost.settled_milli_mu


async def test_a_router_that_dies_takes_its_holds_along(world: Platform, router: RouterProcess) -> None:
    """SIGKILL of the router: the stream goes on to its end without it; the next router starts with clean books."""
    what = request(tokens=600)
    ticket = await issue(router, what)
    async with Replica(ticket) as replica:
        call = replica.stub.StreamGenerate(ticket_pb2.RedeemRequest(token=ticket.token, request=what), timeout=60)
        assert isinstance(await call.read(), pb.StreamGenerateResponse)
        router.kill()
        messages = await rest(call)
        assert messages[-1].usage.output_tokens == 600
        again = world.start_router("router-1", "--ticket-life-s", str(LIFE_S))
        await again.wait_ready()
        await eventually(lambda: issued(again), 15.0, "the first ticket")
        assert await replica.refused(what) in (Reason.TICKET_USED, Reason.TICKET_EXPIRED)
    await settled(again)


class Unreachable(GrpcAsyncTransport):
    """A client's network that does not reach replicas."""

    def __init__(self) -> None:
        super().__init__(None)
        self.methods: list[str] = []

    async def unary(self, outgoing: Outgoing) -> UnaryResponse:
        self.methods.append(outgoing.method)
        return await super().unary(outgoing)

    def stream(self, outgoing: Outgoing) -> AsyncMessageStream:
        self.methods.append(outgoing.method)
        return NoRoute() if outgoing.method == "Redeem" else super().stream(outgoing)


class NoRoute:
    """A call to an address that nothing answers at."""

    async def read(self) -> StreamResponse | None:
        raise fairlead.UnavailableError("failed to connect to all addresses", reason=Reason.UNSPECIFIED)

    def cancel(self) -> None:
        """Nothing runs."""
