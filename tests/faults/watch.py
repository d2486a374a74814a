"""A reader of what leaders write: the product's own mirrors, and everything they ever showed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from common import keys
from common.mirror import Mirror
from fairlead.capacity.v1 import capacity_pb2
from fairlead.quota.v1 import quota_pb2
from tests.faults.books import value
from tests.faults.checkers import Write
from tests.faults.lab import Lab
from tests.faults.processes import Service
from tests.faults.tenants import GREEDY

LOOK_S = 0.5


@dataclass
class Seen:
    """What a reader has seen, in order.

    Attributes:
        leases: Changes of lease tables.
        quotas: Changes of quota tables.
        safe_rates: The most of the greedy tenant's quota a router may use once its leases have ended, milli-MU per
            minute by router.
        refills: The greedy tenant's refill in force by router, one mapping per look at them.
    """

    leases: list[Write] = field(default_factory=list)
    quotas: list[Write] = field(default_factory=list)
    safe_rates: dict[str, int] = field(default_factory=dict)
    refills: list[dict[str, int]] = field(default_factory=list)

    def note(self, table: quota_pb2.LeaseTable) -> None:
        """Remembers the largest safe rate a router was ever granted."""
        for lease in table.leases:
            if lease.tenant_id == GREEDY:
                known = self.safe_rates.get(table.router_id, 0)
                self.safe_rates[table.router_id] = max(known, lease.safe_rate_milli_mu_per_minute)


async def _look(lab: Lab, seen: Seen) -> None:
    """Looks at the routers' refills again and again; one that does not answer is left out."""
    while True:
        looks = await asyncio.gather(*(asyncio.to_thread(_refill, router) for router in lab.routers))
        found = zip(lab.router_names, looks, strict=True)
        seen.refills.append({name: rate for name, rate in found if rate is not None})
        await asyncio.sleep(LOOK_S)


def _refill(router: Service) -> int | None:
    try:
        return int(value(router.metrics(), "fairlead_router_lease_milli_mu_per_minute", tenant=GREEDY))
    except OSError:
        return None


@asynccontextmanager
async def watching(lab: Lab) -> AsyncIterator[Seen]:
    """Reads along for as long as the block runs."""
    seen = Seen()

    def on_lease(key: str, table: quota_pb2.LeaseTable | None) -> None:
        if table is None:
            seen.leases.append(Write(keys.LEASES + key, 0))
            return
        seen.note(table)
        seen.leases.append(Write(keys.LEASES + key, table.epoch, table.table_number))

    def on_quota(key: str, table: capacity_pb2.QuotaTable | None) -> None:
        seen.quotas.append(Write(keys.QUOTAS + key, table.epoch if table else 0))

    async with lab.store() as store:
        leases = Mirror(store, keys.LEASES, quota_pb2.LeaseTable.FromString)
        quotas = Mirror(store, keys.QUOTAS, capacity_pb2.QuotaTable.FromString)
        leases.on_change(on_lease)
        quotas.on_change(on_quota)
        tasks = [asyncio.create_task(mirror.run()) for mirror in (leases, quotas)]
        tasks.append(asyncio.create_task(_look(lab, seen)))
        try:
            await leases.wait_synced()
            yield seen
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
