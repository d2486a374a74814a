"""The leader's desk: what becomes of the store with a report."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from common import keys
from common.clock import FakeClock
from common.leadership import Election
from common.memory_store import MemoryStore
from common.mirror import Mirror
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.errors import FairleadError
from fairlead.quota.v1 import quota_pb2
from ratelimiter.config import RateLimiterConfig
from ratelimiter.core.values import Report
from ratelimiter.desk import Desk
from ratelimiter.metrics import RateLimiterMetrics


async def test_a_lease_that_ended_leaves_the_store_no_later_than_another_has_it() -> None:
    """Proves that the next leader does not find both: nobody would be granted anything until a lease had passed."""
    clock = FakeClock()
    store = MemoryStore(clock)
    grant = capacity_pb2.Quota(model_id="m", tenant_id="t", granted_milli_mu_per_minute=100)
    await store.put(keys.QUOTAS + "m", capacity_pb2.QuotaTable(quotas=[grant]).SerializeToString())
    quotas = Mirror(store, keys.QUOTAS, capacity_pb2.QuotaTable.FromString)
    me = admin_pb2.ServiceInstance(instance_id="me")
    election = Election(store, "ratelimiter", me, ttl_s=60, clock=clock)
    config = RateLimiterConfig(lease_s=1.0, debounce_ms=5000)
    desk = Desk(store, quotas, election, config, clock, RateLimiterMetrics(CollectorRegistry()))

    async def granted(router_id: str) -> dict[str, int]:
        answer = await desk.report(Report(router_id, "1", 1, {}, {}))
        return {table.router_id: table.leases[0].rate_milli_mu_per_minute for table in answer.tables if table.leases}

    running = [asyncio.create_task(run()) for run in (quotas.run, election.run, desk.run)]
    async with asyncio.timeout(60):
        while True:
            try:
                assert await granted("a") == {"a": 100}
                break
            except FairleadError:
                await asyncio.sleep(0.01)
        clock.advance(1.1)
        assert await granted("b") == {"b": 100}
    stored = [quota_pb2.LeaseTable.FromString(entry.value) for entry in (await store.list(keys.LEASES)).entries]
    assert [table.router_id for table in stored] == ["b"]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
