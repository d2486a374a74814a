"""Agents that answer what cannot be read, or for somebody else, or go away in the middle: only they are affected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from common.clock import NS_PER_S, FakeClock, SystemClock
from common.shard_map import Generation
from data_plane.router.assignment_exchange import HAND_OVER_AFTER_NS, AssignmentExchange
from data_plane.router.assignments import Assignments
from data_plane.router.core.fleet import Fleet, Link
from data_plane.router.exchange import Call
from data_plane.router.load import LoadWatch
from data_plane.router.router import Router
from data_plane.router.upstream_grpc import Channels
from data_plane.router.upstream_pulled import Pulled
from fairlead.engine.v1 import engine_pb2
from fairlead.sharding.v1 import sharding_pb2
from tests.support.router_lab import KEY, MODEL, PEPPER, RouterLab, prompt_request
from tests.support.waiting import eventually

NONSENSE = b"\xff\xff\xff\xff"
READY = engine_pb2.REPLICA_STATE_READY
ROUTER = "router-1"


def assignment(number: int) -> bytes:
    generation = sharding_pb2.Generation(incarnation=1, number=number)
    made = sharding_pb2.Assignment(
        model_id=MODEL, generation=generation, replica_ids=["r1"], slices=[sharding_pb2.Slice(replicas=[0])]
    )
    return made.SerializeToString()


class Agent:
    """An agent that sends what it is told to.

    Attributes:
        reports: What its load streams send, one each; the last one again and again.
        answer: What it answers to an exchange.
        asked: Exchanges so far.
        opened_s: When load streams were opened.
        gate: Answers wait for it.
        hangs_up: Load streams end once it is set.
        address: Where it listens.
    """

    def __init__(self) -> None:
        self.reports = [NONSENSE]
        self.answer = NONSENSE
        self.asked = 0
        self.opened_s: list[float] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.hangs_up = asyncio.Event()
        self.hangs_up.set()
        self.address = ""

    async def watch_load(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        """See engine.proto."""
        self.opened_s.append(asyncio.get_running_loop().time())
        yield self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
        await self.hangs_up.wait()

    async def exchange(self, request: bytes, context: object) -> bytes:
        """See sharding.proto."""
        self.asked += 1
        await self.gate.wait()
        return self.answer


@asynccontextmanager
async def listening(agent: Agent) -> AsyncIterator[None]:
    server = grpc.aio.server()
    watch = {"WatchLoad": grpc.unary_stream_rpc_method_handler(agent.watch_load)}
    exchange = {"ExchangeAssignments": grpc.unary_unary_rpc_method_handler(agent.exchange)}
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("fairlead.engine.v1.EngineService", watch),
            grpc.method_handlers_generic_handler("fairlead.sharding.v1.AssignmentService", exchange),
        )
    )
    agent.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


class World:
    """A router's ears: its load streams and its exchange, both running.

    Args:
        agent: Of replica r1.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent, self.clock, self.fleet, self.channels = agent, FakeClock(), Fleet(), Channels()
        self.book = Assignments(self.clock)
        record = engine_pb2.Replica(replica_id="r1", address=agent.address, model_id=MODEL, state=READY)
        self.fleet.enlist(record, SystemClock().monotonic_ns())
        self.exchange = AssignmentExchange(
            self.book,
            self.fleet,
            self.channels,
            routers=dict,
            models=lambda: [],
            clock=self.clock,
            token="token",
            router_id=ROUTER,
        )
        self.watch = LoadWatch(
            self.fleet, self.channels, SystemClock(), router_id=ROUTER, freed=lambda _: None, exchange=self.exchange
        )

    def noticed(self, replica_id: str, number: int) -> None:
        self.exchange.noticed(replica_id, MODEL, self.agent.address, Generation(1, number))


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    agent = Agent()
    async with listening(agent):
        yield agent


@asynccontextmanager
async def running(world: World, part: AssignmentExchange | LoadWatch) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(part.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await world.channels.close()


async def test_a_load_report_that_cannot_be_read_ends_only_that_stream(agent: Agent) -> None:
    """The stream is opened anew, and the replica is in use as soon as its report can be read."""
    agent.hangs_up.clear()
    agent.reports = [NONSENSE, engine_pb2.LoadReport(replica_id="r1", sequence=1, state=READY).SerializeToString()]
    world = World(agent)
    async with running(world, world.watch) as task:
        member = world.fleet.get("r1")
        assert member is not None
        await eventually(lambda: member.link is Link.UP or task.done())
        assert not task.done()
        assert len(agent.opened_s) >= 2


async def test_an_address_where_another_replica_answers_is_asked_less_and_less_often(agent: Agent) -> None:
    """Only a report of the replica itself makes the next attempt quick again."""
    agent.reports = [engine_pb2.LoadReport(replica_id="other", sequence=1).SerializeToString()]
    world = World(agent)
    async with running(world, world.watch):
        await eventually(lambda: len(agent.opened_s) >= 4)
    assert agent.opened_s[3] - agent.opened_s[0] >= (0.1 + 0.2 + 0.4) / 2


async def test_an_answer_that_cannot_be_read_ends_only_that_exchange(agent: Agent) -> None:
    """The next one, with an agent that makes sense, is run."""
    world = World(agent)
    async with running(world, world.exchange) as task:
        world.noticed("r1", 1)
        await eventually(lambda: agent.asked == 1 or task.done())
        agent.answer = sharding_pb2.ExchangeAssignmentsResponse(
            assignments=[sharding_pb2.Assignment.FromString(assignment(2))]
        ).SerializeToString()
        world.noticed("r2", 2)
        await eventually(lambda: world.book.generation(MODEL) == Generation(1, 2) or task.done())
        assert not task.done()


async def test_a_channel_that_closes_between_two_calls_is_opened_anew(agent: Agent) -> None:
    """A replica that is forgotten while it is handed an assignment gets it all the same."""
    agent.answer = sharding_pb2.ExchangeAssignmentsResponse(wanted_model_ids=[MODEL]).SerializeToString()
    agent.gate.clear()
    world = World(agent)
    world.book.take(sharding_pb2.Assignment.FromString(assignment(1)), "test")
    world.clock.advance(HAND_OVER_AFTER_NS / NS_PER_S)
    async with running(world, world.exchange) as task:
        world.noticed("r1", 0)
        await eventually(lambda: agent.asked == 1)
        world.channels.keep_only(set(), 300.0)
        agent.gate.set()
        await eventually(lambda: agent.asked == 2 or task.done())
        assert not task.done()


async def test_many_agents_with_one_new_assignment_are_not_all_asked_for_it(agent: Agent) -> None:
    """What the first have handed over, nobody else is asked for."""
    agent.answer = sharding_pb2.ExchangeAssignmentsResponse(
        assignments=[sharding_pb2.Assignment.FromString(assignment(1))]
    ).SerializeToString()
    world = World(agent)
    for number in range(512):
        world.noticed(f"r{number}", 1)
    async with running(world, world.exchange):
        await eventually(lambda: world.book.generation(MODEL) == Generation(1, 1) and not world.exchange._errands)
        assert agent.asked <= 8


async def test_a_router_that_was_restarted_is_another_dispatcher_to_agents() -> None:
    """Its numbers begin at 1 again under a name of their own, though people know it by the same one."""
    lab = RouterLab([], clock=FakeClock())
    names = []
    for incarnation_id in ("a", "b"):
        lab.router = Router(
            lab.config,
            tables=lab.tables,
            upstream=Pulled(lab.upstream),
            pepper=PEPPER,
            telemetry=lab.telemetry,
            clock=lab.clock,
            router_id=ROUTER,
            incarnation_id=incarnation_id,
        )
        lab.add_replica("r1")
        lab.lease(6_000_000, 3_000_000)
        exchange = lab.router.flow.open(Call(prompt_request(), f"Bearer {KEY}"))
        assert [event async for event in exchange.events()]
        sent = lab.upstream.calls[-1][1]
        assert sent.dispatch_number == 1
        assert sent.router_id == lab.router.dispatcher_id
        names.append(sent.router_id)
    assert len(set(names)) == 2
    assert all(ROUTER in name for name in names)
