"""The routers' books at one moment, and what happened between two of them: pure arithmetic."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

_SAMPLE: Final = re.compile(r"(?m)^fairlead_router_(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
_MINUTE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One router's books.

    Attributes:
        at_s: When, on the machine's monotonic clock, seconds.
        settled: Charged since its start, mMU by tenant.
        held: Held by requests in flight, mMU by tenant.
        lease_rates: Refill in force, mMU per minute by tenant.
        open_holds: Requests that hold quota.
        received: Requests that arrived.
        ended: Requests that ended, by outcome.
    """

    at_s: float
    settled: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    lease_rates: Mapping[str, int] = field(default_factory=dict)
    open_holds: int = 0
    received: int = 0
    ended: Mapping[str, int] = field(default_factory=dict)

    def admitted(self, tenant: str) -> int:
        """What was admitted since the start: settled at its true cost, in flight at what it holds."""
        return self.settled.get(tenant, 0) + self.held.get(tenant, 0)


@dataclass(frozen=True, slots=True)
class Shares:
    """What became of one tenant's quota in a window.

    Attributes:
        admitted: Settled, and what more is held at the end than at the beginning, over quota x time.
        settled: Settled over quota x time.
    """

    admitted: float
    settled: float


def parse(text: str, at_s: float) -> Snapshot:
    """Reads a router's metrics page.

    Args:
        text: Prometheus text.
        at_s: When it was read.
    """
    by_tenant: dict[str, Counter[str]] = {}
    totals: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    for match in _SAMPLE.finditer(text):
        name, value = match["name"], round(float(match["value"]))
        labels = dict(_LABEL.findall(match["labels"] or ""))
        totals[name] += value
        if "tenant" in labels:
            by_tenant.setdefault(name, Counter())[labels["tenant"]] += value
        if name == "requests_finished_total":
            ended[labels["outcome"]] += value
    return Snapshot(
        at_s=at_s,
        settled=by_tenant.get("settled_milli_mu_total", {}),
        held=by_tenant.get("held_milli_mu", {}),
        lease_rates=by_tenant.get("lease_milli_mu_per_minute", {}),
        open_holds=totals["open_holds"],
        received=totals["requests_received_total"],
        ended=ended,
    )


def shares(
    before: Mapping[int, Snapshot], after: Mapping[int, Snapshot], quotas: Mapping[str, int]
) -> dict[str, Shares]:
    """What part of each tenant's quota was admitted and settled between two moments.

    Args:
        before: Books by router; one that has none began empty and does not count for the time.
        after: Later books; a router that is missing here was gone for the whole window and does not count at all.
        quotas: mMU per minute by tenant.
    """
    both = [(before[number], snapshot) for number, snapshot in after.items() if number in before]
    window_s = sum(last.at_s - first.at_s for first, last in both) / len(both)
    pairs = [(before.get(number, Snapshot(0.0)), snapshot) for number, snapshot in after.items()]
    found = {}
    for tenant, quota in quotas.items():
        due = quota * window_s / _MINUTE_S
        admitted = sum(last.admitted(tenant) - first.admitted(tenant) for first, last in pairs)
        settled = sum(last.settled.get(tenant, 0) - first.settled.get(tenant, 0) for first, last in pairs)
        found[tenant] = Shares(admitted / due, settled / due)
    return found


def lease_sums(snapshots: Iterable[Snapshot]) -> Counter[str]:
    """Refill in force over all routers, mMU per minute by tenant."""
    sums: Counter[str] = Counter()
    for snapshot in snapshots:
        sums.update(snapshot.lease_rates)
    return sums


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed; NaN without values."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
