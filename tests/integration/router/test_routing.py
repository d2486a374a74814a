"""Routing with real processes: poison that kills agents, deadlines nobody can make, an assignment that etcd lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from common import keys
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import FairleadError, Reason, from_rpc_error
from fairlead.inference.v1 import decision_pb2, decision_pb2_grpc
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.sharding.v1 import sharding_pb2
from tests.integration.router.processes import AUTH, MODEL, Platform, RouterProcess, platform
from tests.integration.router.traffic import generated, request, serving_agent
from tests.support.etcd import EtcdServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def world(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(etcd, tmp_path) as made:
        made.start_quota()
        yield made


async def refusal(router: RouterProcess, message: pb.GenerateRequest, timeout_s: float) -> FairleadError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await router.stub.Generate(message, metadata=AUTH, timeout=timeout_s)
    return from_rpc_error(caught.value)


async def decision(router: RouterProcess, request_id: str) -> decision_pb2.Decision:
    """What the router decided about a request, as its tenant is told."""
    stub = decision_pb2_grpc.DecisionServiceStub(router.channel)
    answer = await stub.GetDecision(decision_pb2.GetDecisionRequest(request_id=request_id), metadata=AUTH, timeout=10)
    return answer.decisions[0]


async def started_router(world: Platform) -> RouterProcess:
    router = world.start_router("router-1")
    await router.wait_ready()
    await eventually(lambda: generated(router), 15.0, "the first answer")
    return router


async def test_a_prompt_that_takes_two_agents_down_is_not_tried_on_a_third(world: Platform) -> None:
    """Both replicas that ran it are killed: it is refused from then on, and others are served by the one left."""
    for number in range(3):
        world.start_agent(f"agent-{number}")
    await world.wait_replicas(3)
    router = await started_router(world)
    poison = request("poison", tokens=4000, request_id="poison-1")
    call = asyncio.create_task(_all(router, poison))

    async def running_on(attempt: int) -> str | None:
        try:
            attempts = (await decision(router, "poison-1")).attempts
        except grpc.aio.AioRpcError:
            return None
        begun = len(attempts) >= attempt and attempts[attempt - 1].HasField("first_token_offset")
        return attempts[attempt - 1].replica_id if begun else None

    for attempt in (1, 2):
        await eventually(lambda attempt=attempt: running_on(attempt), 20.0, f"attempt {attempt}")  # type: ignore[misc]
        replica_id = await running_on(attempt)
        assert replica_id is not None
        (await serving_agent(world, replica_id)).kill()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert from_rpc_error(caught.value).reason is Reason.STREAM_BROKEN
    error = await refusal(router, request("poison", tokens=16), 10.0)
    assert error.reason is Reason.REQUEST_QUARANTINED
    assert 0 < float(error.metadata["left_s"]) <= 600
    assert await generated(router)
    assert await router.metric("fairlead_router_quarantined_total") == 1


async def test_a_deadline_that_no_replica_can_make_is_refused_at_once(world: Platform) -> None:
    """A long prompt on slow replicas, a second left: the refusal says what was expected, and explain knows it."""
    for number in range(2):
        world.start_agent(f"agent-{number}", "--capacity-milli-mu-per-minute", "5000")
    await world.wait_replicas(2)
    router = await started_router(world)
    hopeless = request("word " * 6_000, tokens=1, request_id="hopeless-1")

    async def refused() -> bool:
        return (await refusal(router, hopeless, 1.0)).reason is Reason.DEADLINE_TOO_SHORT

    await eventually(refused, 20.0, "quota for one long prompt")
    error = await refusal(router, hopeless, 1.0)
    assert float(error.metadata["expected_s"]) > 1.5 * float(error.metadata["left_s"])
    told = await decision(router, "hopeless-1")
    assert told.reason == "DEADLINE_TOO_SHORT"
    assert not told.attempts
    assert not told.settled_prefill_milli_mu
    assert await generated(router)
    assert await router.metric("fairlead_router_deadline_refusals_total") >= 2


async def test_a_router_learns_the_assignment_from_agents_when_etcd_has_none(world: Platform) -> None:
    """The store lost it, agents have it still: a router that starts new keeps every tenant on its replica."""
    for number in range(2):
        world.start_agent(f"agent-{number}")
    replicas = sorted(each.replica_id for each in await world.wait_replicas(2))
    made = sharding_pb2.Assignment(
        model_id=MODEL,
        generation=sharding_pb2.Generation(incarnation=1, number=7),
        replica_ids=replicas,
        slices=[sharding_pb2.Slice(replicas=[1])],
    )
    await world.store.put(keys.assignment(MODEL), made.SerializeToString())
    for record in await world.replicas():
        await eventually(lambda record=record: _holds(record.address, 7), 15.0, "an agent with it")  # type: ignore[misc]
    await world.store.delete(keys.assignment(MODEL))
    router = await started_router(world)
    assert await router.metric("fairlead_router_assignment_generation", model=MODEL) == 7
    answers = [await router.stub.Generate(request(f"prompt {n}"), metadata=AUTH, timeout=10) for n in range(8)]
    assert {answer.replica_id for answer in answers} == {replicas[1]}


async def _holds(address: str, number: int) -> bool:
    """Whether an agent reports that it holds an assignment."""
    async with grpc.aio.insecure_channel(address) as opened:
        stream = engine_pb2_grpc.EngineServiceStub(opened).WatchLoad(engine_pb2.WatchLoadRequest(), timeout=5)
        report = await stream.read()
        stream.cancel()
        return isinstance(report, engine_pb2.LoadReport) and report.assignment.number == number


async def _all(router: RouterProcess, message: pb.GenerateRequest) -> None:
    async for _ in router.stub.StreamGenerate(message, metadata=AUTH, timeout=100):
        pass
