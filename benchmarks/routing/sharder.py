"""Whether the sharder keeps a fleet even, moves little for it, and is fast.

Simulated, on replicas of two speeds: how even utilisation is, how long a tenant whose traffic trebles leaves it uneven,
how much moves for nothing while every tenant's rate wanders by a fifth, and how many requests land on a replica that
the newest assignment does not give them. The Assigner by itself, on exact loads: what a lost replica and a rolling
restart move, and what a round takes.

Utilisation is averaged over WINDOW_S, because requests come in whole: busiest replica over the mean of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.routing.progress import told
from benchmarks.routing.runs import SEEDS, mean, side_by_side, simulated, spread
from benchmarks.routing.sharded_fleet import ShardedFleet, zipf
from control_plane.core.sharding.values import Cause
from model_units.units import REPLICA_CAPACITY
from simulation.result import Result
from simulation.scenario import (
    SYNTHETIC,
    FailureSpec,
    GroupSpec,
    ModelSpec,
    Scenario,
    Settings,
    TenantSpec,
    make_scenario,
)

SLOW, FAST, SPEED = 8, 2, 2.0
"""Replicas of the hardware's own speed, and those that are SPEED times as fast."""
TENANTS: Final = 48
LOAD: Final = 0.6
WINDOW_S: Final = 30.0
EVEN: Final = 1.20
SETTLED_S: Final = 120.0
SHIFT_S: Final = 300.0
DURATION_S: Final = 480.0
SHIFT_FACTOR: Final = 3.0
NOISE: Final = 0.2
ROUND_S: Final = 15.0

# Of the tenant that trebles: the fleet stays below 0.7 afterwards.
_SHIFTED_LOAD: Final = 0.045
_RESTART_EVERY_S: Final = 36.0
_RESTART_DOWN_S: Final = 20.0
_LOST_REPLICAS: Final = 16
_SETTLE_ROUNDS: Final = 12
_TIMED_ROUNDS: Final = 5
_TENANTS_PER_REPLICA: Final = 4


class Run(NamedTuple):
    """One simulation.

    Attributes:
        what: "shift", "noise" or "restart".
        seed: Of everything random.
    """

    what: str
    seed: int


class Seen(NamedTuple):
    """What is kept of it.

    Attributes:
        evenness: (seconds, busiest replica over the mean) of every window.
        balanced_percent: Load moved for balance per regular round after the fleet settled, percent of all.
        misrouted_percent: Of all attempts.
        unserved: Requests that were not answered.
    """

    evenness: list[tuple[float, float]]
    balanced_percent: float
    misrouted_percent: float
    unserved: int


def measure(console: Console) -> dict[str, float]:
    """Simulates, drives the Assigner, and prints what was found."""
    runs = [Run(what, seed) for what in ("shift", "noise", "restart") for seed in SEEDS]
    found = dict(zip(runs, side_by_side(play, runs, told("sharder")), strict=True))
    shift, noise, restart = ([found[Run(what, seed)] for seed in SEEDS] for what in ("shift", "noise", "restart"))
    steady = [ratio for each in shift for at_s, ratio in each.evenness if SETTLED_S <= at_s < SHIFT_S - WINDOW_S]
    even = [even_again_s(each.evenness, SHIFT_S) for each in shift]
    metrics = {
        "utilization_max_over_mean_median_ratio": float(np.median(steady)),
        "utilization_max_over_mean_p99_ratio": float(np.percentile(steady, 99)),
        "even_again_after_shift_s": max(even),
        "balancing_churn_under_noise_percent": mean(each.balanced_percent for each in noise),
        "misrouted_steady_percent": mean(each.misrouted_percent for each in noise),
        "misrouted_rolling_restart_percent": mean(each.misrouted_percent for each in restart),
        "unserved_in_rolling_restart": float(sum(each.unserved for each in restart)),
        **dict(zip(DIRECT, side_by_side(direct, list(DIRECT), told("assigner")), strict=True)),
    }
    table = Table(
        title=f"{SLOW} replicas and {FAST} of {SPEED:g} x the speed, load {LOAD:g}, {WINDOW_S:g} s windows",
        title_justify="left",
    )
    for column in ("by seed, mean (least-greatest)", ""):
        table.add_column(column)
    table.add_row("busiest over mean, median", spread([_median(each.evenness) for each in shift]))
    table.add_row("even again after a shift, s", spread(even, 0))
    table.add_row("moved for balance under noise, % per round", spread([each.balanced_percent for each in noise], 3))
    table.add_row("misrouted, steady, %", spread([each.misrouted_percent for each in noise], 3))
    table.add_row("misrouted, rolling restart, %", spread([each.misrouted_percent for each in restart], 3))
    console.print(table)
    return metrics


def play(run: Run) -> Seen:
    """One simulation, in whatever process."""
    result = simulated(scenario(run))
    attempts = sum(sum(book.dispatched.values()) for book in result.books.values())
    misrouted = sum(book.misrouted for book in result.books.values())
    settled = [each for each in result.rearrangements if each.at_s - result.start_s > SETTLED_S]
    rounds = (DURATION_S - SETTLED_S) / ROUND_S
    return Seen(
        evenness(result),
        100.0 * sum(each.churn(Cause.BALANCE, Cause.OVERLAP) for each in settled) / rounds,
        100.0 * misrouted / attempts,
        sum(book.received - len(book.ttft_s) for book in result.books.values()),
    )


def scenario(run: Run) -> Scenario:
    """The fleet, its tenants, and what befalls them."""
    settings = Settings(seed=run.seed, duration_s=DURATION_S, quota=False)
    like = TenantSpec(
        id="tenant",
        workload=SYNTHETIC,
        input_tokens=2_000,
        input_sigma=0.4,
        output_tokens=150,
        output_sigma=0.4,
        noise=NOISE if run.what == "noise" else 0.0,
    )
    capacity_mu = (SLOW + FAST * SPEED) * REPLICA_CAPACITY / 1_000.0
    shifts = run.what == "shift"
    tenants = [
        replace(
            like,
            count=TENANTS - 1,
            zipf=1.0,
            load=LOAD - _SHIFTED_LOAD,
            reservation_mu_per_minute=capacity_mu * (LOAD - _SHIFTED_LOAD),
        ),
        replace(
            like,
            id="shifted",
            load=_SHIFTED_LOAD,
            reservation_mu_per_minute=capacity_mu * _SHIFTED_LOAD,
            surge_at_s=SHIFT_S if shifts else 0.0,
            surge_factor=SHIFT_FACTOR if shifts else 1.0,
        ),
    ]
    failures = [
        FailureSpec(at_s=SETTLED_S + at * _RESTART_EVERY_S, kind="drain", replica=at + 1, heal_after_s=_RESTART_DOWN_S)
        for at in range(SLOW + FAST if run.what == "restart" else 0)
    ]
    return make_scenario(
        settings,
        [ModelSpec(id="chat", replicas=SLOW, cold_start_s=10.0)],
        tenants,
        failures,
        [GroupSpec(replicas=FAST, speed=SPEED)],
    )


def evenness(result: Result) -> list[tuple[float, float]]:
    """Busiest replica over the mean, of every window: (its beginning in seconds of traffic, ratio)."""
    by_window: dict[int, dict[str, list[float]]] = {}
    for track in result.tracks:
        for bucket, used in track.utilization:
            window = int(bucket * result.bucket_s / WINDOW_S)
            by_window.setdefault(window, {}).setdefault(track.replica_id, []).append(used)
    return [
        (window * WINDOW_S, busiest_over_mean([mean(used) for used in by_replica.values()]))
        for window, by_replica in sorted(by_window.items())
        if (window + 1) * WINDOW_S <= DURATION_S
    ]


def busiest_over_mean(utilization: Sequence[float]) -> float:
    """The greatest over the mean; not a number where nobody did anything."""
    average = mean(utilization)
    return max(utilization) / average if average else float("nan")


def even_again_s(evenness: Sequence[tuple[float, float]], since_s: float) -> float:
    """From a moment to the beginning of the first window from which on everything is even, seconds.

    Args:
        evenness: Windows in order: (beginning, busiest over mean).
        since_s: The moment.

    Returns:
        0 where it never was uneven; infinity where it still is in the last window.
    """
    after = [(at_s, ratio) for at_s, ratio in evenness if at_s >= since_s]
    uneven = [at for at, (_, ratio) in enumerate(after) if not ratio <= EVEN]
    if not uneven:
        return 0.0
    return after[uneven[-1] + 1][0] - since_s if uneven[-1] + 1 < len(after) else float("inf")


def direct(metric: str) -> float:
    """One measurement of the Assigner by itself, in whatever process."""
    measured, replicas = DIRECT[metric]
    return measured(replicas)


def lost_one(replicas: int) -> float:
    """Load moved when one replica is lost, over one replica's part of all load: the mean over who it is."""
    moved = 0.0
    for at in range(replicas):
        fleet = _settled(replicas)
        fleet.lose(fleet.replica_ids[at])
        fleet.round(balance=False, after_ms=1_000)
        moved += sum(fleet.moved.values()) / fleet.load
    return moved


def rolling_restart(replicas: int) -> float:
    """Load moved when every replica is drained and started again, one by one, over all load."""
    fleet = _settled(replicas)
    for replica_id in fleet.replica_ids:
        fleet.drain(replica_id)
        fleet.round(balance=False, after_ms=1_000)
        fleet.restart(replica_id)
        fleet.round(balance=False, after_ms=1_000)
        fleet.round()
    return sum(fleet.moved.values()) / fleet.load


def slowest_round_s(replicas: int) -> float:
    """The longest of some regular rounds in which every fourth tenant's rate has changed, CPU seconds."""
    fleet = ShardedFleet(replicas, zipf(replicas * _TENANTS_PER_REPLICA, LOAD * replicas * REPLICA_CAPACITY))
    fleet.round()
    for turn in range(_TIMED_ROUNDS):
        for at, tenant_id in enumerate(fleet.rates):
            if at % 4 == turn % 4:
                fleet.rates[tenant_id] = round(fleet.rates[tenant_id] * (1.5 if turn % 2 else 0.6))
        fleet.round()
    return max(fleet.round_s)


def _settled(replicas: int) -> ShardedFleet:
    fleet = ShardedFleet(replicas, zipf(replicas * _TENANTS_PER_REPLICA, LOAD * replicas * REPLICA_CAPACITY))
    fleet.settle(_SETTLE_ROUNDS)
    return fleet


def _median(evenness: Sequence[tuple[float, float]]) -> float:
    return float(np.median([ratio for at_s, ratio in evenness if SETTLED_S <= at_s < SHIFT_S - WINDOW_S]))


DIRECT: Final = {
    "lost_one_moved_over_fair_part_ratio": (lost_one, _LOST_REPLICAS),
    "rolling_restart_moved_over_load_ratio": (rolling_restart, _LOST_REPLICAS),
    "assignment_64_replicas_s": (slowest_round_s, 64),
    "assignment_512_replicas_s": (slowest_round_s, 512),
}
"""What is measured of the Assigner by itself, and on how many replicas."""
