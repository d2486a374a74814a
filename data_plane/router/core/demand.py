"""What tenants would use now: the numbers behind a router's report to the rate limiter.

Wants count every priced request, admitted or refused, and what streams needed beyond their estimate. A want is the
larger of a fast and a slow average: the fast one shows an owner's return within a second or two, the slow one keeps a
tenant with one expensive request now and then from losing its share in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from data_plane.router.core.decay import DecayingSum
from data_plane.router.core.holds import BucketKey

FAST_HALF_LIFE_S: Final = 1.5
SLOW_HALF_LIFE_S: Final = 15.0

# Work that waits in the batch queue is wanted within this long.
_WAITING_SERVED_WITHIN_MINUTES: Final = 0.5

# Below this a demand is over: a tenth of a percent of one MU per minute.
_NEGLIGIBLE_MILLI_MU_PER_MINUTE: Final = 1.0


@dataclass(frozen=True, slots=True)
class WantRow:
    """One entry of a report.

    Attributes:
        tenant_id: Who.
        model_id: On which model.
        wants_milli_mu_per_minute: Demand lately, admitted, refused and waiting.
        used_milli_mu_per_minute: Settled lately.
        held_milli_mu: Held by requests in flight.
    """

    tenant_id: str
    model_id: str
    wants_milli_mu_per_minute: int
    used_milli_mu_per_minute: int
    held_milli_mu: int


class _Averages:
    __slots__ = ("fast", "slow", "used")

    def __init__(self, now_ns: int) -> None:
        self.fast = DecayingSum(FAST_HALF_LIFE_S, now_ns)
        self.slow = DecayingSum(SLOW_HALF_LIFE_S, now_ns)
        self.used = DecayingSum(SLOW_HALF_LIFE_S, now_ns)


class Demand:
    """The demand one router sees."""

    def __init__(self) -> None:
        self._averages: dict[BucketKey, _Averages] = {}

    def wanted(self, key: BucketKey, milli_mu: int, now_ns: int) -> None:
        """Notes work somebody asked for."""
        averages = self._of(key, now_ns)
        averages.fast.add(milli_mu, now_ns)
        averages.slow.add(milli_mu, now_ns)

    def used(self, key: BucketKey, milli_mu: int, now_ns: int) -> None:
        """Notes work that was settled."""
        self._of(key, now_ns).used.add(milli_mu, now_ns)

    def report(
        self, now_ns: int, *, held: Mapping[BucketKey, int], waiting: Mapping[BucketKey, int]
    ) -> tuple[WantRow, ...]:
        """One row per (tenant, model) with demand lately or requests in flight, sorted by model then tenant.

        Args:
            now_ns: Monotonic now.
            held: What requests in flight hold, mMU.
            waiting: What waits in the batch queue, mMU.
        """
        rows = []
        for key in sorted({*self._averages, *held, *waiting}, key=lambda key: (key[1], key[0])):
            averages = self._averages.get(key)
            wants = waiting.get(key, 0) / _WAITING_SERVED_WITHIN_MINUTES
            used = 0.0
            if averages is not None:
                wants += max(averages.fast.per_minute(now_ns), averages.slow.per_minute(now_ns))
                used = averages.used.per_minute(now_ns)
            if max(wants, used) < _NEGLIGIBLE_MILLI_MU_PER_MINUTE and key not in held:
                self._averages.pop(key, None)
                continue
            rows.append(WantRow(key[0], key[1], round(wants), round(used), held.get(key, 0)))
        return tuple(rows)

    def _of(self, key: BucketKey, now_ns: int) -> _Averages:
        averages = self._averages.get(key)
        if averages is None:
            averages = self._averages[key] = _Averages(now_ns)
        return averages
