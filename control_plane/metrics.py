"""What the control plane tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ControlPlaneMetrics:
    """The control plane's metrics.

    Args:
        registry: The process's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.mutations = Counter(
            "fairlead_control_plane_mutations",
            "Mutations of the admin API; outcome is done, checked (validate_only) or the reason of the refusal",
            ["method", "outcome"],
            registry=registry,
        )
        self.leader = Gauge("fairlead_sharder_leader", "1 while this instance assigns", registry=registry)
        self.epoch = Gauge("fairlead_sharder_epoch", "Epoch while leading, else 0", registry=registry)
        self.rounds = Counter("fairlead_sharder_rounds", "Looks at the fleet", registry=registry)
        self.round_seconds = Histogram(
            "fairlead_sharder_round_seconds", "Duration of a look with its writes", registry=registry
        )
        self.assignments = Counter("fairlead_sharder_assignments", "Assignments written", ["model"], registry=registry)
        self.conflicts = Counter("fairlead_sharder_conflicts", "Commits refused by the store", registry=registry)
        self.replicas = Gauge("fairlead_sharder_replicas", "Replicas assigned", ["model"], registry=registry)
        self.profile_drift_ratio = Gauge(
            "fairlead_profile_drift_ratio",
            "Time that production takes over time that the profile says; 0 where nothing is known; leader only",
            ["model"],
            registry=registry,
        )
        self.profile_drifting = Gauge(
            "fairlead_profile_drifting",
            "1 while a model's profile is found not to be true any more; leader only",
            ["model"],
            registry=registry,
        )
