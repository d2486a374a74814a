"""What the limiter tells Prometheus."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

import ratelimiter.metrics
from common.clock import NS_PER_S
from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.lease import Limiter, Terms
from ratelimiter.core.values import Quota, Workload
from ratelimiter.metrics import RateLimiterMetrics


def test_a_scrape_stays_small_however_many_tenants_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotas and leases have series up to a bound, of the same workloads; a limiter that leads no more has none."""
    monkeypatch.setattr(ratelimiter.metrics, "WORKLOAD_SERIES_MAX", 3)
    metrics = RateLimiterMetrics(CollectorRegistry())
    limiter = Limiter(1, Terms(10 * NS_PER_S, burst_window_s=30, burst_min=MilliModelUnits(2_000)))
    limiter.set_quotas({Workload("m", f"t{number}"): Quota(Rate(1_000), Rate(1_000)) for number in range(5)})

    def shown() -> list[list[str]]:
        families = [family for family in metrics.collect() if family.name.endswith("per_minute")]
        return [[sample.labels["tenant"] for sample in family.samples] for family in families]

    metrics.follow(limiter)
    assert shown() == [["t0", "t1", "t2"]] * 2
    metrics.follow(None)
    assert shown() == [[], []]
