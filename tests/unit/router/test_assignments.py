"""The book of assignments, how routers and agents exchange them, and what requests make of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from common.clock import FakeClock, SystemClock
from common.config import CommonConfig
from common.platform_token import platform_token
from common.rpc import GrpcServer, channel
from common.shard_map import Generation, shard_key, tenant_keys
from common.telemetry import Telemetry
from data_plane.router.assignment_exchange import HAND_OVER_AFTER_NS, PAUSE_NS, AssignmentExchange
from data_plane.router.assignment_service import ASSIGNMENT_SERVICE_NAME, AssignmentService
from data_plane.router.assignments import MODELS_MAX, Assignments
from data_plane.router.core.fleet import Fleet
from data_plane.router.upstream_grpc import Channels
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc
from tests.support.router_lab import MODEL, PEPPER, TENANT, RouterLab
from tests.support.waiting import eventually

TOKEN = platform_token(PEPPER)


def assignment(
    number: int, *subsets: Sequence[int], model: str = MODEL, incarnation: int = 1
) -> sharding_pb2.Assignment:
    """Slices of equal width with these subsets out of r1, r2, r3."""
    subsets = subsets or ((0, 1, 2),)
    made = sharding_pb2.Assignment(
        model_id=model,
        generation=sharding_pb2.Generation(incarnation=incarnation, number=number),
        replica_ids=["r1", "r2", "r3"],
        slices=[
            sharding_pb2.Slice(first_key=place * 2**64 // len(subsets), replicas=subset)
            for place, subset in enumerate(subsets)
        ],
    )
    made.compute_time.FromSeconds(1_000)
    return made


def test_the_newest_generation_wins_whatever_its_source() -> None:
    """Older and equal ones change nothing, another incarnation outranks any number, a deletion is ignored."""
    book = Assignments(FakeClock())
    told: list[str] = []
    book.on_change(told.append)
    assert book.take(assignment(5), "agent")
    book.stored(MODEL, assignment(4, (0,)))
    book.stored(MODEL, None)
    assert not book.take(assignment(5, (1,)), "router")
    assert book.generation(MODEL) == Generation(1, 5)
    assert book.take(assignment(1, (2,), incarnation=2), "router")
    held = book.get(MODEL)
    assert held is not None
    assert held.subset(7) == ("r3",)
    assert told == [MODEL, MODEL]
    assert (book.generation("other"), book.get("other")) == (Generation(), None)


def test_a_damaged_assignment_leaves_the_last_good_one_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Gaps, empty slices and unknown places are refused; the same damage is logged one time."""
    book = Assignments(FakeClock())
    book.take(assignment(1), "store")
    for _ in range(3):
        assert not book.take(assignment(2, ()), "store")
    assert not book.take(assignment(3, (7,)), "agent")
    assert book.generation(MODEL) == Generation(1, 1)
    assert [record.message for record in caplog.records].count("assignment refused") == 2
    assert book.take(assignment(4), "store")


def test_nameless_and_far_too_many_models_are_not_taken() -> None:
    """Whoever hands over nonsense cannot fill the memory or end all succession; another model's key is ignored."""
    book = Assignments(FakeClock())
    assert not book.take(assignment(2**63), "agent")
    assert not book.take(assignment(1, incarnation=2**64 - 1), "agent")
    assert not book.take(assignment(1, model=""), "agent")
    book.stored("other", assignment(1))
    assert book.get("other") is None is book.get(MODEL)
    for number in range(MODELS_MAX):
        assert book.take(assignment(1, model=f"m{number}"), "agent")
    assert not book.take(assignment(1, model="one-more"), "agent")
    assert book.take(assignment(2, model="m0"), "agent")


async def test_the_book_outlives_the_process(tmp_path: Path) -> None:
    """What was taken is there after a restart, and a damaged file is ignored with the book left empty."""
    path = tmp_path / "held.snapshot"
    book = Assignments(FakeClock(), snapshot_path=path)
    running = asyncio.create_task(book.run())
    book.take(assignment(3, (1,)), "agent")
    await eventually(path.exists)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    again = Assignments(FakeClock(), snapshot_path=path)
    assert again.generation(MODEL) == Generation(1, 3)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert Assignments(FakeClock(), snapshot_path=path).get(MODEL) is None
    path.write_bytes(b"")
    assert Assignments(FakeClock(), snapshot_path=path).get(MODEL) is None


def test_two_holders_that_meet_end_up_with_the_newer_one_of_each() -> None:
    """What the caller lacks is handed over, what it has newer is wanted, and then nothing is left to exchange."""
    one, other = Assignments(FakeClock()), Assignments(FakeClock())
    one.take(assignment(5, model="a"), "")
    one.take(assignment(1, model="b"), "")
    other.take(assignment(4, model="a"), "")
    other.take(assignment(2, model="b"), "")
    other.take(assignment(1, model="c"), "")
    answer = other.exchange(sharding_pb2.ExchangeAssignmentsRequest(held=one.held()))
    assert [each.model_id for each in answer.assignments] == ["b", "c"]
    assert answer.wanted_model_ids == ["a"]
    for each in answer.assignments:
        one.take(each, "")
    handed = one.message("a")
    assert handed is not None
    answer = other.exchange(sharding_pb2.ExchangeAssignmentsRequest(held=one.held(), assignments=[handed]))
    assert not answer.assignments
    assert not answer.wanted_model_ids
    assert one.held() == other.held()


def test_subsets_follow_the_key_and_a_tenants_union_follows_its_slices() -> None:
    """A request's subset is its slice's, batch looks at all of the tenant's, and both stay one object."""
    lab = RouterLab(["r1", "r2", "r3"])
    assert lab.tables.subset(MODEL, 1) == () == lab.tables.subset_of(MODEL, TENANT)
    first, end = tenant_keys(TENANT)
    middle = (first + end) // 2
    made = assignment(1)
    made.slices.clear()
    for key, replica in ((0, 2), (first, 0), (middle, 1), (end, 2)):
        made.slices.add(first_key=key, replicas=[replica])
    lab.assignments.take(made, "test")
    assert [lab.tables.subset(MODEL, key) for key in (0, first, middle, end)] == [("r3",), ("r1",), ("r2",), ("r3",)]
    assert lab.tables.subset_of(MODEL, TENANT) == ("r1", "r2")
    assert lab.tables.subset_of(MODEL, TENANT) is lab.tables.subset_of(MODEL, TENANT)
    assert lab.tables.subset(MODEL, shard_key("nobody-knows-me", "")) == ("r3",)
    lab.assignments.take(assignment(2, (1,)), "test")
    assert lab.tables.subset_of(MODEL, TENANT) == ("r2",)


class Holder(sharding_pb2_grpc.AssignmentServiceServicer):
    """An agent or router with a book of its own."""

    def __init__(self) -> None:
        self.book = Assignments(FakeClock())
        self.calls = 0

    async def ExchangeAssignments(
        self, request: sharding_pb2.ExchangeAssignmentsRequest, context: object
    ) -> sharding_pb2.ExchangeAssignmentsResponse:
        """See sharding.proto."""
        self.calls += 1
        return self.book.exchange(request)


@asynccontextmanager
async def served(servicer: sharding_pb2_grpc.AssignmentServiceServicer) -> AsyncIterator[str]:
    config = CommonConfig(grpc_port=0, bind_host="127.0.0.1")
    server = GrpcServer(config, Telemetry("router", config))
    server.add(sharding_pb2_grpc.add_AssignmentServiceServicer_to_server, servicer, ASSIGNMENT_SERVICE_NAME)
    address = await server.start()
    try:
        yield address
    finally:
        await server.drain_and_stop(0.0)


class World:
    """A router's exchange with one agent.

    Args:
        address: Of the agent.
    """

    def __init__(self, address: str, *, router: str = "") -> None:
        self.clock = FakeClock()
        self.book = Assignments(self.clock)
        self.fleet = Fleet()
        self.address = address
        if address:
            self.fleet.enlist(engine_pb2.Replica(replica_id="r1", model_id=MODEL, address=address), 0)
        self.channels = Channels()
        routers = {"me": admin_pb2.ServiceInstance(instance_id="me", address="nowhere:1")}
        if router:
            routers["other"] = admin_pb2.ServiceInstance(instance_id="other", address=router)
        self.exchange = AssignmentExchange(
            self.book,
            self.fleet,
            self.channels,
            routers=lambda: routers,
            models=lambda: [MODEL],
            clock=self.clock,
            token=TOKEN,
            router_id="me",
        )

    def noticed(self, number: int) -> None:
        self.exchange.noticed("r1", MODEL, self.address, Generation(1, number) if number else Generation())


@pytest.fixture
async def holder() -> Holder:
    return Holder()


async def test_a_newer_one_is_fetched_and_an_older_one_replaced_after_a_while(holder: Holder) -> None:
    """The agent with news is asked at once, one that lags is handed ours only later, and neither too often."""
    async with served(holder) as address:
        world = World(address)
        running = asyncio.create_task(world.exchange.run())
        try:
            world.book.take(assignment(3), "store")
            holder.book.take(assignment(4, (1,)), "")
            world.noticed(4)
            await eventually(lambda: world.book.generation(MODEL) == Generation(1, 4))
            assert holder.calls == 1
            world.book.take(assignment(5), "store")
            world.noticed(4)
            world.clock.advance(PAUSE_NS / 1e9)
            world.noticed(4)
            world.clock.advance(HAND_OVER_AFTER_NS / 1e9)
            world.noticed(4)
            await eventually(lambda: holder.book.generation(MODEL) == Generation(1, 5))
            world.noticed(4)
            world.noticed(5)
            world.clock.advance(PAUSE_NS / 1e9)
            holder.book.take(assignment(6), "")
            world.noticed(6)
            await eventually(lambda: world.book.generation(MODEL) == Generation(1, 6))
            assert holder.calls == 1 + 2 + 1  # a fetch, a hand-over in two calls, a fetch
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await world.channels.close()


async def test_a_router_that_has_none_asks_agents_and_routers_before_it_serves(holder: Holder) -> None:
    """With an agent, or with another router and its token; nobody to ask means nothing to wait for."""
    holder.book.take(assignment(4, (1,)), "")
    assert World("").exchange.asked
    async with served(holder) as address:
        world = World(address)
        assert not world.exchange.asked
        await world.exchange.ask()
        assert world.exchange.asked
        assert world.book.generation(MODEL) == Generation(1, 4)
        await world.channels.close()
    async with served(AssignmentService(holder.book, TOKEN)) as address:
        world = World("", router=address)
        assert not world.exchange.asked
        await world.exchange.ask()
        assert world.book.generation(MODEL) == Generation(1, 4)


async def test_silence_and_strangers_do_no_harm() -> None:
    """An agent that does not answer is passed over, and one that hands over another model's is not believed."""
    world = World("127.0.0.1:1")
    await world.exchange.ask()
    assert world.book.get(MODEL) is None
    await world.channels.close()

    class Liar(Holder):
        async def ExchangeAssignments(
            self, request: sharding_pb2.ExchangeAssignmentsRequest, context: object
        ) -> sharding_pb2.ExchangeAssignmentsResponse:
            return sharding_pb2.ExchangeAssignmentsResponse(
                assignments=[assignment(9, model="other"), assignment(9, ())], wanted_model_ids=["other", "unknown"]
            )

    async with served(Liar()) as address:
        world = World(address)
        await world.exchange.ask()
        assert not world.book.held()
        await world.channels.close()


async def test_only_the_platform_exchanges_with_a_router(holder: Holder) -> None:
    """Without the token, or with a tenant's key, nothing is told and nothing taken."""
    async with served(AssignmentService(holder.book, TOKEN)) as address, channel(address) as opened:
        stub = sharding_pb2_grpc.AssignmentServiceStub(opened)
        request = sharding_pb2.ExchangeAssignmentsRequest(assignments=[assignment(1)])
        for metadata in ((), (("authorization", "Bearer fl-key"),), (("authorization", "Platform wrong"),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ExchangeAssignments(request, metadata=metadata, timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert not holder.book.held()
        await stub.ExchangeAssignments(request, metadata=(("authorization", f"Platform {TOKEN}"),), timeout=5)
        assert holder.book.generation(MODEL) == Generation(1, 1)


def test_ages_are_for_people() -> None:
    """The age of an assignment counts from when it was computed, and how long it is held from when it came."""
    clock = FakeClock()
    book = Assignments(clock)
    book.take(assignment(1), "store")
    clock.advance(7.0)
    assert book.held_for_ns(MODEL) == 7_000_000_000
    assert book.held_for_ns("other") == 0
    assert book.ages_s()[MODEL] == pytest.approx(clock.wall_ns() / 1e9 - 1_000)
    assert Assignments(SystemClock()).ages_s() == {}
