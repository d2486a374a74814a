"""bench-sim: how fast the fleet in virtual time is, and whether a request costs the same in a large fleet.

For every recorded trace in the folder TRACES (else the excerpt that ships): eight replicas and as many tenants at 65 %
of what the replicas can do. For the cost per request: the first trace on 8, 32, 128 and 512 replicas, each with its own
tenant and the same load, in a window after the fleet has filled; repeated in turn, the least of each counts, because a
busy machine only ever adds.

The bars hold CPU time: the simulator is one thread that never waits, so on a machine of its own CPU and wall time are
the same, and on a busy one the wall shows what its neighbours do. Wall time is printed beside it, and
`wall_requests_per_minute` is that of whole runs, from the construction of the fleet to the end of traffic.
"""

from __future__ import annotations

import gc
import itertools
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.report import Bar, Report
from fairlead.errors import InvalidArgumentError
from simulation.arrivals import Workloads
from simulation.fleet import Simulation
from simulation.scenario import EXCERPT, ModelSpec, Scenario, Settings, TenantSpec, make_scenario
from simulation.traces import Kind, left_out, recognise_folder

REPLICAS = 8
SIZES = (8, 32, 128, 512)
LOAD = 0.65
# Simulated seconds: the fleet fills, then it is measured for this long with each trace, and for that in every size.
FILL_S = 6.0
TRACE_WINDOW_S = 120.0
SIZE_WINDOW_S = 8.0
ROUNDS = 3
SMALL_TURNS = 8
# What the control side does grows with tenants times routers, and is a part of the cost.
REPLICAS_PER_ROUTER = 128

_PACKED = re.compile(r"(\.csv|\.jsonl?)?(\.gz)?$")

REQUESTS_PER_MINUTE_MIN = 50_000.0
COST_RATIO_MAX = 1.3


@dataclass(frozen=True, slots=True)
class Measured:
    """The measured part of one run.

    Attributes:
        requests: Received meanwhile.
        cpu_s: CPU time.
        wall_s: Time that went by.
        run_requests: Received in the whole run.
        run_wall_s: Time that went by from its construction on.
    """

    requests: int
    cpu_s: float
    wall_s: float
    run_requests: int
    run_wall_s: float

    @property
    def requests_per_minute(self) -> float:
        """Speed."""
        return self.requests * 60.0 / self.cpu_s

    @property
    def cost_us(self) -> float:
        """CPU time per request, microseconds."""
        return self.cpu_s * 1e6 / self.requests


def scenario(workload: str, replicas: int, duration_s: float, seed: int) -> Scenario:
    """As many tenants as replicas, each with room for its bursts."""
    tenant = TenantSpec(
        id="tenant",
        count=replicas,
        workload=workload,
        load=LOAD / replicas,
        reservation_mu_per_minute=100.0,
        burst_mu_per_minute=400.0,
    )
    routers = max(2, replicas // REPLICAS_PER_ROUTER)
    model = ModelSpec(id="chat", replicas=replicas, target_utilization=1.0)
    return make_scenario(Settings(duration_s=duration_s, routers=routers, seed=seed), [model], [tenant])


def measure(made: Scenario, workloads: Workloads) -> Measured:
    """Runs a scenario until its fleet has filled, and measures from there to the end of its traffic."""
    run_began_s = time.perf_counter()
    simulation = Simulation(made, workloads)
    simulation.run_to(FILL_S)
    gc.collect()
    before, cpu_began_s, wall_began_s = simulation.requests, time.process_time(), time.perf_counter()
    simulation.run_to(made.settings.duration_s)
    cpu_s, now_s = time.process_time() - cpu_began_s, time.perf_counter()
    return Measured(simulation.requests - before, cpu_s, now_s - wall_began_s, simulation.requests, now_s - run_began_s)


def main() -> None:
    """Measures and publishes."""
    gc.set_threshold(200_000, 50, 100)
    console = Console()
    folder = os.environ.get("TRACES", "")
    workloads = Workloads(Path(folder) if folder else None)
    names = traces(Path(folder), workloads, console) if folder else [EXCERPT]
    report = Report("sim")
    runs = []
    for name, short in zip(names, metric_names(names), strict=True):
        measured = measure(scenario(name, REPLICAS, FILL_S + TRACE_WINDOW_S, 1), workloads)
        console.print(
            f"{name}: {measured.requests:,} requests in {measured.cpu_s:.1f} s of CPU, {measured.wall_s:.1f} s by the "
            "clock",
            highlight=False,
        )
        runs.append(measured)
        report.add(f"{short}_requests_per_minute", measured.requests_per_minute)
    speeds = [run.requests_per_minute for run in runs]
    report.add("wall_requests_per_minute", 60 * sum(run.run_requests for run in runs) / sum(r.run_wall_s for r in runs))
    report.add("mean_requests_per_minute", sum(speeds) / len(speeds), Bar(REQUESTS_PER_MINUTE_MIN, at_most=False))
    # A trace of few and long requests pays for the control side's rounds, which come by the second.
    report.add("slowest_requests_per_minute", min(speeds), Bar(REQUESTS_PER_MINUTE_MIN, at_most=False))
    costs = _costs(
        lambda replicas, seed: scenario(names[0], replicas, FILL_S + SIZE_WINDOW_S, seed), workloads, console
    )
    for replicas, cost_us in costs.items():
        report.add(f"cost_per_request_at_{replicas}_replicas_us", cost_us)
    report.add("cost_ratio_512_to_8", costs[512] / costs[8], Bar(COST_RATIO_MAX))
    report.publish(console)


def _costs(make: Callable[[int, int], Scenario], workloads: Workloads, console: Console) -> dict[int, float]:
    costs = dict.fromkeys(SIZES, float("inf"))
    for seed in range(1, ROUNDS + 1):
        for replicas in SIZES:
            # A small fleet is run several times, so that each size is measured for a while.
            turns = max(1, SMALL_TURNS * SIZES[0] // replicas)
            runs = [measure(make(replicas, 100 * seed + turn), workloads) for turn in range(turns)]
            cost_us = sum(run.cpu_s for run in runs) * 1e6 / sum(run.requests for run in runs)
            costs[replicas] = min(costs[replicas], cost_us)
        console.print(f"round {seed}: " + ", ".join(f"{size}: {cost:.0f} us" for size, cost in costs.items()))
    return costs


def traces(folder: Path, workloads: Workloads, console: Console) -> list[str]:
    """The files of recorded requests in a folder; says which they are, and which others are left out and why.

    Raises:
        SystemExit: There is no such folder, or none of its files is one.
    """
    names = []
    try:
        found, skipped = recognise_folder(folder), [(each.path.name, each.reason) for each in left_out(folder)]
    except InvalidArgumentError as error:
        raise SystemExit(f"TRACES: {error.message}") from None
    for each in found:
        name = each.path.name
        try:
            if each.kind in (Kind.REQUESTS, Kind.PREFIXED_REQUESTS):
                workloads.recorded(name)
                names.append(name)
            else:
                skipped.append((name, f"holds {each.kind}, no recorded requests"))
        except InvalidArgumentError as error:
            skipped.append((name, error.message))
    for name, reason in sorted(skipped):
        console.print(f"left out {name}: {reason}", markup=False, highlight=False)
    if not names:
        raise SystemExit(f"no file of {folder} holds recorded requests: leave TRACES empty for the excerpt that ships")
    console.print(f"used: {', '.join(names)}", markup=False, highlight=False)
    return names


def metric_names(names: Sequence[str]) -> list[str]:
    """Files' names as parts of metrics' names, without the ends that say how they are packed; no two are equal."""
    chosen: list[str] = []
    for name in names:
        short, whole = (re.sub(r"\W", "_", each) for each in (_PACKED.sub("", name), name))
        candidates = itertools.chain((short, whole), (f"{whole}_{number}" for number in itertools.count(2)))
        chosen.append(next(each for each in candidates if each not in chosen))
    return chosen


if __name__ == "__main__":
    main()
