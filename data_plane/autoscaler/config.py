"""Settings of the autoscaler."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import CommonConfig, setting
from data_plane.autoscaler.core.seat import ScalePolicy

SERVICE = "autoscaler"
_DEFAULT = ScalePolicy()


@dataclass(frozen=True, kw_only=True)
class AutoscalerConfig(CommonConfig):
    """What the autoscaler needs to know."""

    state_dir: str = setting("build/run/replicas", "folder of the seat files; must outlive this process")
    log_dir: str = setting("build/run/logs", "folder of the replicas' logs")
    election_ttl_s: int = setting(5, "a dead leader is replaced after about this long, seconds", minimum=1, maximum=60)
    look_interval_s: float = setting(1.0, "longest pause between two looks", minimum=0.05, maximum=60)
    stable_window_s: float = setting(
        _DEFAULT.stable_window_s, "a need must be lower for this long before a replica is removed", minimum=0
    )
    removal_interval_s: float = setting(
        _DEFAULT.removal_interval_s, "at most one replica, or a tenth, begins to be removed per interval", minimum=0
    )
    drain_time_max_s: float = setting(
        _DEFAULT.drain_time_max_s, "a replica that drains for longer is stopped with its requests", minimum=0
    )
    loading_limit_s: float = setting(
        _DEFAULT.loading_limit_s, "a replica that loads for longer is stuck and started again", minimum=1
    )
    lost_patience_s: float = setting(
        _DEFAULT.lost_patience_s, "a replica that lost its registration for longer is started again", minimum=1
    )
    agent_stop_grace_s: float = setting(
        45.0, "seconds a replica gets between SIGTERM and SIGKILL; more than its drain_grace_s", minimum=0
    )

    def policy(self) -> ScalePolicy:
        """How patient the scaling decision is."""
        return ScalePolicy(
            stable_window_s=self.stable_window_s,
            removal_interval_s=self.removal_interval_s,
            drain_time_max_s=self.drain_time_max_s,
            loading_limit_s=self.loading_limit_s,
            lost_patience_s=self.lost_patience_s,
        )
