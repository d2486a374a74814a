"""Usage tables as routers write them, in any store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common import keys
from common.store import Store
from control_plane.core.usage import COUNTERS, hour_name
from fairlead.admin.v1 import usage_pb2

Counts = Mapping[tuple[str, str], Sequence[int]]
"""The counters, in the order of COUNTERS, by tenant and model."""


async def write_table(
    store: Store,
    hour_s: int,
    counts: Counts,
    *,
    router: str = "r1",
    incarnation: str = "i1",
    shard: int = 0,
    write_s: float = 0,
) -> str:
    """Writes one table and returns its key."""
    table = usage_pb2.UsageTable(router_id=router, incarnation_id=incarnation, shard=shard)
    table.hour.seconds = hour_s
    table.write_time.FromNanoseconds(int(write_s * 1e9))
    for (tenant, model), values in sorted(counts.items()):
        table.rows.add(tenant_id=tenant, model_id=model, **dict(zip(COUNTERS, values, strict=True)))
    key = keys.usage(hour_name(hour_s), router, incarnation, shard)
    await store.put(key, table.SerializeToString())
    return key


async def write_state(
    store: Store, stored_until_s: float, *, router: str = "r1", incarnation: str = "i1", final: bool = False
) -> str:
    """Writes how far one process is and returns its key."""
    state = usage_pb2.UsageState(router_id=router, incarnation_id=incarnation, final=final)
    state.stored_until_time.FromNanoseconds(int(stored_until_s * 1e9))
    key = keys.usage_state(router, incarnation)
    await store.put(key, state.SerializeToString())
    return key


def counts_of(row: usage_pb2.UsageRow) -> tuple[int, ...]:
    """The counters of a row, in the order of COUNTERS."""
    return tuple(getattr(row, counter) for counter in COUNTERS)
