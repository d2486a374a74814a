"""Rates of admitted work from repeated readings of the routers' books: pure arithmetic.

The slope of the sum over time (least squares) rather than last minus first: both ends of a window cut through requests,
and one of them at each router is a percent of a tenant's minute here. Forty readings make that error small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.quota.books import Snapshot

_MINUTE_S = 60.0
Readings = Sequence[Mapping[int, Snapshot]]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The least-squares slope of y over x; NaN with fewer than two points.

    Args:
        points: (x, y).
    """
    count = len(points)
    if count < 2:
        return float("nan")
    middle_x, middle_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    square = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / square


def admitted_shares(readings: Readings, quotas: Mapping[str, int]) -> dict[str, float]:
    """Admitted work per time over quota, by tenant: settled at its true cost, in flight at what it holds."""
    return {
        tenant: slope([(at_s(books), sum(book.admitted(tenant) for book in books.values())) for books in readings])
        / (quota / _MINUTE_S)
        for tenant, quota in quotas.items()
    }


def settled_shares(readings: Readings, quotas: Mapping[str, int]) -> dict[str, float]:
    """Settled work per time over quota, by tenant."""
    return {
        tenant: slope([(at_s(books), sum(b.settled.get(tenant, 0) for b in books.values())) for books in readings])
        / (quota / _MINUTE_S)
        for tenant, quota in quotas.items()
    }


def mean_shares(readings: Readings, quotas: Mapping[str, int]) -> dict[str, float]:
    """Settled between the first and the last reading over quota x time, by tenant: for load that comes in bursts,
    of which a slope would not tell the mean."""
    first, last = readings[0], readings[-1]
    return {
        tenant: _settled_between(first, last, tenant) / (quota * _minutes(first, last))
        for tenant, quota in quotas.items()
    }


def worst_window(readings: Readings, quotas: Mapping[str, int], window_s: float) -> dict[str, float]:
    """The most that was settled in any window of this length over quota x its time, by tenant.

    Args:
        readings: In order.
        quotas: mMU per minute by tenant.
        window_s: Length, seconds; windows begin and end at readings.

    Returns:
        NaN where the readings are shorter than a window.
    """
    worst = dict.fromkeys(quotas, math.nan)
    for number, first in enumerate(readings):
        last = next((books for books in readings[number:] if at_s(books) - at_s(first) >= window_s), None)
        if last is None:
            break
        for tenant, quota in quotas.items():
            share = _settled_between(first, last, tenant) / (quota * _minutes(first, last))
            worst[tenant] = share if math.isnan(worst[tenant]) else max(worst[tenant], share)
    return worst


def greatest(values: Iterable[float]) -> float:
    """The greatest value; NaN where one is not a number or there is none: what was not measured meets no bar."""
    found = list(values)
    return max(found) if found and not any(map(math.isnan, found)) else math.nan


def least(values: Iterable[float]) -> float:
    """The least value; NaN as in `greatest`."""
    return -greatest(-value for value in values)


def total(shares: Mapping[str, float], quotas: Mapping[str, int]) -> float:
    """The share of all quotas together."""
    return sum(shares[tenant] * quota for tenant, quota in quotas.items()) / sum(quotas.values())


def _settled_between(first: Mapping[int, Snapshot], last: Mapping[int, Snapshot], tenant: str) -> int:
    sums = [sum(book.settled.get(tenant, 0) for book in books.values()) for books in (first, last)]
    return sums[1] - sums[0]


def _minutes(first: Mapping[int, Snapshot], last: Mapping[int, Snapshot]) -> float:
    return (at_s(last) - at_s(first)) / _MINUTE_S


def at_s(books: Mapping[int, Snapshot]) -> float:
    """When these books were read, monotonic seconds: the mean, they are read at about the same time."""
    return sum(book.at_s for book in books.values()) / len(books)
