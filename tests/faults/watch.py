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
from tests.faults.checkers import Write
from tests.faults.lab import Lab


@dataclass
class Seen:
    """What a reader has seen, in order.

    Attributes:
        leases: Changes of lease tables.
        quotas: Changes of quota tables.
        tables: The lease tables there are now, by key below leases/.
    """

    leases: list[Write] = field(default_factory=list)
    quotas: list[Write] = field(default_factory=list)
    tables: dict[str, quota_pb2.LeaseTable] = field(default_factory=dict)

    def safe_rate(self, router: str, tenant: str) -> int:
        """What a router may admit of a tenant after its leases have expired, milli-MU per minute."""
        return sum(
            lease.safe_rate_milli_mu_per_minute
            for table in self.tables.values()
            for lease in table.leases
            if table.router_id == router and lease.tenant_id == tenant
        )


@asynccontextmanager
async def watching(lab: Lab) -> AsyncIterator[Seen]:
    """Reads along for as long as the block runs."""
    seen = Seen()

    def on_lease(key: str, table: quota_pb2.LeaseTable | None) -> None:
        if table is None:
            seen.tables.pop(key, None)
            seen.leases.append(Write(keys.LEASES + key, 0))
            return
        seen.tables[key] = table
        rates = {lease.tenant_id: lease.rate_milli_mu_per_minute for lease in table.leases}
        seen.leases.append(Write(keys.LEASES + key, table.epoch, table.table_number, rates))

    def on_quota(key: str, table: capacity_pb2.QuotaTable | None) -> None:
        seen.quotas.append(Write(keys.QUOTAS + key, table.epoch if table else 0))

    async with lab.store() as store:
        leases = Mirror(store, keys.LEASES, quota_pb2.LeaseTable.FromString)
        quotas = Mirror(store, keys.QUOTAS, capacity_pb2.QuotaTable.FromString)
        leases.on_change(on_lease)
        quotas.on_change(on_quota)
        tasks = [asyncio.create_task(mirror.run()) for mirror in (leases, quotas)]
        try:
            await leases.wait_synced()
            yield seen
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
