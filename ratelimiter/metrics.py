"""What the limiter tells Prometheus. Leases are read from the state machine at scrape, not followed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ratelimiter.core.lease import Limiter

WORKLOAD_SERIES_MAX: Final = 10_000
"""More tenants than this have no series of their own: a scrape must stay cheap."""

_SOME: Final = f"of the first {WORKLOAD_SERIES_MAX:,} only"


class RateLimiterMetrics(Collector):
    """The limiter's metrics.

    Args:
        registry: The process's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reports = Counter("fairlead_ratelimiter_reports", "Reports of routers", ["outcome"], registry=registry)
        self.demand_reports = Counter(
            "fairlead_ratelimiter_demand_reports", "Demand reports to the allocator", ["outcome"], registry=registry
        )
        self._writes = Counter("fairlead_ratelimiter_tables_written", "Lease tables stored", registry=registry)
        self._conflicts = Counter("fairlead_ratelimiter_conflicts", "Commits refused by the store", registry=registry)
        self._limiter: Limiter | None = None
        self._counted = (0, 0)
        registry.register(self)

    def follow(self, limiter: Limiter | None) -> None:
        """Shows the leases of this limiter from now on; None while not leading."""
        self._limiter = limiter
        self._counted = (0, 0)

    def count_store(self, writes: int, conflicts: int) -> None:
        """Takes over the book's counts, which start at 0 with every leadership."""
        self._writes.inc(writes - self._counted[0])
        self._conflicts.inc(conflicts - self._counted[1])
        self._counted = (writes, conflicts)

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        limiter = self._limiter
        yield _gauge("leader", "1 while leading", 1 if limiter else 0)
        yield _gauge("epoch", "Epoch while leading, else 0", limiter.epoch if limiter else 0)
        yield _gauge("routers", "Routers that hold or may get leases", len(limiter.routers()) if limiter else 0)
        labels = ["model", "tenant"]
        quota = GaugeMetricFamily(
            "fairlead_ratelimiter_quota_milli_mu_per_minute",
            f"Quota of a tenant, {_SOME}, milli-MU per minute",
            labels=labels,
        )
        leased = GaugeMetricFamily(
            "fairlead_ratelimiter_leased_milli_mu_per_minute",
            f"What all routers could be spending of it, {_SOME}, milli-MU per minute",
            labels=labels,
        )
        if limiter:
            for workload, granted in islice(limiter.quotas().items(), WORKLOAD_SERIES_MAX):
                quota.add_metric(workload, granted)
                leased.add_metric(workload, limiter.outstanding(workload))
        yield quota
        yield leased


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"fairlead_ratelimiter_{name}", meaning, value=value)
