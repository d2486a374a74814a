"""What one router process may be spending: every table it was given and has neither replaced nor outlived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.clock import MonotonicNs
from ratelimiter.core.values import NO_TABLE, Table, Version, Want, Workload


@dataclass(frozen=True, slots=True)
class Issued:
    """The rates of one table, and when they end by the limiter's clock."""

    version: Version
    rates: Mapping[Workload, int]
    expires_ns: MonotonicNs


class Session:
    """One process of a router.

    A router applies one table at a time and only ever moves to a newer one, so what it can spend on a workload is the
    *largest* rate among the table it has acknowledged and everything issued after it, not their sum.

    Args:
        router_id: The router.
        incarnation_id: The process.

    Attributes:
        retired: A newer process of the same router has reported; this one gets nothing more.
        reported: Whether it has reported to this leader.
        report_number: Of the newest report, 0 before the first.
        expires_ns: When everything it was given so far has ended; renewed by every report.
        wants: As last reported.
        table: The newest table this leader issued, None before the first.
        spendable: Largest rate per workload it may be spending now.
    """

    def __init__(self, router_id: str, incarnation_id: str) -> None:
        self.router_id = router_id
        self.incarnation_id = incarnation_id
        self.retired = False
        self.reported = False
        self.report_number = 0
        self.expires_ns = MonotonicNs(0)
        self.wants: Mapping[Workload, Want] = {}
        self.table: Table | None = None
        self.spendable: dict[Workload, int] = {}
        self._issued: list[Issued] = []

    @property
    def latest(self) -> Version:
        """The newest table it was given."""
        return self._issued[-1].version if self._issued else NO_TABLE

    def issue(self, issued: Issued) -> None:
        """Counts a table from now on; its version is above all before."""
        assert issued.version > self.latest
        self._issued.append(issued)
        for workload, rate in issued.rates.items():
            if rate > self.spendable.get(workload, 0):
                self.spendable[workload] = rate

    def acknowledge(self, applied: Version) -> set[Workload]:
        """Forgets everything older than the table the router says it applies; returns what can now spend less."""
        kept = [issued for issued in self._issued if issued.version >= applied]
        return self._keep(kept)

    def expire(self, now: MonotonicNs) -> set[Workload]:
        """Forgets the tables whose time is over; returns what can now spend less."""
        return self._keep([issued for issued in self._issued if issued.expires_ns > now])

    def release(self) -> None:
        """Holds nothing any more."""
        self._issued, self.spendable = [], {}

    def take_wants(self, wants: Mapping[Workload, Want]) -> set[Workload]:
        """Replaces the wants; returns the workloads of which it now wants another rate."""
        before, self.wants = self.wants, wants
        self.reported = True
        return {w for w in before.keys() | wants.keys() if _rate(before.get(w)) != _rate(wants.get(w))}

    def _keep(self, kept: list[Issued]) -> set[Workload]:
        if len(kept) == len(self._issued):
            return set()
        self._issued = kept
        before, self.spendable = self.spendable, {}
        for issued in kept:
            for workload, rate in issued.rates.items():
                if rate > self.spendable.get(workload, 0):
                    self.spendable[workload] = rate
        return {workload for workload, rate in before.items() if self.spendable.get(workload, 0) < rate}


def _rate(want: Want | None) -> int:
    return want.wants if want else 0
