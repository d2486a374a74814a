"""What one router process may be spending: every table it was given and has neither replaced nor outlived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from common.clock import MonotonicNs
from ratelimiter.core.values import NO_TABLE, Table, Version, Want, Workload

# A want that moves by less than this part of itself moves no lease.
_NOTED_PART = 16
_NEVER = 1 << 63


@dataclass(frozen=True, slots=True)
class Issued:
    """The rates of one table, and when they end by the limiter's clock."""

    version: Version
    rates: Mapping[Workload, int]
    expires_ns: MonotonicNs


class Holdings:
    """What all processes together could be spending, by workload, kept up to date by every change."""

    def __init__(self) -> None:
        self._rates: dict[Workload, int] = {}

    def of(self, workload: Workload) -> int:
        """Milli-MU per minute."""
        return self._rates.get(workload, 0)

    def move(self, workload: Workload, by: int) -> None:
        """Adds to a workload's sum, or takes away."""
        rate = self._rates.get(workload, 0) + by
        if rate:
            self._rates[workload] = rate
        else:
            self._rates.pop(workload, None)


class Shelf:
    """The tables of one shard that a router process may be applying.

    A router applies one table of a shard at a time and only ever moves to a newer one, so what it can spend on a
    workload is the *largest* rate among the table it has acknowledged and everything issued after it, not their sum.

    Args:
        holdings: Where its part of the sums is kept up to date.

    Attributes:
        spendable: Largest rate per workload it may be spending now.
        table: The newest table this leader issued, None before the first.
        dirty: Workloads whose rate must be looked at again.
        unknown: The router may hold a table of an earlier process or leader: it must be replaced, even by an empty one.
    """

    def __init__(self, holdings: Holdings) -> None:
        self.spendable: dict[Workload, int] = {}
        self.table: Table | None = None
        self.dirty: set[Workload] = set()
        self.unknown = False
        self._holdings = holdings
        self._issued: list[Issued] = []

    @property
    def latest(self) -> Version:
        """The newest table it was given."""
        return self._issued[-1].version if self._issued else NO_TABLE

    @property
    def first_end_ns(self) -> int:
        """When the first of its tables ends; never where there are none."""
        return min((issued.expires_ns for issued in self._issued), default=_NEVER)

    def still(self, workload: Workload, after_ns: int, above: Version = NO_TABLE) -> int:
        """Its part of `spendable` that runs on after that instant, under tables above that version."""
        rates = (i.rates.get(workload, 0) for i in self._issued if i.expires_ns > after_ns and i.version > above)
        return max(rates, default=0)

    def rate(self, workload: Workload) -> int:
        """What the newest table grants."""
        return self._issued[-1].rates.get(workload, 0) if self._issued else 0

    def issue(self, issued: Issued) -> None:
        """Counts a table from now on; its version is above all before."""
        assert issued.version > self.latest
        self._issued.append(issued)
        for workload, rate in issued.rates.items():
            before = self.spendable.get(workload, 0)
            if rate > before:
                self.spendable[workload] = rate
                self._holdings.move(workload, rate - before)

    def renew(self, version: Version, expires_ns: MonotonicNs) -> None:
        """The newest table runs on."""
        if self._issued and self._issued[-1].version == version:
            self._issued[-1] = replace(self._issued[-1], expires_ns=max(self._issued[-1].expires_ns, expires_ns))

    def acknowledge(self, applied: Version) -> set[Workload]:
        """Forgets everything older than the table the router says it applies; returns what can now spend less."""
        return self._keep([issued for issued in self._issued if issued.version >= applied])

    def expire(self, now: MonotonicNs) -> set[Workload]:
        """Forgets the tables whose time is over; returns what can now spend less."""
        return self._keep([issued for issued in self._issued if issued.expires_ns > now])

    def release(self) -> set[Workload]:
        """Holds nothing any more; returns what it held."""
        return self._keep([])

    def _keep(self, kept: list[Issued]) -> set[Workload]:
        if len(kept) == len(self._issued):
            return set()
        self._issued = kept
        before, self.spendable = self.spendable, {}
        for issued in kept:
            for workload, rate in issued.rates.items():
                if rate > self.spendable.get(workload, 0):
                    self.spendable[workload] = rate
        less = {workload for workload, rate in before.items() if self.spendable.get(workload, 0) < rate}
        for workload in less:
            self._holdings.move(workload, self.spendable.get(workload, 0) - before[workload])
        return less


class Session:
    """One process of a router.

    Args:
        router_id: The router.
        incarnation_id: The process.
        holdings: Sums over all processes.

    Attributes:
        retired: A newer process of the same router has reported; this one gets nothing more.
        reported: Whether it has reported to this leader.
        report_number: Of the newest report, 0 before the first.
        expires_ns: When everything it was given so far has ended; renewed by every report.
        wants: As last reported.
        shelves: Its tables by shard.
        next_shard: Where the next report's turn begins, where one report could not look at all of them; else None.
        position: Where it stands among the live sessions, which the roster keeps in order.
    """

    def __init__(self, router_id: str, incarnation_id: str, holdings: Holdings) -> None:
        self.router_id = router_id
        self.incarnation_id = incarnation_id
        self.retired = False
        self.reported = False
        self.report_number = 0
        self.expires_ns = MonotonicNs(0)
        self.wants: Mapping[Workload, Want] = {}
        self.shelves: dict[int, Shelf] = {}
        self.next_shard: int | None = None
        self.position = 0
        self._holdings = holdings
        self._noted: dict[Workload, int] = {}
        self._none_ends_before_ns = _NEVER

    def shelf(self, shard: int) -> Shelf:
        """The tables of one shard; an empty shelf where there are none yet."""
        shelf = self.shelves.get(shard)
        if shelf is None:
            shelf = self.shelves[shard] = Shelf(self._holdings)
        return shelf

    def shards_in_turn(self) -> list[int]:
        """Its shards, beginning with `next_shard`, which is None afterwards."""
        first, self.next_shard = self.next_shard or 0, None
        return sorted(self.shelves, key=lambda shard: (shard < first, shard))

    @property
    def holds_something(self) -> bool:
        """Whether it may be spending anything."""
        return any(shelf.spendable for shelf in self.shelves.values())

    def issue(self, shard: int, issued: Issued) -> None:
        """Counts a table from now on; its version is above all before."""
        self.shelf(shard).issue(issued)
        self._none_ends_before_ns = min(self._none_ends_before_ns, issued.expires_ns)

    def expire(self, now: MonotonicNs) -> set[Workload]:
        """Forgets the tables whose time is over; returns what can now spend less."""
        if now < self._none_ends_before_ns:
            return set()
        less: set[Workload] = set().union(*(shelf.expire(now) for shelf in self.shelves.values()))
        self._none_ends_before_ns = min((shelf.first_end_ns for shelf in self.shelves.values()), default=_NEVER)
        return less

    def release(self) -> set[Workload]:
        """Holds nothing any more; returns what it held."""
        return set().union(*(shelf.release() for shelf in self.shelves.values()))

    def wanted(self, workload: Workload) -> int:
        """The rate that leases follow: what is wanted, apart from small moves."""
        return self._noted.get(workload, 0)

    def take_wants(self, wants: Mapping[Workload, Want]) -> set[Workload]:
        """Replaces the wants; returns the workloads of which it now wants notably more or less."""
        self.wants, self.reported = wants, True
        moved = {workload for workload in self._noted if workload not in wants}
        for workload in moved:
            del self._noted[workload]
        for workload, want in wants.items():
            noted = self._noted.get(workload)
            if noted is None or abs(want.wants - noted) * _NOTED_PART > max(want.wants, noted):
                self._noted[workload] = want.wants
                moved.add(workload)
        return moved
