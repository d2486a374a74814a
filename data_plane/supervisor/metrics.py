"""The supervisor's own metrics, and one page of those of all workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from data_plane.supervisor.core.crew import Crew, Phase, Why
from data_plane.supervisor.naming import worker_name


class SupervisorCollector(Collector):
    """Workers, why some were replaced, and rolls.

    Args:
        crew: The workers.
        now_s: The crew's clock.

    Attributes:
        replaced: Ends of workers by reason: `died`, `asked`, or why they were killed.
        rolls: Rolls by how they ended: `done` or `failed`.
    """

    def __init__(self, crew: Crew, now_s: Callable[[], float]) -> None:
        self._crew = crew
        self._now_s = now_s
        self.replaced: Counter[str] = Counter()
        self.rolls: Counter[str] = Counter()

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        workers = self._crew.workers()
        count = Counter(worker.phase for worker in workers)
        phases = GaugeMetricFamily("fairlead_supervisor_workers", "Worker processes by phase", labels=["phase"])
        for phase in Phase:
            phases.add_metric([phase.value], count[phase])
        yield phases
        slots = GaugeMetricFamily("fairlead_supervisor_slots", "Workers there should be")
        slots.add_metric([], len(self._crew.slots))
        yield slots
        now_s = self._now_s()
        ages = GaugeMetricFamily(
            "fairlead_supervisor_worker_ready_seconds", "How long the slot's worker has been ready", labels=["worker"]
        )
        for worker in workers:
            if worker.phase is Phase.READY:
                ages.add_metric([worker_name(worker.slot, worker.turn)], now_s - worker.since_s)
        yield ages
        replaced = CounterMetricFamily(
            "fairlead_supervisor_worker_ends", "Workers that ended, by reason", labels=["reason"]
        )
        for reason in ("died", "asked", *(why.value for why in Why)):
            replaced.add_metric([reason], self.replaced[reason])
        yield replaced
        rolls = CounterMetricFamily("fairlead_supervisor_rolls", "Rolling restarts by outcome", labels=["outcome"])
        for outcome in ("done", "failed"):
            rolls.add_metric([outcome], self.rolls[outcome])
        yield rolls


def merged(pages: Mapping[str, str]) -> str:
    """Makes one page of several in Prometheus' text format: every sample gets the label `worker`.

    Args:
        pages: By worker; "" for what gets no label.

    Returns:
        Each family once, with the samples of all workers together, as the format wants it.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, page in pages.items():
        family = ""
        for line in page.splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                if line not in head and len(head) < 2:
                    head.append(line)
            elif line:
                samples.setdefault(family, []).append(_labelled(line, worker))
    return "".join(f"{line}\n" for line in _in_order(heads, samples))


def _in_order(heads: Mapping[str, list[str]], samples: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for family, head in heads.items():
        yield from head
        yield from samples.get(family, ())


def _labelled(sample: str, worker: str) -> str:
    if not worker:
        return sample
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{worker="{worker}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{worker="{worker}"}} {value}'
