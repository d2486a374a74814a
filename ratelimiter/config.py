"""Settings of the rate limiter."""

from __future__ import annotations

from dataclasses import dataclass

from common.clock import NS_PER_S
from common.config import CommonConfig, setting
from model_units.units import MilliModelUnits
from ratelimiter.core.lease import Terms

SERVICE = "ratelimiter"


@dataclass(frozen=True, kw_only=True)
class RateLimiterConfig(CommonConfig):
    """Everything `python -m ratelimiter` can be told."""

    election_ttl_s: int = setting(5, "a dead leader is replaced after about this long, seconds", minimum=1, maximum=60)
    lease_s: float = setting(10.0, "how long a lease runs without the limiter, seconds", minimum=1, maximum=600)
    refresh_s: float = setting(1.0, "how often routers should report, seconds; far below lease_s", minimum=0.05)
    burst_window_s: int = setting(30, "burst of a lease is its rate times this, seconds", minimum=1, maximum=3600)
    burst_min_milli_mu: int = setting(
        2000, "least burst at each router, for small quotas; at most what the whole quota saves up, milli-MU", minimum=0
    )
    debounce_ms: int = setting(100, "changes closer together than this are pushed at once", minimum=0, maximum=5000)
    demand_interval_s: float = setting(1.0, "how often demand goes to the capacity allocator, seconds", minimum=0.1)

    def terms(self) -> Terms:
        """How leases are granted."""
        return Terms(round(self.lease_s * NS_PER_S), self.burst_window_s, MilliModelUnits(self.burst_min_milli_mu))
