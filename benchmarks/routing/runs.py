"""Simulations side by side in processes of their own, and what is kept of one."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from data_plane.router.core.accounts import Outcome
from simulation.arrivals import Workloads
from simulation.fleet import Simulation
from simulation.result import TOTAL, Result
from simulation.scenario import Scenario

_Job = TypeVar("_Job")
_Found = TypeVar("_Found")

SEEDS: Final = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of one simulation.

    Attributes:
        requests: Received.
        unserved: Refused, failed or cancelled.
        ttft_p50_s: Time to first token, seconds.
        ttft_p95_s: Its 95th percentile.
        ttft_p99_s: Its 99th percentile.
        tpot_p95_s: Time per output token, 95th percentile, seconds.
        cached_share: Prompt tokens found in prefix caches.
        served_milli_mu_per_minute: Work that one replica served on average.
    """

    requests: int
    unserved: int
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    tpot_p95_s: float
    cached_share: float
    served_milli_mu_per_minute: float


@functools.cache
def workloads() -> Workloads:
    """Those of the folder TRACES, or those that ship; each is read once per process."""
    folder = os.environ.get("TRACES", "")
    return Workloads(Path(folder) if folder else None)


def simulated(scenario: Scenario) -> Result:
    """Runs a scenario on the workloads of this benchmark."""
    return Simulation(scenario, workloads()).run()


def seen(result: Result) -> Seen:
    """What is kept of a run."""
    total = next(summary for summary in result.summaries() if summary.name == TOTAL)
    completed = sum(book.count(Outcome.COMPLETED) for book in result.books.values())
    lived_s = sum(track.lived_s for track in result.tracks)
    return Seen(
        total.received,
        total.received - completed,
        total.ttft.p50_s,
        total.ttft.p95_s,
        total.ttft.p99_s,
        total.tpot.p95_s,
        total.cached_share,
        sum(track.served_milli_mu for track in result.tracks) * 60.0 / lived_s,
    )


def side_by_side(
    work: Callable[[_Job], _Found], jobs: Sequence[_Job], told: Callable[[int, int], None] = lambda _done, _all: None
) -> list[_Found]:
    """Does jobs in as many processes as there are cores.

    Args:
        work: A function of a module, which processes can find by name.
        jobs: Its arguments.
        told: How many of how many are done.

    Returns:
        The results in the order of the jobs.
    """
    found = []
    context = multiprocessing.get_context("spawn")  # a progress display runs threads, which no fork survives
    with ProcessPoolExecutor(max(1, min(len(jobs), os.cpu_count() or 1)), mp_context=context) as pool:
        for each in pool.map(work, jobs):
            found.append(each)
            told(len(found), len(jobs))
    return found


def mean(values: Iterable[float]) -> float:
    """The mean over seeds; not a number where one is not."""
    return statistics.fmean(values)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean and, where there are several, the least and the greatest."""
    if any(math.isnan(value) for value in values):
        return "-"
    middle = f"{mean(values):.{digits}f}"
    return f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else middle
