"""Renders the router's books as Prometheus metrics, at scrape and not before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from common.clock import NS_PER_S, Clock
from data_plane.router.batch_desk import BatchDesk
from data_plane.router.core.accounts import Accounts, Histogram
from data_plane.router.core.decisions import DecisionLog
from data_plane.router.core.fleet import Fleet
from data_plane.router.core.holds import Holds
from data_plane.router.exchange import Receipt
from data_plane.router.usage_desk import UsageDesk

PREFIX = "fairlead_router_"


class RouterCollector(Collector):
    """A prometheus_client collector over plain integers.

    Args:
        accounts: Counters.
        holds: Buckets.
        fleet: Replicas.
        desk: Waiting batch requests.
        decisions: Decisions that can be asked for.
        usage: What was charged and is on its way to the store.
        models: Ids of the models there are, for gauges.
        clock: Monotonic time.
    """

    def __init__(
        self,
        *,
        accounts: Accounts,
        holds: Holds,
        fleet: Fleet,
        desk: BatchDesk,
        decisions: DecisionLog[Receipt],
        usage: UsageDesk,
        models: Callable[[], Iterable[str]],
        clock: Clock,
    ) -> None:
        self._accounts = accounts
        self._holds = holds
        self._fleet = fleet
        self._desk = desk
        self._decisions = decisions
        self._usage = usage
        self._models = models
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        yield from self._requests()
        yield from self._work()
        yield from self._gauges()
        yield from self._memory()
        accounts = self._accounts
        yield _histogram("time_to_first_token_seconds", "Arrival to first token.", accounts.time_to_first_token_s)
        yield _histogram("time_per_output_token_seconds", "Mean gap per request.", accounts.time_per_output_token_s)

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are found at the first scrape, and registering must not read the books."""
        return ()

    def _requests(self) -> Iterator[Metric]:
        received = CounterMetricFamily(PREFIX + "requests_received", "Requests that arrived.")
        received.add_metric([], self._accounts.received)
        yield received
        finished = CounterMetricFamily(
            PREFIX + "requests_finished",
            "Requests by their one outcome.",
            labels=["tenant", "model", "outcome", "reason"],
        )
        for (tenant_id, model_id, outcome, reason), count in self._accounts.finished.items():
            finished.add_metric([tenant_id, model_id, outcome.value, reason], count)
        yield finished
        retries = CounterMetricFamily(PREFIX + "retries", "Attempts on another replica.", labels=["model", "reason"])
        for labels, count in self._accounts.retries.items():
            retries.add_metric(list(labels), count)
        yield retries
        quarantined = CounterMetricFamily(
            PREFIX + "quarantined", "Prompts refused for a while: two replicas were lost with them.", labels=["model"]
        )
        for model_id, count in self._accounts.quarantined.items():
            quarantined.add_metric([model_id], count)
        yield quarantined

    def _work(self) -> Iterator[Metric]:
        for name, text, counts in (
            ("settled_milli_mu", "Charged work, thousandths of a model unit.", self._accounts.settled_milli_mu),
            ("input_tokens", "Prompt tokens of answered requests.", self._accounts.input_tokens),
            ("output_tokens", "Tokens relayed.", self._accounts.output_tokens),
        ):
            family = CounterMetricFamily(PREFIX + name, text, labels=["tenant", "model"])
            for labels, count in counts.items():
                family.add_metric(list(labels), count)
            yield family

    def _gauges(self) -> Iterator[Metric]:
        now_ns = self._clock.monotonic_ns()
        yield GaugeMetricFamily(PREFIX + "requests_in_flight", "Received, not finished.", self._accounts.in_flight)
        yield GaugeMetricFamily(PREFIX + "open_holds", "Requests that hold quota.", self._holds.open_holds)
        held = GaugeMetricFamily(PREFIX + "held_milli_mu", "Held by requests in flight.", labels=["tenant", "model"])
        for labels, amount in self._holds.held().items():
            held.add_metric(list(labels), amount)
        yield held
        leased = GaugeMetricFamily(
            PREFIX + "lease_milli_mu_per_minute", "Refill in force: this router's part.", labels=["tenant", "model"]
        )
        for labels, rate in self._holds.rates(now_ns).items():
            leased.add_metric(list(labels), rate)
        yield leased
        waiting = GaugeMetricFamily(
            PREFIX + "batch_waiting_milli_mu", "Batch work that waits for quota.", labels=["tenant", "model"]
        )
        for labels, amount in self._desk.waiting().items():
            waiting.add_metric(list(labels), amount)
        yield waiting
        replicas = GaugeMetricFamily(PREFIX + "replicas", "Known replicas by belief.", labels=["model", "health"])
        for model_id in self._models():
            for health, count in self._fleet.count(model_id, now_ns).items():
                replicas.add_metric([model_id, health.value], count)
        yield replicas

    def _memory(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            PREFIX + "decisions_kept", "Requests whose decisions can be asked for.", len(self._decisions)
        )
        lag_s = self._usage.book.lag_ns(self._clock.monotonic_ns()) / NS_PER_S
        yield GaugeMetricFamily(
            PREFIX + "usage_publish_lag_seconds", "Age of the oldest settlement that is not stored.", lag_s
        )
        journal = self._usage.journal
        lost = CounterMetricFamily(
            PREFIX + "usage_journal_failures",
            "Settlements that the journal could not take (they are counted still), and damaged files found.",
        )
        lost.add_metric([], journal.lost if journal is not None else 0)
        yield lost


def _histogram(name: str, text: str, by_model: dict[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, text, labels=["model"])
    for model_id, histogram in by_model.items():
        total, buckets = 0, []
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric([model_id], buckets, histogram.sum)
    return family
