"""What tenants would use now: the numbers behind a router's report to the rate limiter.

Wants count every priced request, admitted or refused, and what streams needed beyond their estimate. Between two
reports they are only added up, so that a request pays for two additions; a report turns the sums into rates:

- a fast average, which shows within seconds what a tenant does now,
- a slow one, which keeps a tenant with one expensive request now and then from losing its share in between,
- and for a tenant that is short of quota, the surge: the rate since its demand rose. An owner that returns at full load
  is seen at a fifth of it after half a second by the fast average, at nearly all of it by the surge. A tenant whose
  quota is enough has no need of it, and is spared its noise.

The want is the largest of the three. A tenant that is short of quota while its demand has risen notably over what was
last reported makes the demand notable: the router should report before its next turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from data_plane.router.core.holds import BucketKey

FAST_HALF_LIFE_S: Final = 1.5
SLOW_HALF_LIFE_S: Final = 15.0

NOTABLE_PART: Final = 8
"""A rise of more than 1/8 over the last report is notable: the measure by which the limiter sends its own news."""

# Work that waits in the batch queue is wanted within this long.
_WAITING_SERVED_WITHIN_MINUTES: Final = 0.5

# Below this a demand is over: a tenth of a percent of one MU per minute.
_NEGLIGIBLE_MILLI_MU_PER_MINUTE: Final = 1.0

# A surge is told from no less than half a second, or two requests that happen to meet would make one, and from no more
# than a second and a half, where the fast average has seen most of it.
_SURGE_NS_MIN: Final = 500_000_000
_SURGE_NS_MAX: Final = 1_500_000_000
# Standard deviations of the sum that a surge is discounted by. Half of one leaves 25 requests at 90 % and a single one
# at half; a whole one would hide a third of an owner that sends eight requests per second.
_SURGE_DISCOUNT: Final = 0.5

_LN2: Final = math.log(2.0)
_NS_PER_S: Final = 1_000_000_000
_NS_PER_MINUTE: Final = 60 * _NS_PER_S


class WantRow(NamedTuple):
    """One entry of a report. A tuple, because a report has thousands.

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


class _Tally:
    """One key's demand: sums since the last report, averages up to it."""

    __slots__ = (
        "asked",
        "asked_squares",
        "fast",
        "first_ns",
        "reported",
        "settled",
        "short",
        "slow",
        "surge",
        "surge_ns",
        "surge_squares",
        "used",
    )

    def __init__(self) -> None:
        # Since the last report.
        self.asked = 0
        self.asked_squares = 0
        self.settled = 0
        self.first_ns = 0
        self.short = False
        # Up to the last report; rates per minute.
        self.fast = 0.0
        self.slow = 0.0
        self.used = 0.0
        self.reported = 0
        # What was asked since the demand rose, over how long.
        self.surge = 0
        self.surge_squares = 0
        self.surge_ns = 0

    def rise(self, since_ns: int, now_ns: int) -> tuple[int, int, int]:
        """The surge at `now_ns`: (sum, sum of squares, over how long), of this interval alone where it is denser.

        Args:
            since_ns: When the last report was.
            now_ns: Now.
        """
        if not self.surge and self.asked:
            # Quiet before: the clock of a return starts with its first request.
            since_ns = max(since_ns, self.first_ns)
        elapsed_ns = max(0, now_ns - since_ns)
        joined_ns = self.surge_ns + elapsed_ns
        joined = self.surge + self.asked
        if joined_ns > _SURGE_NS_MAX or self.asked * joined_ns > joined * elapsed_ns:
            return self.asked, self.asked_squares, elapsed_ns
        return joined, self.surge_squares + self.asked_squares, joined_ns


def _surge_per_minute(total: int, squares: int, elapsed_ns: int) -> float:
    """The rate that a surge shows for certain, mMU per minute."""
    sure = total - _SURGE_DISCOUNT * math.sqrt(squares)
    return sure * _NS_PER_MINUTE / max(_SURGE_NS_MIN, elapsed_ns)


class Demand:
    """The demand one router sees."""

    def __init__(self) -> None:
        self._tallies: dict[BucketKey, _Tally] = {}
        # Keys by model, then tenant; None once a key was added.
        self._order: list[BucketKey] | None = []
        self._reported_ns = 0
        self._notable = False
        self._on_notable: Callable[[], None] | None = None

    @property
    def notable(self) -> bool:
        """Whether somebody lacks quota and wants notably more than the last report said: worth an early one."""
        return self._notable

    def on_notable(self, wake: Callable[[], None]) -> None:
        """Has `wake` called each time the demand becomes notable, once until the next report; it must not block."""
        self._on_notable = wake

    def wanted(self, key: BucketKey, milli_mu: int, now_ns: int) -> None:
        """Notes work somebody asked for.

        Args:
            key: Whose.
            milli_mu: Its price, 0 or more.
            now_ns: Monotonic now.
        """
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._add(key, now_ns)
        if not tally.asked:
            tally.first_ns = now_ns
        tally.asked += milli_mu
        tally.asked_squares += milli_mu * milli_mu

    def used(self, key: BucketKey, milli_mu: int, now_ns: int) -> None:
        """Notes work that was settled. Arguments as in `wanted`."""
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._add(key, now_ns)
        tally.settled += milli_mu

    def short(self, key: BucketKey, now_ns: int) -> None:
        """Notes that quota is short for work that was noted as wanted: it was refused, or took more than half of what
        can be saved up. May make the demand notable.

        Args:
            key: Whose.
            now_ns: Monotonic now.
        """
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._add(key, now_ns)
        tally.short = True
        if self._notable:
            return
        rate = _surge_per_minute(*tally.rise(self._reported_ns, now_ns))
        if rate > tally.reported + tally.reported // NOTABLE_PART + _NEGLIGIBLE_MILLI_MU_PER_MINUTE:
            self._notable = True
            if self._on_notable is not None:
                self._on_notable()

    def report(
        self, now_ns: int, *, held: Mapping[BucketKey, int], waiting: Mapping[BucketKey, int]
    ) -> tuple[WantRow, ...]:
        """One row per (tenant, model) with demand lately or requests in flight, sorted by model then tenant.

        The next report tells what changed since this one, so there is one reader. The cost grows with the rows.

        Args:
            now_ns: Monotonic now.
            held: What requests in flight hold, mMU.
            waiting: What waits in the batch queue, mMU.
        """
        for key in (*held, *waiting):
            if key not in self._tallies:
                self._add(key, now_ns)
        since_ns = self._reported_ns
        elapsed_ns = max(0, now_ns - since_ns)
        fast_kept, fast_gain = _decay(FAST_HALF_LIFE_S, elapsed_ns)
        slow_kept, slow_gain = _decay(SLOW_HALF_LIFE_S, elapsed_ns)
        rows: list[WantRow] = []
        over: list[BucketKey] = []
        for key in self._sorted():
            tally = self._tallies[key]
            asked = tally.asked
            fast = tally.fast = tally.fast * fast_kept + asked * fast_gain
            wants = tally.slow = tally.slow * slow_kept + asked * slow_gain
            used = tally.used = tally.used * slow_kept + tally.settled * slow_gain
            if fast > wants:
                wants = fast
            if asked or tally.surge:
                surge = tally.rise(since_ns, now_ns)
                if tally.short:
                    wants = max(wants, _surge_per_minute(*surge))
                tally.surge, tally.surge_squares, tally.surge_ns = surge
            tally.asked = tally.asked_squares = tally.settled = 0
            tally.short = False
            if key in waiting:
                wants += waiting[key] / _WAITING_SERVED_WITHIN_MINUTES
            holds = held.get(key)
            if holds is None and wants < _NEGLIGIBLE_MILLI_MU_PER_MINUTE and used < _NEGLIGIBLE_MILLI_MU_PER_MINUTE:
                over.append(key)
                continue
            tally.reported = round(wants)
            rows.append(WantRow(key[0], key[1], tally.reported, round(used), holds or 0))
        for key in over:
            del self._tallies[key]
        if over:
            self._order = [key for key in self._sorted() if key in self._tallies]
        self._reported_ns = max(now_ns, since_ns)
        self._notable = False
        return tuple(rows)

    def _add(self, key: BucketKey, now_ns: int) -> _Tally:
        if not self._tallies:
            # Nothing was asked before the first thing that was.
            self._reported_ns = max(now_ns, self._reported_ns)
        tally = self._tallies[key] = _Tally()
        self._order = None
        return tally

    def _sorted(self) -> list[BucketKey]:
        if self._order is None:
            self._order = sorted(self._tallies, key=lambda key: (key[1], key[0]))
        return self._order


def _decay(half_life_s: float, elapsed_ns: int) -> tuple[float, float]:
    """What is left of a rate after an interval, and what each mMU of the interval adds to it per minute."""
    life_ns = half_life_s * _NS_PER_S / _LN2
    kept = math.exp(-elapsed_ns / life_ns)
    spread = -math.expm1(-elapsed_ns / life_ns) / elapsed_ns if elapsed_ns else 1.0 / life_ns
    return kept, spread * _NS_PER_MINUTE
