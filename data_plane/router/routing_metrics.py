"""Renders how requests found their replicas as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.clock import NS_PER_S
from data_plane.router.assignments import Assignments
from data_plane.router.metrics import PREFIX
from data_plane.router.routing import Found
from data_plane.router.routing_counts import ModelCounts, RoutingCounts
from data_plane.router.waiting_desk import WaitingDesk

_BY_MODEL: Final[tuple[tuple[str, str, Callable[[ModelCounts], float]], ...]] = (
    (
        "picks_sticky",
        "Picks of a replica for its cache or the session, over one with less to do.",
        lambda counts: counts.sticky,
    ),
    ("picks_panic", "Picks that ignored health, as too few replicas had it.", lambda counts: counts.panic),
    ("picked_prompt_tokens", "Prompt tokens, estimated, of all picks.", lambda counts: counts.prompt_tokens),
    (
        "picked_cached_tokens",
        "Those expected in the picked replica's prefix cache.",
        lambda counts: counts.cached_tokens,
    ),
    ("room_waits", "Requests that waited here for a replica with room.", lambda counts: counts.waits),
    ("room_waited_seconds", "How long they waited, in all.", lambda counts: counts.waited_ns / NS_PER_S),
    ("deadline_refusals", "Requests refused as no replica could answer in time.", lambda counts: counts.too_late),
)


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
        models = self._counts.by_model
        picks = CounterMetricFamily(PREFIX + "picks", "Replicas picked, by the rule.", labels=["model", "policy"])
        for model_id, counts in models.items():
            for policy, count in counts.picks.items():
                picks.add_metric([model_id, policy], count)
        yield picks
        for name, text, count_of in _BY_MODEL:
            family = CounterMetricFamily(PREFIX + name, text, labels=["model"])
            for model_id, counts in models.items():
                family.add_metric([model_id], count_of(counts))
            yield family
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
