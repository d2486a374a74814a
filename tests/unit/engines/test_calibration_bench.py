"""A replica that is set aside: it always comes back, whatever the caller and the engine do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from common.clock import SystemClock
from common.memory_store import MemoryStore
from engines.agent.calibrate import Bench
from engines.agent.core.health import HealthLimits
from engines.agent.dispatcher import Dispatcher
from engines.agent.metrics import AgentMetrics
from engines.agent.notices import Notices
from engines.agent.record import ReplicaIdentity, ReplicaRecord, State
from engines.agent.supervisor import Supervisor, SupervisorLimits
from engines.engine import EngineDescription
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import DeadlineExceededError, InvalidArgumentError, Reason, UnavailableError
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.loads import load_to_proto
from model_units.units import MilliModelUnitsPerMinute
from tests.support.waiting import eventually
from tests.unit.engines.fake_engine import FakeEngine

CAPACITY = MilliModelUnitsPerMinute(100_000)
LOAD = engine_pb2.CalibrateRequest(load=load_to_proto(LoadSpec(((10, 5),), 2, 1.0, 2.0)))
RESULT = LoadResult(1.0, 1.5, 10, 50, 1.8, 100, 1_000.0, 600.0, 0.01, 0.02)


class Agent:
    """A READY replica on a fake engine whose loads come to RESULT, or to nothing while `stuck`."""

    def __init__(self) -> None:
        clock, changed, self.stuck = SystemClock(), Notices(), False
        engine = FakeEngine()
        self.dispatcher = Dispatcher(
            engine,
            model_id="m",
            queued_max=10,
            capacity=CAPACITY,
            clock=clock,
            changed=changed,
            engine_failed=lambda: None,
        )
        identity = ReplicaIdentity("m", "h100", "fake", "", "", CAPACITY)
        self.record = ReplicaRecord(MemoryStore(), identity, clock=clock, changed=changed)
        self.record.set_engine(EngineDescription("fake", "1", 8, 100_000, 4_096), 0)
        self.record.set_state(State.REPLICA_STATE_READY)
        self.dispatcher.open()
        self.supervisor = Supervisor(
            engine,
            self.dispatcher,
            self.record,
            limits=SupervisorLimits(HealthLimits()),
            clock=clock,
            metrics=AgentMetrics(CollectorRegistry()),
        )
        self.bench = Bench(
            supervisor=self.supervisor,
            dispatcher=self.dispatcher,
            record=self.record,
            measure=self.measure,
            changed=changed,
            silence_max_s=0.2,
        )

    async def measure(self, load: LoadSpec) -> LoadResult:
        if self.stuck:
            await asyncio.Event().wait()
        return RESULT

    async def requests(
        self, *messages: engine_pb2.CalibrateRequest, silent: bool = False
    ) -> AsyncIterator[engine_pb2.CalibrateRequest]:
        yield engine_pb2.CalibrateRequest(replica_id=self.record.replica_id)
        for message in messages:
            yield message
        if silent:
            await asyncio.Event().wait()

    async def converse(self, *messages: engine_pb2.CalibrateRequest, silent: bool = False) -> int:
        return len([answer async for answer in self.bench.serve(self.requests(*messages, silent=silent))])

    def lose(self) -> None:
        """The engine is being replaced."""
        self.record.set_state(State.REPLICA_STATE_UNHEALTHY)

    def drain(self) -> None:
        """The replica was told to drain."""
        self.supervisor.drain()

    @property
    def serves(self) -> bool:
        return self.record.state == State.REPLICA_STATE_READY and self.dispatcher.refusal is None


async def test_an_orderly_end_puts_it_back() -> None:
    """Proves that a caller who is done, or never asked for a load, leaves a replica that serves."""
    agent = Agent()
    assert await agent.converse(LOAD, LOAD) == 3
    assert agent.serves
    assert await agent.converse() == 1
    assert agent.serves


async def test_a_silent_caller_puts_it_back() -> None:
    """Proves that a leader that is frozen does not keep a replica from working."""
    agent = Agent()
    with pytest.raises(DeadlineExceededError, match="sent nothing"):
        await agent.converse(LOAD, silent=True)
    assert agent.serves


async def test_a_caller_that_goes_away_puts_it_back() -> None:
    """Proves that cancelling in the middle of a load ends the load and puts the replica back."""
    agent = Agent()
    agent.stuck = True
    talking = asyncio.create_task(agent.converse(LOAD))
    await eventually(lambda: agent.record.state == State.REPLICA_STATE_CALIBRATING)
    assert agent.dispatcher.refusal is not None
    assert agent.dispatcher.refusal.reason is Reason.NOT_READY
    talking.cancel()
    await asyncio.wait({talking})
    await eventually(lambda: agent.serves)


async def test_a_wrong_message_puts_it_back() -> None:
    """Proves that a load that cannot be put ends the calibration and not the replica."""
    agent = Agent()
    with pytest.raises(InvalidArgumentError):
        await agent.converse(engine_pb2.CalibrateRequest())
    assert agent.serves


async def test_a_lost_engine_and_a_drain_end_it_and_stay() -> None:
    """Proves that neither an unhealthy nor a draining replica is put back by the end of its calibration."""
    for end, state in ((Agent.lose, State.REPLICA_STATE_UNHEALTHY), (Agent.drain, State.REPLICA_STATE_DRAINING)):
        agent = Agent()
        agent.stuck = True
        talking = asyncio.create_task(agent.converse(LOAD))
        await eventually(lambda: agent.record.state == State.REPLICA_STATE_CALIBRATING)  # noqa: B023  # awaited here
        end(agent)
        with pytest.raises(UnavailableError):
            await talking
        assert agent.record.state == state
        assert agent.dispatcher.refusal is not None
