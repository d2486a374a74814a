"""What the allocator tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

from capacity.core.values import ModelLedger

# More tenants than this have no series of their own: a scrape must stay cheap. ListCapacity has them all.
TENANT_SERIES_MAX = 10_000

_PER_MODEL: Sequence[tuple[str, str, Callable[[ModelLedger], int]]] = (
    ("have", "Live capacity at target utilisation", lambda ledger: ledger.have),
    ("sold", "Reservations", lambda ledger: ledger.sold),
    ("used", "Settled lately", lambda ledger: ledger.used),
    ("shortfall", "Reservations that live capacity does not cover", lambda ledger: ledger.shortfall),
    ("sellable", "What may be sold: have less the largest failure domain", lambda ledger: ledger.sellable),
    (
        "uncovered_after_loss",
        "Reservations that would not be covered after the loss of the largest failure domain",
        lambda ledger: ledger.uncovered_after_loss,
    ),
)


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
        self._ledgers: Sequence[ModelLedger] = ()
        self._doubted: Collection[str] = ()
        registry.register(self)

    def show(self, ledgers: Sequence[ModelLedger], doubted: Collection[str]) -> None:
        """Replaces the ledgers, and the models whose collapse is doubted, that `collect` tells of."""
        self._ledgers, self._doubted = ledgers, doubted

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The ledgers' gauges, made when they are scraped: a round costs nothing here."""
        for name, meaning, value in _PER_MODEL:
            family = _family(name, meaning, ["model"])
            for ledger in self._ledgers:
                family.add_metric([ledger.model_id], value(ledger))
            yield family
        doubted = GaugeMetricFamily("fairlead_capacity_doubted", "1 while a collapse is doubted", labels=["model"])
        for ledger in self._ledgers:
            doubted.add_metric([ledger.model_id], ledger.model_id in self._doubted)
        yield doubted
        yield _granted(self._ledgers)


def _granted(ledgers: Iterable[ModelLedger]) -> GaugeMetricFamily:
    family = _family("granted", f"Quota of a tenant, of the first {TENANT_SERIES_MAX:,} only", ["model", "tenant"])
    left = TENANT_SERIES_MAX
    for ledger in ledgers:
        tenants = ledger.columns.sold.tenants[:left]
        for tenant, granted in zip(tenants, ledger.columns.granted[:left].tolist(), strict=True):
            family.add_metric([ledger.model_id, tenant], granted)
        left -= len(tenants)
    return family


def _family(name: str, meaning: str, labels: Sequence[str]) -> GaugeMetricFamily:
    full_name = f"fairlead_capacity_{name}_milli_mu_per_minute"
    return GaugeMetricFamily(full_name, f"{meaning}, milli-MU per minute", labels=labels)
