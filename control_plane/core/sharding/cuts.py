"""Where the key space is cut into slices.

Every known tenant gets a slice that begins at its first key; the keys up to the next tenant's, which nobody uses yet,
come with it. A tenant that would need more than SPLIT_ABOVE replicas is cut into slices of about equal load, at the
borders of the parts in which agents count; neighbours of one tenant that together need few are joined again. Cutting
moves nothing: a new slice begins with the replicas of the one it was cut from. When there are more tenants than slices,
the coldest share one with the tenant before them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from common.shard_map import KEYS, tenant_keys
from control_plane.core.sharding.demand import Demand

SLICES_MAX: Final = 4_096
"""Slices of one model. An assignment of so many takes about 100 kB, which etcd and routers carry easily."""

SPLIT_ABOVE: Final = 16
"""A slice that needs more replicas than this is cut in two or more: a router weighs every replica of a subset for every
request, and sessions spread over a few replicas find their prefixes sooner than over many."""

JOIN_BELOW: Final = 8
"""Neighbouring slices of one tenant are joined when they need less than this together: half of SPLIT_ABOVE, so that a
load near the border does not cut and join by turns."""

STAYING: Final = 1.25
"""Where there are too many tenants, one that has a slice of its own keeps it until another's load is this much above
its own, so that noise does not cut and join by turns."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a slice begins, and whose it is.

    Attributes:
        first_key: Where it begins.
        tenant_id: Its only known tenant, or empty.
    """

    first_key: int
    tenant_id: str


def cut(
    demand: Demand,
    reserved: Mapping[str, int],
    previous: Sequence[Cut],
    need: Callable[[float], int],
    slices_max: int = SLICES_MAX,
) -> list[Cut]:
    """Cuts the key space.

    Args:
        demand: Load by part.
        reserved: Reserved rate by tenant, mMU per minute.
        previous: The cuts so far, rising; empty where there were none.
        need: How many replicas a load needs, mMU per minute.
        slices_max: Most slices, 1 or more.

    Returns:
        The cuts, rising; the first at 0.
    """
    # Where nothing is reserved, who had a slice keeps it: a tenant that sleeps is not gone.
    asleep = () if reserved else {each.tenant_id for each in previous}
    names = _names({*reserved, *demand.tenants, *asleep})
    if not names:
        return [Cut(0, "")]
    starts = sorted(names)
    loads = demand.loads(starts)
    wanted = [
        max(load, sum(reserved.get(name, 0) for name in names[first]))
        for first, load in zip(starts, loads, strict=True)
    ]
    if len(starts) > slices_max:
        had = {each.first_key for each in previous}
        worth = [load * STAYING if first in had else load for first, load in zip(starts, wanted, strict=True)]
        warmest = sorted(range(len(starts)), key=lambda at: (-worth[at], starts[at]))[: slices_max - 1]
        kept = sorted({0, *warmest})
        names = _joined(starts, kept, names)
        starts = [starts[at] for at in kept]
        wanted = [0.0] * len(starts)  # there are too many already: nobody is cut further
    cuts: list[Cut] = []
    room, before = slices_max - len(starts), [each.first_key for each in previous]
    for first, end, load in zip(starts, [*starts[1:], KEYS], wanted, strict=True):
        owners = names[first]
        tenant_id = next(iter(owners)) if len(owners) == 1 else ""
        cuts.append(Cut(0 if not cuts else first, tenant_id))
        if tenant_id and need(load) >= JOIN_BELOW:
            inner = _inner(demand, first, end, load, before, need)
            if len(inner) <= room:
                cuts += [Cut(key, tenant_id) for key in inner]
                room -= len(inner)
    return cuts


def _names(tenant_ids: set[str]) -> dict[int, set[str]]:
    """Known tenants by their first key; two whose hashes meet have one slice."""
    names: dict[int, set[str]] = {}
    for tenant_id in sorted(tenant_ids - {""}):
        names.setdefault(tenant_keys(tenant_id)[0], set()).add(tenant_id)
    return names


def _joined(starts: Sequence[int], kept: Sequence[int], names: Mapping[int, set[str]]) -> dict[int, set[str]]:
    joined: dict[int, set[str]] = {starts[at]: set() for at in kept}
    for at, first in enumerate(starts):
        joined[starts[kept[bisect_right(kept, at) - 1]]] |= names[first]
    return joined


def _inner(
    demand: Demand, first: int, end: int, wanted: float, previous: Sequence[int], need: Callable[[float], int]
) -> list[int]:
    """Where a tenant's range is cut inside: as before while that fits, else into pieces of about equal load."""
    parts = list(demand.within(first, end))
    total = sum(load for _, load in parts)
    if total <= 0.0 or len(parts) < 2:
        return []
    scale = wanted / total  # an idle reservation counts as if it were used
    before = [key for key in previous if first < key < end]
    pieces = _loads([first, *before, end], parts)
    if before and all(
        need(load * scale) <= SPLIT_ABOVE and need((load + after) * scale) >= JOIN_BELOW
        for load, after in zip(pieces, [*pieces[1:], pieces[-2]], strict=True)
    ):
        return before
    if need(wanted) <= SPLIT_ABOVE:
        return [] if not before or need(wanted) < JOIN_BELOW else before
    count = min(len(parts), -(-need(wanted) // (SPLIT_ABOVE // 2)))
    cuts: list[int] = []
    passed = 0.0
    for key, load in parts:
        if passed >= total * (len(cuts) + 1) / count and key > first:
            cuts.append(key)
        passed += load
    return cuts[: count - 1]


def _loads(borders: Sequence[int], parts: Sequence[tuple[int, float]]) -> list[float]:
    loads = [0.0] * (len(borders) - 1)
    for key, load in parts:
        loads[bisect_right(borders, key) - 1] += load
    return loads
