"""Which keys a replica's load belongs to, for the sharder: by part of the key space, a part being 2^28 neighbours.

A tenant has sixteen parts, its sessions spread over them. Where a report has no room for all of them, the coldest
tenants are told as one entry each: the sharder cuts hot tenants only, and has to see every tenant. What arrived is an
average that halves every HALF_LIFE_S:

    rate = ln 2 / HALF_LIFE_S * sum over requests of price * 2^(-age / HALF_LIFE_S)

which for a steady load is that load. Each part keeps its sum as of its own last request, so a request costs one
multiplication, and a part that nothing arrives at costs nothing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from common.shard_map import SESSION_BITS

PART_BITS: Final = 28
"""Keys that agree in all but so many low bits are counted together."""

HALF_LIFE_S: Final = 20.0
"""Seconds after which a request counts half: within the 15 to 30 s that balance quickly without following noise."""

REPORTED_MAX: Final = 1_024
"""Most entries in one report: all parts of 64 tenants, or as many tenants with one entry each. Source: engine.proto."""

PARTS_MAX: Final = 16_384
"""Most parts remembered beside those with requests in flight, all of REPORTED_MAX tenants; the coldest are forgotten
first."""

# So many more are let in before the coldest are forgotten all at once.
_SLACK: Final = 1_024

# Of a part's number: which of its tenant's parts it is.
_PART_OF_TENANT_BITS: Final = SESSION_BITS - PART_BITS

_PER_MINUTE: Final = 60.0 * math.log(2.0) / HALF_LIFE_S


@dataclass(frozen=True, slots=True)
class KeyLoad:
    """Load of one part of the key space, or of all parts of one tenant together.

    Attributes:
        first_key: Where it begins, or the tenant's first part.
        rate_milli_mu_per_minute: What arrived, priced by the routers, decayed.
        warm_tokens: Its prompt tokens in the prefix cache.
        in_flight: Its requests that wait or run here.
        tenant_id: Whose, where all of them are one tenant's; else empty.
    """

    first_key: int
    rate_milli_mu_per_minute: int
    warm_tokens: int
    in_flight: int
    tenant_id: str


# One line of a report: rate, warm tokens, requests in flight, each negative so that the heaviest sorts first, then the
# part and whose it is. A plain tuple, because there are thousands.
_Entry: TypeAlias = tuple[int, int, int, int, str]


@dataclass(slots=True)
class _Part:
    tenant_id: str
    weight: float = 0.0  # mMU, each request decayed to `as_of_s`
    as_of_s: float = 0.0
    in_flight: int = 0

    def decayed(self, now_s: float) -> float:
        age_s = now_s - self.as_of_s
        return self.weight * 2.0 ** (-age_s / HALF_LIFE_S) if age_s > 0.0 else self.weight


def key_part(shard_key: int) -> int:
    """The part of the key space that a key lies in."""
    return shard_key >> PART_BITS


class KeyLoads:
    """What arrived and is in flight, by part of the key space. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._parts: dict[int, _Part] = {}
        self._forget_at = PARTS_MAX + _SLACK

    def __len__(self) -> int:
        """Parts remembered."""
        return len(self._parts)

    def arrive(self, part: int, tenant_id: str, milli_mu: int, now_s: float) -> None:
        """A request arrived and was taken.

        Args:
            part: Where its key lies.
            tenant_id: Whose.
            milli_mu: Its price, prefill and decode, 0 or more.
            now_s: When.
        """
        known = self._parts.get(part)
        if known is None:
            if len(self._parts) >= self._forget_at:
                self._forget(now_s)
            known = self._parts[part] = _Part(tenant_id, as_of_s=now_s)
        elif known.tenant_id != tenant_id:
            known.tenant_id = ""
        known.weight = known.decayed(now_s) + milli_mu
        known.as_of_s = max(known.as_of_s, now_s)
        known.in_flight += 1

    def end(self, part: int) -> None:
        """A request that arrived has ended, however."""
        self._parts[part].in_flight -= 1

    def loads(self, now_s: float, warm_tokens: Mapping[int, int]) -> tuple[KeyLoad, ...]:
        """The parts that have any load, the heaviest first, at most REPORTED_MAX.

        Where there are more, as many of the coldest tenants as it takes have one entry each. Only of more than
        REPORTED_MAX tenants the coldest are left out.

        Args:
            now_s: Now.
            warm_tokens: Prompt tokens in the prefix cache, by part.
        """
        ranked: list[_Entry] = []
        for part, known in self._parts.items():
            rate, warm = round(known.decayed(now_s) * _PER_MINUTE), warm_tokens.get(part, 0)
            if rate or warm or known.in_flight:
                ranked.append((-rate, -warm, -known.in_flight, part, known.tenant_id))
        ranked.extend((0, -warm, 0, part, "") for part, warm in warm_tokens.items() if part not in self._parts)
        if len(ranked) > REPORTED_MAX:
            ranked = self._joined(ranked)
        ranked.sort()
        return tuple(
            KeyLoad(part << PART_BITS, -rate, -warm, -in_flight, tenant_id)
            for rate, warm, in_flight, part, tenant_id in ranked[:REPORTED_MAX]
        )

    def _joined(self, entries: list[_Entry]) -> list[_Entry]:
        """The same with the coldest tenants as one entry each, as many of them as it takes."""
        tenants: dict[int, list[_Entry]] = {}
        for entry in entries:
            tenants.setdefault(entry[3] >> _PART_OF_TENANT_BITS, []).append(entry)
        sums = sorted((self._sum(tenant, parts) for tenant, parts in tenants.items()), reverse=True)
        left, joined = len(entries), []
        for entry in sums:  # the coldest first
            parts = tenants[entry[3] >> _PART_OF_TENANT_BITS]
            if left > REPORTED_MAX and len(parts) > 1:
                left -= len(parts) - 1
                joined.append(entry)
            else:
                joined.extend(parts)
        return joined

    def _sum(self, tenant: int, parts: list[_Entry]) -> _Entry:
        """All of a tenant's parts as one entry, at its first part wherever its load lies, so that replicas agree."""
        rates, warm, in_flight, places, names = zip(*parts, strict=True)
        whose = {name for place, name in zip(places, names, strict=True) if place in self._parts}
        name = whose.pop() if len(whose) == 1 else ""
        return sum(rates), sum(warm), sum(in_flight), tenant << _PART_OF_TENANT_BITS, name

    def _forget(self, now_s: float) -> None:
        """Forgets the coldest parts without a request in flight, so that PARTS_MAX are left of these."""
        idle = [(each.decayed(now_s), part) for part, each in self._parts.items() if not each.in_flight]
        for _, part in heapq.nsmallest(len(idle) - PARTS_MAX, idle):
            del self._parts[part]
        self._forget_at = max(PARTS_MAX, len(self._parts)) + _SLACK
