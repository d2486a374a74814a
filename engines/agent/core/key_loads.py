"""Which keys a replica's load belongs to, for the sharder: by part of the key space, a part being 2^28 neighbours.

A tenant has sixteen parts, its sessions spread over them. What arrived is an average that halves every HALF_LIFE_S:

    rate = ln 2 / HALF_LIFE_S * sum over requests of price * 2^(-age / HALF_LIFE_S)

which for a steady load is that load. Each part keeps its sum as of its own last request, so a request costs one
multiplication, and a part that nothing arrives at costs nothing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

PART_BITS: Final = 28
"""Keys that agree in all but so many low bits are counted together."""

HALF_LIFE_S: Final = 20.0
"""Seconds after which a request counts half: within the 15 to 30 s that balance quickly without following noise."""

REPORTED_MAX: Final = 1_024
"""Most parts in one report, the heaviest: all parts of 64 tenants."""

PARTS_MAX: Final = 4_096
"""Most parts remembered beside those with requests in flight; the coldest are forgotten first."""

# So many more are let in before the coldest are forgotten all at once.
_SLACK: Final = 1_024

_PER_MINUTE: Final = 60.0 * math.log(2.0) / HALF_LIFE_S


@dataclass(frozen=True, slots=True)
class KeyLoad:
    """Load of one part of the key space.

    Attributes:
        first_key: Where it begins.
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

        Args:
            now_s: Now.
            warm_tokens: Prompt tokens in the prefix cache, by part.
        """
        ranked = []  # heaviest first, when sorted
        for part, known in self._parts.items():
            rate, warm = round(known.decayed(now_s) * _PER_MINUTE), warm_tokens.get(part, 0)
            if rate or warm or known.in_flight:
                ranked.append((-rate, -warm, -known.in_flight, part))
        ranked.extend((0, -warm, 0, part) for part, warm in warm_tokens.items() if part not in self._parts)
        ranked.sort()
        return tuple(
            KeyLoad(part << PART_BITS, -rate, -warm, -in_flight, self._tenant_of(part))
            for rate, warm, in_flight, part in ranked[:REPORTED_MAX]
        )

    def _tenant_of(self, part: int) -> str:
        known = self._parts.get(part)
        return "" if known is None else known.tenant_id

    def _forget(self, now_s: float) -> None:
        """Forgets the coldest parts without a request in flight, so that PARTS_MAX are left of these."""
        idle = [(each.decayed(now_s), part) for part, each in self._parts.items() if not each.in_flight]
        for _, part in heapq.nsmallest(len(idle) - PARTS_MAX, idle):
            del self._parts[part]
        self._forget_at = max(PARTS_MAX, len(self._parts)) + _SLACK
