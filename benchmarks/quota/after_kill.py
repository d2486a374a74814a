"""What survivors admit after a router was killed, and whether they have the whole quota again: pure arithmetic.

The dead router's leases run on without it until they expire, and may have been spent: nobody can know. So they count as
spent, at their rate for as long as they are sure to run, on top of what the survivors admit. Survivors that take their
place before they have expired then show as over the quota.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

from benchmarks.quota import rates
from benchmarks.quota.bars import LEASE_S, REPORT_S, ROUNDING_PERCENT
from benchmarks.quota.books import Snapshot, lease_sums

SURE_S = LEASE_S - REPORT_S
"""A lease runs from the report that it answers, and the last one is at most a report interval old at the kill."""
WINDOW_S = 2 * LEASE_S
SHORT_S = 5.0


@dataclass(frozen=True, slots=True)
class Kill:
    """A router that was killed.

    Attributes:
        at_s: When, on the machine's monotonic clock, seconds.
        victim: Its books right before.
        quotas: mMU per minute by tenant.
        readings: The survivors' books from then on, in order.
    """

    at_s: float
    victim: Snapshot
    quotas: Mapping[str, int]
    readings: rates.Readings

    def spent(self, tenant: str, at_s: float) -> float:
        """What the dead router's lease is worth from the kill to a moment, mMU."""
        return self.victim.lease_rates.get(tenant, 0) * max(0.0, min(SURE_S, at_s - self.at_s)) / 60

    def admitted(self, tenant: str, books: Mapping[int, Snapshot]) -> float:
        """What survivors admitted since their start, and the dead router's lease as if it were spent, mMU."""
        return sum(book.admitted(tenant) for book in books.values()) + self.spent(tenant, rates.at_s(books))

    def shares(self, window_s: float) -> dict[str, float]:
        """The slope of that from the kill on, over the quota, by tenant.

        Args:
            window_s: For how long from the kill.
        """
        chosen = [books for books in self.readings if rates.at_s(books) <= self.at_s + window_s]
        return {
            tenant: rates.slope([(rates.at_s(books), self.admitted(tenant, books)) for books in chosen]) / (quota / 60)
            for tenant, quota in self.quotas.items()
        }

    def worst_short_share(self) -> float:
        """The most that all tenants were admitted in any window of SHORT_S within WINDOW_S, over their quotas."""
        points = [
            (rates.at_s(books), sum(self.admitted(tenant, books) for tenant in self.quotas))
            for books in self.readings
            if rates.at_s(books) <= self.at_s + WINDOW_S
        ]
        found = []
        for number, (begin_s, before) in enumerate(points):
            last = next(((end_s, after) for end_s, after in points[number:] if end_s - begin_s >= SHORT_S), None)
            if last is not None:
                found.append((last[1] - before) / ((last[0] - begin_s) * sum(self.quotas.values()) / 60))
        return max(found, default=nan)

    def whole_again_s(self) -> float:
        """How long after the kill the survivors' leases of every tenant add up to its quota; NaN if they never do."""
        for books in self.readings:
            if max(self._missing(books).values()) <= ROUNDING_PERCENT / 100:
                return rates.at_s(books) - self.at_s
        return nan

    def leaked(self, begin_s: float, end_s: float) -> float:
        """The part of its quota that no router is leased, of the tenant that lacks most; NaN without readings.

        Leases move between routers, and one gives before another takes: what is missing in every reading is leaked.

        Args:
            begin_s: Seconds after the kill.
            end_s: The same.
        """
        missing = [self._missing(books) for books in self.readings if begin_s <= rates.at_s(books) - self.at_s <= end_s]
        if not missing:
            return nan
        return max(min(each[tenant] for each in missing) for tenant in self.quotas)

    def _missing(self, books: Mapping[int, Snapshot]) -> dict[str, float]:
        sums = lease_sums(books.values())
        return {tenant: 1 - sums[tenant] / quota for tenant, quota in self.quotas.items()}
