"""Everything above the data plane dies, or hangs: traffic within the quotas goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from fairlead import AsyncClient, RetryPolicy
from fairlead.errors import FairleadError
from tests.e2e.make_run import MakeRun
from tests.support.waiting import eventually

DATA_SIDE = ("router-", "replica-", "engine-")
OUTAGE_S = 14.0  # longer than a lease (10 s), so that the safe rates are what is tested


def control_side(run: MakeRun) -> dict[str, int]:
    """Pids of all that is not router, agent or engine; the launcher goes first, it would restart the others."""
    return {name: pid for name, pid in run.pids().items() if not name.startswith(DATA_SIDE)}


async def in_quota_traffic(run: MakeRun, seconds: float) -> tuple[int, list[str]]:
    """Sends small requests of both tenants at a steady, low rate; returns how many went well and what failed."""
    facts = run.document()
    loop = asyncio.get_running_loop()
    end, good, bad = loop.time() + seconds, 0, []
    clients = {
        name: AsyncClient(facts["grpc"], api_key=tenant["key"], retries=RetryPolicy(attempts_max=1), deadline_s=10)
        for name, tenant in facts["tenants"].items()
    }
    while loop.time() < end:
        for name, client in clients.items():
            try:
                model = facts["tenants"][name]["model"]
                answer = await client.generate("a small question", model=model, max_tokens=4)
                good += answer.usage.output_tokens == 4
            except FairleadError as error:
                bad.append(f"{name}: {error!r}")
        await asyncio.sleep(0.1)
    for client in clients.values():
        await client.aclose()
    return good, bad


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
async def test_traffic_outlives_the_control_side(tmp_path: Path, how: signal.Signals) -> None:
    """With etcd, limiter, allocator, control plane, autoscaler and launcher gone, every in-quota request succeeds."""
    run = MakeRun(tmp_path / "run", engine="sim", replicas=2)
    victims: dict[str, int] = {}
    try:
        await run.serving()
        good, bad = await in_quota_traffic(run, 2.0)
        assert good > 5, bad
        assert not bad
        victims = control_side(run)
        assert {"launcher", "etcd", "ratelimiter-1", "capacity-1", "control-plane-1", "autoscaler-1"} <= set(victims)
        # The launcher is frozen, not killed: its children would rightly follow its death.
        os.kill(victims.pop("launcher"), signal.SIGSTOP)
        for pid in victims.values():
            os.kill(pid, how)
        good, bad = await in_quota_traffic(run, OUTAGE_S)
        assert not bad, bad[:5]
        assert good > 50
    finally:
        for pid in victims.values():
            if how is signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
        os.kill(run.process.pid, signal.SIGCONT)
        run.process.send_signal(signal.SIGTERM)
        try:
            await run.ends()
        finally:
            run.kill()
    await eventually(lambda: not run.leftovers(), 20, "nothing left running")
