"""Settings of the capacity allocator."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import CommonConfig, setting

SERVICE = "capacity"


@dataclass(frozen=True, kw_only=True)
class CapacityConfig(CommonConfig):
    """Everything `python -m capacity` can be told."""

    election_ttl_s: int = setting(5, "a dead leader is replaced after about this long, seconds", minimum=1, maximum=60)
    debounce_ms: int = setting(
        100, "pause between computations; a change after a longer one is computed at once", minimum=0, maximum=5000
    )
    round_interval_s: float = setting(2.0, "longest time between two computations", minimum=0.1, maximum=60)
    demand_interval_s: float = setting(
        1.0, "how often the rate limiter should report demand, seconds", minimum=0.1, maximum=60
    )
    takeover_caution_s: float = setting(
        10.0, "after a takeover, how long a collapse of live capacity is doubted before quotas follow", minimum=0
    )
