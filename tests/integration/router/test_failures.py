"""The router as a process, with real etcd, limiter, allocator and simulated replicas around it: failures."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.router.processes import AUTH, Platform, RouterProcess, platform
from tests.integration.router.traffic import agents, books, first, generated, request, rest, serving_agent
from tests.support.etcd import EtcdServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(90)

LEASE_S = 10.0
"""The limiter's default."""


@pytest.fixture
async def world(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(etcd, tmp_path) as made:
        made.start_quota()
        made.start_agent("agent-1")
        made.start_agent("agent-2")
        yield made


@pytest.fixture
async def router(world: Platform) -> RouterProcess:
    await world.wait_replicas(2)
    router = world.start_router("router-1")
    await router.wait_ready()
    await eventually(lambda: generated(router), 15.0, "the first answer")
    return router


async def test_a_replica_killed_before_and_after_the_first_token(world: Platform, router: RouterProcess) -> None:
    """SIGKILL of an agent under load: waiting requests move on unseen, greedy streams continue with the same text."""
    wanted = (await router.stub.Generate(request(tokens=150), metadata=AUTH, timeout=20)).text
    calls = [router.stub.StreamGenerate(request(tokens=150), metadata=AUTH, timeout=60) for _ in range(6)]
    firsts = [await first(call) for call in calls]
    victim = await serving_agent(world, firsts[0].replica_id)
    victim.kill()
    for call, start in zip(calls, firsts, strict=True):
        messages = [start, *await rest(call)]
        assert "".join(message.text for message in messages) == wanted
        assert sum(message.output_tokens for message in messages) == 150 == messages[-1].usage.output_tokens
    for _ in range(5):
        assert await generated(router)
    received, finished = await books(router)
    assert received == finished


async def test_a_frozen_replica_gets_no_new_requests(world: Platform, router: RouterProcess) -> None:
    """SIGSTOP of an agent: requests that were sent to it are retried, later ones avoid it."""
    victim = agents(world)[0]
    victim.signal(signal.SIGSTOP)
    try:
        answers = await asyncio.gather(*(generated(router) for _ in range(8)), return_exceptions=True)
        assert answers.count(True) >= 6, answers
        for _ in range(10):
            assert await generated(router)
    finally:
        victim.signal(signal.SIGCONT)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_serving_goes_on_when_everything_above_is_gone(
    world: Platform, router: RouterProcess, how: signal.Signals
) -> None:
    """etcd, limiter, allocator dead or hung: traffic goes on beyond the leases; a restarted router serves as well."""
    for process in world.processes:
        if process.name in ("ratelimiter", "capacity"):
            process.signal(how)
    world.etcd.signal(how)
    loop = asyncio.get_running_loop()
    gone_s = loop.time()
    while loop.time() - gone_s < LEASE_S + 2.0:
        assert await generated(router)
        await asyncio.sleep(0.1)
    router.kill()
    started_s = loop.time()
    again = world.start_router("router-1")
    await again.wait_ready(10.0)
    assert await generated(again)
    assert loop.time() - started_s < 10.0  # 5 s is the promise; a busy test machine is given twice that
    for _ in range(10):
        assert await generated(again)
