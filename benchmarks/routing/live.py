"""Sharded routing with real processes: how fast assignments spread, and what is lost when something dies.

Eight simulated engines behind real agents, two routers, two control planes, rate limiter, allocator, real etcd. In
this order: quiet traffic, a replica killed, the leading sharder killed, a rolling restart of every replica, then both
control planes gone: assignments are written by the bench, and at last etcd, limiter and allocator are killed too.

Routing with the control plane dead is measured for the ten minutes of its bar. Nothing that routing needs expires:
routers and agents keep the assignment they have until they see a newer one, replicas are judged by their own load
streams, keys and models stay as last read, and quota goes on at the safe rate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from math import nan
from statistics import quantiles
from typing import Final

import grpc.aio
from rich.console import Console

from benchmarks.report import Bar
from benchmarks.routing.live_site import MODEL, REPLICAS, ROUTERS, TENANTS, Site, site
from benchmarks.routing.live_traffic import SESSIONS, Sent, Traffic
from common import keys
from common.shard_map import Generation, ShardMap, shard_key

BARS: Final[Mapping[str, Bar]] = {
    "live_failed_requests": Bar(0.0),
    "live_misrouted_steady_percent": Bar(0.05),
    "live_same_subset_at_both_routers_percent": Bar(100.0, at_most=False),
    "live_explained_percent": Bar(100.0, at_most=False),
    "live_crash_to_router_s": Bar(3.0),
    "live_crash_to_assignment_s": Bar(10.0),
    "live_sharder_takeover_s": Bar(10.0),
    "live_misrouted_rolling_restart_percent": Bar(1.0),
    "live_rolling_restart_failed_requests": Bar(0.0),
    "live_propagation_p95_s": Bar(0.5),
    "live_propagation_p99_s": Bar(2.0),
    "live_control_plane_dead_success_percent": Bar(100.0, at_most=False),
    "live_control_plane_dead_outside_subset_percent": Bar(0.05),
}
"""Source: what the design promises."""

STEADY_S: Final = 30.0
WRITES: Final = 200
"""Assignments written, so that a 99th percentile is one of two."""
DEAD_S: Final = 600.0
_PHASE_S_MAX: Final = DEAD_S + 180.0
_CRASH_S_MAX: Final = 120.0
_WATCHED_S: Final = 6.0
"""After a crash: twice the bar."""
_EXPLAINED_S: Final = 3.0
_WRITE_PAUSE_S: Final = 0.05
_ASK_PAUSE_S: Final = 0.002


def measure(console: Console) -> dict[str, float]:
    """Runs everything.

    Args:
        console: Where remarks go.

    Returns:
        Values by metric; a metric that could not be measured is NaN, and so misses its bar.
    """
    found = dict.fromkeys(BARS, nan)
    asyncio.run(_measure(found, console))
    return found


async def _measure(found: dict[str, float], console: Console) -> None:
    async with site() as running, Traffic(running) as traffic:
        for phase in (_steady, _crash, _takeover, _rolling_restart, _propagation, _dead):
            try:
                async with asyncio.timeout(_PHASE_S_MAX):
                    values = await phase(running, traffic)
            except (RuntimeError, TimeoutError, OSError, grpc.aio.AioRpcError) as error:
                console.print(f"live, {phase.__name__.strip('_')}: {error!r}", markup=False)
                continue
            found.update(values)
            console.print("  ".join(f"{name} {value:.4g}" for name, value in values.items()), highlight=False)
        errors = [each for each in traffic.sent if each.error]
        for each in errors[:3]:
            after_s = each.sent_s - traffic.sent[0].sent_s
            console.print(f"a request failed {after_s:.1f} s after the first: {each.error}", markup=False)
        found["live_failed_requests"] = float(len(errors))
        found["live_requests"] = float(len(traffic.sent))


async def _steady(running: Site, traffic: Traffic) -> dict[str, float]:
    """Nothing happens: who is misrouted, do both routers agree, and is every decision explained?"""
    await asyncio.sleep(5.0)  # the first assignments reach everybody
    before, mark_s = await running.misrouted(), time.monotonic()
    await asyncio.sleep(STEADY_S)
    misrouted, sent = await running.misrouted() - before, traffic.since(mark_s)
    earlier, mark_s = await _maps(running), time.monotonic()
    await asyncio.sleep(_EXPLAINED_S)
    sample, maps = traffic.since(mark_s), await _maps(running)
    all_keys = [shard_key(tenant, f"session-{number}") for tenant in TENANTS for number in range(SESSIONS)]
    same = sum(len({each.subset(key) for each in maps}) == 1 for key in all_keys) if len(maps) == ROUTERS else 0
    # What came between the two looks at the assignments was picked by one of these.
    explained = [await _is_explained(traffic, each, [*earlier, *maps]) for each in sample]
    return {
        "live_misrouted_steady_percent": 100 * misrouted / len(sent),
        "live_same_subset_at_both_routers_percent": 100 * same / len(all_keys),
        "live_explained_percent": 100 * sum(explained) / len(sample),
    }


async def _maps(running: Site) -> list[ShardMap]:
    """What every router routes by."""
    found = [await running.held(number) for number in range(ROUTERS)]
    return [ShardMap(held) for held in found if held is not None]


async def _is_explained(traffic: Traffic, sent: Sent, maps: list[ShardMap]) -> bool:
    """Whether the winner is named among candidates of its subset, and the rule that picked it."""
    decision = await traffic.explain(sent)
    if decision is None or not decision.attempts:
        return False
    last = decision.attempts[-1]
    candidates = {each.replica_id for each in last.candidates}
    inside = any(candidates <= set(each.subset(sent.key)) for each in maps)
    return bool(last.policy) and last.replica_id == sent.replica_id and sent.replica_id in candidates and inside


async def _crash(running: Site, traffic: Traffic) -> dict[str, float]:
    """A replica that serves is killed."""
    victim = traffic.sent[-1].replica_id
    record = next(each for each in await running.records() if each.replica_id == victim)
    process = next(each for each in running.replicas.values() if each.pid == record.agent_pid)
    await process.kill()
    killed_s = time.monotonic()
    assignment_s = await running.until_without(victim, _CRASH_S_MAX)
    await asyncio.sleep(max(0.0, killed_s + _WATCHED_S - time.monotonic()))
    last_s = 0.0
    for sent in traffic.since(killed_s):
        decision = await traffic.explain(sent)
        for attempt in decision.attempts if decision is not None else ():
            if attempt.replica_id == victim:
                started_s = sent.sent_s + attempt.start_offset.ToNanoseconds() / 1e9
                last_s = max(last_s, started_s - killed_s)
    running.start_replica()
    await running.until_ready(REPLICAS)
    return {"live_crash_to_router_s": last_s, "live_crash_to_assignment_s": assignment_s}


async def _takeover(running: Site, _traffic: Traffic) -> dict[str, float]:
    """The control plane whose sharder leads is killed."""
    leader = await running.leader()
    process = next(each for each in running.control if each.name == leader)
    await process.kill()
    killed_s = time.monotonic()

    async def led() -> bool:
        return await running.leader() not in ("", leader)

    await running.until(led, "sharder that leads")
    return {"live_sharder_takeover_s": time.monotonic() - killed_s}


async def _rolling_restart(running: Site, traffic: Traffic) -> dict[str, float]:
    """Every replica is replaced: the new one first, then SIGTERM to the old one."""
    mark_s, misrouted = time.monotonic(), 0.0
    for record in await running.records():
        running.start_replica()
        await running.until_ready(REPLICAS + 1)
        misrouted += await running.misrouted()
        process = next(each for each in running.replicas.values() if each.pid == record.agent_pid)
        await process.stop()
        await running.until_without(record.replica_id)
        misrouted -= await running.misrouted()
    misrouted += await running.misrouted()
    sent = traffic.since(mark_s)
    return {
        "live_misrouted_rolling_restart_percent": 100 * max(0.0, misrouted) / len(sent),
        "live_rolling_restart_failed_requests": float(sum(bool(each.error) for each in sent)),
    }


async def _propagation(running: Site, _traffic: Traffic) -> dict[str, float]:
    """With no control plane left, the bench writes assignments and asks both routers until they route by each."""
    await asyncio.gather(*(each.kill() for each in running.control))
    assignment = await running.stored()
    took = []
    for _ in range(WRITES):
        assignment.generation.number += 1
        wanted = Generation.of(assignment.generation)
        began_s = time.monotonic()
        await running.store.put(keys.assignment(MODEL.model_id), assignment.SerializeToString())
        await asyncio.gather(*(_until_held(running, number, wanted) for number in range(ROUTERS)))
        took.append(time.monotonic() - began_s)
        await asyncio.sleep(_WRITE_PAUSE_S)
    cuts = quantiles(took, n=100, method="inclusive")
    return {"live_propagation_p95_s": cuts[94], "live_propagation_p99_s": cuts[98]}


async def _until_held(running: Site, router: int, wanted: Generation) -> None:
    before = Generation(wanted.incarnation, wanted.number - 1)
    while await running.held(router, before) is None:  # noqa: ASYNC110  # the router is another process
        await asyncio.sleep(_ASK_PAUSE_S)


async def _dead(running: Site, traffic: Traffic) -> dict[str, float]:
    """etcd, limiter and allocator follow the control planes; traffic within the quotas goes on."""
    maps = await _maps(running)
    await asyncio.gather(*(each.kill() for each in (running.etcd, *running.quota, *running.control)))
    mark_s = time.monotonic()
    await asyncio.sleep(DEAD_S)
    sent = traffic.since(mark_s)
    answered = [each for each in sent if not each.error]
    outside = [each for each in answered if not any(each.replica_id in known.subset(each.key) for known in maps)]
    return {
        "live_control_plane_dead_success_percent": 100 * len(answered) / len(sent),
        "live_control_plane_dead_outside_subset_percent": 100 * len(outside) / len(answered),
        "live_control_plane_dead_requests": float(len(sent)),
    }
