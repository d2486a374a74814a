"""Renders how requests found their replicas as Prometheus metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.clock import NS_PER_S
from data_plane.router.assignments import Assignments
from data_plane.router.metrics import PREFIX
from data_plane.router.routing import Found
from data_plane.router.routing_counts import RoutingCounts
from data_plane.router.waiting_desk import WaitingDesk


class RoutingCollector(Collector):
    """A prometheus_client collector over what routing counts.

    Args:
        counts: Picks, waits and refusals.
        desk: Who waits for room.
        assignments: What is in force.
    """

    def __init__(self, counts: RoutingCounts, desk: WaitingDesk[Found], assignments: Assignments) -> None:
        self._counts = counts
        self._desk = desk
        self._assignments = assignments

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        counts = self._counts
        picks = CounterMetricFamily(PREFIX + "picks", "Replicas picked, by the rule.", labels=["model", "policy"])
        for labels, count in counts.picks.items():
            picks.add_metric(list(labels), count)
        yield picks
        by_model: tuple[tuple[str, str, Counter[str]], ...] = (
            (
                "picks_sticky",
                "Picks of a replica for its cache or the session, over one with less to do.",
                counts.sticky,
            ),
            ("picks_panic", "Picks that ignored health, as too few replicas had it.", counts.panic),
            ("picked_prompt_tokens", "Prompt tokens, estimated, of all picks.", counts.prompt_tokens),
            ("picked_cached_tokens", "Those expected in the picked replica's prefix cache.", counts.cached_tokens),
            ("room_waits", "Requests that waited here for a replica with room.", counts.waits),
            ("deadline_refusals", "Requests refused as no replica could answer in time.", counts.too_late),
        )
        for name, text, count_of in by_model:
            yield _by_model(CounterMetricFamily(PREFIX + name, text, labels=["model"]), count_of)
        waited = CounterMetricFamily(PREFIX + "room_waited_seconds", "How long they waited, in all.", labels=["model"])
        for model_id, waited_ns in counts.waited_ns.items():
            waited.add_metric([model_id], waited_ns / NS_PER_S)
        yield waited
        waiting = GaugeMetricFamily(
            PREFIX + "room_waiting", "Requests that wait for a replica with room.", labels=["model"]
        )
        for model_id, tenants in self._desk.waiting().items():
            waiting.add_metric([model_id], sum(tenants.values()))
        yield waiting
        age = GaugeMetricFamily(
            PREFIX + "assignment_age_seconds", "Since the assignment in force was computed.", labels=["model"]
        )
        for model_id, age_s in self._assignments.ages_s().items():
            age.add_metric([model_id], age_s)
        yield age
        generation = GaugeMetricFamily(
            PREFIX + "assignment_generation",
            "Number of the assignment in force: about the ms it was made.",
            labels=["model"],
        )
        for model_id, held in self._assignments.held().items():
            generation.add_metric([model_id], held.number)
        yield generation

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the books."""
        return ()


def _by_model(family: CounterMetricFamily, counts: Counter[str]) -> Metric:
    for model_id, count in counts.items():
        family.add_metric([model_id], count)
    return family
