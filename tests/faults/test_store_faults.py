"""etcd dies and comes back, hangs, or forgets the history that a reader needs."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest
from aetcd import rpc

from common import keys
from fairlead.admin.v1 import admin_pb2
from tests.faults import checkers
from tests.faults.lab import Lab
from tests.faults.load import load
from tests.faults.processes import Service
from tests.faults.tenants import GREEDY, STEADY
from tests.faults.traffic import BURST, GREEDY_RATE, both
from tests.faults.views import HEAL_S, heals
from tests.faults.watch import watching
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(300)

HANG_S = 10.0
DEAD_S = 2.0


@pytest.mark.parametrize("how", ["killed", "hangs"])
async def test_traffic_and_views_survive_etcd(lab: Lab, how: str) -> None:
    """etcd is killed and started again, or hangs for 10 s: no in-quota refusal, quotas hold, views heal in 30 s."""
    before = lab.books()
    async with watching(lab) as seen, load(both(lab)) as history:
        await asyncio.sleep(1.0)
        if how == "killed":
            lab.etcd.kill()
            await asyncio.sleep(DEAD_S)
            lab.etcd.start()
        else:
            lab.etcd.freeze()
            await asyncio.sleep(HANG_S)
            lab.etcd.thaw()

        async def written() -> bool:
            return bool(await lab.add_tenant(f"after{how}"))

        await eventually(written, HEAL_S, "etcd takes writes again")
        await heals(lab.routers, await lab.add_tenant(f"after{how}"), within_s=HEAL_S)
        await lab.wait_well(HEAL_S)
    books = await lab.since(before)
    checkers.never_refused(history.of(STEADY))
    checkers.admitted_within(history.of(GREEDY), rate_milli_mu_per_minute=GREEDY_RATE, burst_milli_mu=BURST)
    checkers.epochs_never_go_back(seen.leases)
    checkers.epochs_never_go_back(seen.quotas)
    checkers.books_agree(history, books)
    checkers.nothing_held(books)


async def compacted_while_away(lab: Lab, router: Service, name: str) -> str:
    """Writes more than a watch buffers while a router is frozen, compacts all of it away, lets the router go on.

    Returns:
        The key of a tenant that was made in between.
    """
    router.freeze()
    try:
        bulk = admin_pb2.Tenant(tenant_id="bulk", display_name="x" * 65_536).SerializeToString()
        async with lab.store() as store:
            # etcd keeps 128 responses per watcher and the connection some megabytes; this is 26 MB.
            for _ in range(20):
                await asyncio.gather(*(store.put(keys.tenant("bulk"), bulk) for _ in range(20)))
            key = await lab.add_tenant(name)
            await store.delete(keys.tenant("bulk"))
            revision = (await store.list(keys.LEADERS)).revision
        async with grpc.aio.insecure_channel(lab.etcd.endpoint) as channel:
            await rpc.KVStub(channel).Compact(rpc.CompactionRequest(revision=revision), timeout=10)
    finally:
        router.thaw()
    return key


async def test_a_view_whose_history_was_compacted_heals(lab: Lab) -> None:
    """A router that was away while history was written and compacted sees the present within 30 s."""
    async with load(both(lab, routers=["router-1", "router-2"])) as history:
        key = await compacted_while_away(lab, lab.services["router-3"], "compacted")
        await heals([lab.services["router-3"]], key, within_s=HEAL_S)
    checkers.never_refused(history.of(STEADY))


async def test_a_mirror_that_does_not_list_again_is_caught(lab: Lab) -> None:
    """A build whose mirrors never list a second time does not heal."""
    router = await lab.become("router-3", "stale_router")
    key = await compacted_while_away(lab, router, "unseen")
    with pytest.raises(AssertionError, match="sees what was written"):
        await heals([router], key, within_s=8.0)
