"""What the allocator tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from capacity.core.allocate import ModelLedger


class CapacityMetrics:
    """The allocator's metrics.

    Args:
        registry: The process's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.epoch = Gauge("fairlead_capacity_epoch", "Epoch while leading, else 0", registry=registry)
        self.leader = Gauge("fairlead_capacity_leader", "1 while leading", registry=registry)
        self.rounds = Counter("fairlead_capacity_rounds", "Computations of the ledger", registry=registry)
        self.round_seconds = Histogram(
            "fairlead_capacity_round_seconds", "Duration of a computation with its writes", registry=registry
        )
        self.writes = Counter("fairlead_capacity_writes", "Keys written or deleted", registry=registry)
        self.conflicts = Counter("fairlead_capacity_conflicts", "Commits refused by the store", registry=registry)
        self.demand_reports = Counter("fairlead_capacity_demand_reports", "Demand reports taken", registry=registry)
        self.doubted = Gauge("fairlead_capacity_doubted", "1 while a collapse is doubted", ["model"], registry=registry)

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(
                f"fairlead_capacity_{name}_milli_mu_per_minute",
                f"{meaning}, milli-MU per minute",
                labels,
                registry=registry,
            )

        self._have = gauge("have", "Live capacity at target utilisation", "model")
        self._sold = gauge("sold", "Reservations", "model")
        self._used = gauge("used", "Settled lately", "model")
        self._shortfall = gauge("shortfall", "Reservations that live capacity does not cover", "model")
        self._granted = gauge("granted", "Quota of a tenant", "model", "tenant")

    def show(self, ledgers: Iterable[ModelLedger]) -> None:
        """Replaces the ledger's gauges."""
        for gauge in (self._have, self._sold, self._used, self._shortfall, self._granted):
            gauge.clear()
        for ledger in ledgers:
            self._have.labels(ledger.model_id).set(ledger.have)
            self._sold.labels(ledger.model_id).set(ledger.sold)
            self._used.labels(ledger.model_id).set(ledger.used)
            self._shortfall.labels(ledger.model_id).set(ledger.shortfall)
            for quota in ledger.quotas:
                self._granted.labels(ledger.model_id, quota.tenant_id).set(quota.granted)
