"""Crashes, takeovers and rolling restarts as requests see them."""

from __future__ import annotations

import signal
import time

import pytest

from common import keys
from common.shard_map import ShardMap, shard_key
from tests.integration.router.processes import AUTH, Process
from tests.integration.router.traffic import request
from tests.integration.sharding.conftest import REPLICAS, Serving
from tests.integration.sharding.fleet import READY_S, Fleet, Traffic, decision, strays
from tests.support.router_lab import TENANT
from tests.support.waiting import Stillness, eventually

pytestmark = [pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

ROUTER_S = 3.0
ASSIGNMENT_S = 10.0
TAKEOVER_S = 10.0
MISROUTED_SHARE = 0.01
QUIET_S, QUIET_TRIES = 1.0, 3
"""Where the machine stands still for longer, connections are given up and leases end: no quiet time."""


async def replica_processes(serving: Serving) -> dict[str, Process]:
    """Agents by replica id."""
    records = await serving.fleet.replicas()
    return {record.replica_id: serving.fleet.process_of(record.agent_pid) for record in records}


async def test_a_crashed_replica_gets_no_requests_and_leaves_the_assignment(serving: Serving) -> None:
    """After SIGKILL of a replica no request is lost, none is sent to it 3 s later, and it is out of the assignment
    within 10 s."""
    async with Traffic([serving.router]) as traffic:
        await traffic.flows()
        victim, process = next(iter((await replica_processes(serving)).items()))
        process.kill()
        killed_s = time.monotonic()
        await serving.fleet.wait_assigned(REPLICAS - 1, [victim], ASSIGNMENT_S)
        assigned_s = time.monotonic() - killed_s
        await traffic.flows(60)
    assert not traffic.errors, traffic.errors[:3]
    assert assigned_s <= ASSIGNMENT_S
    late = [each for each in traffic.sent if each.sent_s > killed_s + ROUTER_S and each.tenant_id == TENANT]
    assert late, "traffic ended too early to say anything"
    for each in late[:40]:
        tried = [attempt.replica_id for attempt in (await decision(serving.router, each.request_id)).attempts]
        assert victim not in tried, f"{each.sent_s - killed_s:.1f} s after its end"


async def test_a_standby_takes_the_sharder_over(serving: Serving) -> None:
    """After SIGKILL of the leading control plane its standby leads within 10 s and goes on from the stored assignment:
    a replica that died with it leaves, and nothing else changes."""
    fleet = serving.fleet
    before = await fleet.wait_assigned(REPLICAS)
    standby = serving.another_control()
    await eventually(lambda: fleet.store.get(keys.service("control-plane", standby.name)), READY_S, "the standby")
    victim, process = next(iter((await replica_processes(serving)).items()))
    serving.control.kill()
    killed_s = time.monotonic()

    async def led() -> bool:
        return await fleet.sharder() == standby.name

    await eventually(led, TAKEOVER_S, "the standby leads")
    print(f"takeover of the sharder: {time.monotonic() - killed_s:.1f} s from SIGKILL")
    process.kill()
    after = await fleet.wait_assigned(REPLICAS - 1, [victim], ASSIGNMENT_S)
    assert after.generation > before.generation
    for number in range(64):
        key = shard_key(TENANT, f"session-{number}")
        kept = [each for each in before.subset(key) if each != victim]
        assert set(kept) <= set(after.subset(key)), "more than the dead replica left"


async def test_a_rolling_restart_loses_no_request(serving: Serving) -> None:
    """Every replica is ended by SIGTERM and replaced, one after the other, under traffic through two routers: no
    request fails, and less than 1 % reach a replica outside of their subset."""
    fleet, other = serving.fleet, await serving.another_router()
    victims = await replica_processes(serving)
    misrouted = -await fleet.misrouted()
    async with Traffic([serving.router, other], per_s=30.0) as traffic:
        await traffic.flows()
        for number, (victim, process) in enumerate(victims.items()):
            fleet.start_agent(f"agent-new-{number}")
            await fleet.wait_replicas(REPLICAS + 1)
            misrouted += await fleet.misrouted()
            process.signal(signal.SIGTERM)
            await eventually(lambda victim=victim: gone(fleet, victim), READY_S, f"{victim} is not assigned")  # type: ignore[misc]
            await process.stopped()
            misrouted -= await fleet.misrouted()
        misrouted += await fleet.misrouted()
        await traffic.flows(30)
    assert not traffic.errors, f"{len(traffic.errors)} of {len(traffic.sent)}: {traffic.errors[:3]}"
    print(f"rolling restart: {misrouted:g} of {len(traffic.sent)} requests were not where the replica expected them")
    assert misrouted <= MISROUTED_SHARE * len(traffic.sent)


async def gone(fleet: Fleet, victim: str) -> bool:
    """Whether the assignment does not name a replica."""
    stored = await fleet.stored()
    return stored is not None and victim not in stored.replica_ids


async def test_requests_stay_in_their_subset_and_explain_says_so(serving: Serving) -> None:
    """In quiet times no request leaves the subset of its key at either router, both routers read the same assignment,
    and a decision names candidates of that subset with the winner among them."""
    other = await serving.another_router()
    for _ in range(QUIET_TRIES):
        async with Stillness() as stillness, Traffic([serving.router, other]) as traffic:
            await traffic.flows(150)
        if stillness.longest_s <= QUIET_S:
            break
        await serving.fleet.wait_assigned(REPLICAS)
    assert not traffic.errors, f"{traffic.errors[:3]}; this process stood still for {stillness.longest_s:.1f} s"
    stored = await serving.fleet.stored()
    assert stored is not None
    assert not strays(traffic.sent, stored)
    answer = await serving.router.stub.Generate(request(tokens=4, session_id="alone"), metadata=AUTH, timeout=10)
    subset = ShardMap(stored).subset(shard_key(TENANT, "alone"))
    (attempt,) = (await decision(serving.router, answer.request_id)).attempts
    assert {each.replica_id for each in attempt.candidates} == set(subset)
    assert attempt.candidates[0].replica_id == attempt.replica_id == answer.replica_id
    assert attempt.policy
