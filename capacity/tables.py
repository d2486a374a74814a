"""What is stored of quotas and targets, as values that compare quickly, and their encoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

from capacity.core.values import ModelLedger, Quotas
from common import keys
from common.store import Epoch
from fairlead.capacity.v1 import capacity_pb2

# Tables of one model: a change rewrites a sixteenth of its tenants.
SHARDS = 16
# The most that `keys.tenant_shard` can tell apart.
SHARDS_MAX = 256
# A row takes about 80 bytes and at most about 250, and hashing fills some tables a fifth above the average: values stay
# below 256 KiB, far from what etcd and its watchers handle in one piece.
TENANTS_PER_SHARD_MAX = 512
# Telemetry worth a write: a change by more than one part in this many.
_NOTABLE_PARTS = 16
# Every rate is in range where it comes in, but at a tiny target utilisation what it takes may be in no range.
_INT64_MAX = (1 << 63) - 1

Decision = tuple[str, int, int, int, int]


@dataclass(frozen=True)
class Table:
    """One capacity.QuotaTable: what somebody acts on apart from telemetry, row by row.

    Attributes:
        decisions: Tenant, reserved, guaranteed, granted, ceiling.
        telemetry: Wants and used.
    """

    decisions: list[Decision]
    telemetry: list[tuple[int, int]]

    @cached_property
    def granted(self) -> int:
        """Sum of what is granted, milli-MU per minute."""
        return sum(row[3] for row in self.decisions)

    def is_due(self, before: object, *, telemetry_due: bool) -> bool:
        """Whether this is to be written over what is stored."""
        if not isinstance(before, Table) or self.decisions != before.decisions:
            return True
        if not telemetry_due or self.telemetry == before.telemetry:
            return False
        pairs = zip(before.telemetry, self.telemetry, strict=True)
        return any(differ_notably(old[0], new[0]) or differ_notably(old[1], new[1]) for old, new in pairs)

    def encode(self, model_id: str, shard: int, epoch: Epoch, wall_ns: int) -> bytes:
        """The stored value."""
        table = capacity_pb2.QuotaTable(model_id=model_id, shard=shard, epoch=epoch)
        table.compute_time.FromNanoseconds(wall_ns)
        add = table.quotas.add
        for (tenant, reserved, guaranteed, granted, ceiling), (wants, used) in zip(
            self.decisions, self.telemetry, strict=True
        ):
            add(
                tenant_id=tenant,
                model_id=model_id,
                reserved_milli_mu_per_minute=reserved,
                guaranteed_milli_mu_per_minute=guaranteed,
                granted_milli_mu_per_minute=granted,
                burst_ceiling_milli_mu_per_minute=ceiling,
                wants_milli_mu_per_minute=wants,
                used_milli_mu_per_minute=used,
            )
        return table.SerializeToString()


@dataclass(frozen=True, slots=True)
class StoredTarget:
    """One capacity.CapacityTarget."""

    target: int
    floor: int
    used: int

    def encode(self, model_id: str, epoch: Epoch) -> bytes:
        """The stored value."""
        return capacity_pb2.CapacityTarget(
            model_id=model_id,
            epoch=epoch,
            target_milli_mu_per_minute=self.target,
            floor_milli_mu_per_minute=self.floor,
            used_milli_mu_per_minute=self.used,
        ).SerializeToString()


def differ_notably(before: int, after: int) -> bool:
    """Whether a number that always moves has moved by more than a sixteenth."""
    return abs(after - before) * _NOTABLE_PARTS > max(before, after)


def table_from(record: capacity_pb2.QuotaTable) -> Table:
    """A stored table."""
    return Table(
        [
            (
                quota.tenant_id,
                quota.reserved_milli_mu_per_minute,
                quota.guaranteed_milli_mu_per_minute,
                quota.granted_milli_mu_per_minute,
                quota.burst_ceiling_milli_mu_per_minute,
            )
            for quota in record.quotas
        ],
        [(quota.wants_milli_mu_per_minute, quota.used_milli_mu_per_minute) for quota in record.quotas],
    )


def target_from(record: capacity_pb2.CapacityTarget) -> StoredTarget:
    """A stored target."""
    return StoredTarget(
        record.target_milli_mu_per_minute, record.floor_milli_mu_per_minute, record.used_milli_mu_per_minute
    )


def target_of(ledger: ModelLedger) -> StoredTarget:
    """What the autoscaler should hold for one model."""
    return StoredTarget(*(min(rate, _INT64_MAX) for rate in (ledger.target, ledger.floor, ledger.used)))


def tables_of(quotas: Quotas, *, shards_stored: int) -> Iterator[tuple[int, Table]]:
    """The tables of one model by shard; shards without a tenant have none.

    Args:
        quotas: Of the model.
        shards_stored: Tables it has in the store now: many tables are joined late, so that a tenant more or less does
            not rewrite them all again and again.
    """
    shards = shards_for(len(quotas.sold.tenants), shards_stored)
    decisions: list[list[Decision]] = [[] for _ in range(shards)]
    telemetry: list[list[tuple[int, int]]] = [[] for _ in range(shards)]
    numbers = (quotas.sold.reserved, quotas.shares.guaranteed, quotas.granted, quotas.sold.ceiling)
    rows = zip(quotas.sold.tenants, *(part.tolist() for part in numbers), strict=True)
    for row, used in zip(rows, zip(quotas.wants.tolist(), quotas.used.tolist(), strict=True), strict=True):
        shard = _hash(row[0]) % shards
        decisions[shard].append(row)
        telemetry[shard].append(used)
    for shard in range(shards):
        if decisions[shard]:
            yield shard, Table(decisions[shard], telemetry[shard])


def shards_for(tenants: int, shards_stored: int) -> int:
    """Into how many tables a model's tenants are spread: a power of two, SHARDS to SHARDS_MAX."""
    shards = SHARDS
    while shards < SHARDS_MAX and (
        shards * TENANTS_PER_SHARD_MAX < tenants
        or (shards < shards_stored and shards * TENANTS_PER_SHARD_MAX < 2 * tenants)
    ):
        shards *= 2
    return shards


@lru_cache(maxsize=1 << 16)
def _hash(tenant_id: str) -> int:
    return keys.tenant_shard(tenant_id, SHARDS_MAX)
