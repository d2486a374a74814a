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
        self.failures = Counter(
            "fairlead_sharder_failures", "Looks at a model that failed unexpectedly", ["model"], registry=registry
        )
        self.replicas = Gauge("fairlead_sharder_replicas", "Replicas assigned", ["model"], registry=registry)
        self.compute_seconds = Histogram(
            "fairlead_sharder_compute_seconds",
            "Time to compute one model's assignment, without its write",
            ["model"],
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=registry,
        )
        self.moves = Counter(
            "fairlead_sharder_moves",
            "Replicas that came to a slice or left it; of one assignment the 64 largest",
            ["model", "cause"],
            registry=registry,
        )
        self.moved = Counter(
            "fairlead_sharder_moved_milli_mu_per_minute", "Load that changed its replica", ["model"], registry=registry
        )
        self.imbalance = Gauge(
            "fairlead_sharder_imbalance_ratio",
            "Largest over mean utilisation of the replicas; 0 while nothing is reported; leader only",
            ["model"],
            registry=registry,
        )
        self.frozen_slices = Gauge(
            "fairlead_sharder_frozen_slices", "Slices frozen after crashes they share", ["model"], registry=registry
        )
        self.recovered = Counter(
            "fairlead_sharder_recovered",
            "Assignments taken from agents and routers because the store had an older one or none",
            ["model"],
            registry=registry,
        )
        self.replicas_heard = Gauge(
            "fairlead_sharder_replicas_heard", "Replicas whose load reports arrive; leader only", registry=registry
        )
        self.replicas_silent = Gauge(
            "fairlead_sharder_replicas_silent",
            "Registered replicas whose load reports stopped; leader only",
            registry=registry,
        )
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

    def left(self) -> None:
        """Says that this instance does not lead: what only a leader knows is not true any more."""
        for gauge in (self.leader, self.epoch, self.replicas_heard, self.replicas_silent):
            gauge.set(0)
        for by_model in (self.imbalance, self.frozen_slices, self.replicas):
            by_model.clear()
