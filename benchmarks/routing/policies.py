"""Which rule gives the shortest time to first token: every policy, on every recorded trace and on the mix of all.

Every replica may serve everybody, so that the rules choose among the same; quota is out of the way; two routers, each
of which knows its own requests at once and the others' by reports of every second. What is compared is the mean over
seeds of the ratio in one seed: both runs of a ratio have the same requests at the same times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.routing import recorded
from benchmarks.routing.bars import STRETCH
from benchmarks.routing.progress import told
from benchmarks.routing.recorded import LOAD_RANGE, MIX, Setup
from benchmarks.routing.runs import SEEDS, Seen, mean, seen, side_by_side, simulated, spread
from simulation.scenario import Settings

PRODUCT: Final = "cost"
POLICIES: Final = (
    "round_robin",
    "two_choices",
    "least_requests",
    "least_cost",
    "prefix_match",
    "late_binding",
    PRODUCT,
)
OLD_S: Final = 5.0
"""Reports this old, and none with answers, are what a router has that hears badly."""
OLD: Final = f"{PRODUCT}, reports 5 s old"
ONE: Final = f"{PRODUCT}, one router"
OLD_ONE: Final = f"{PRODUCT}, one router, reports 5 s old"
"""With one router all dispatches are known at once, so that old reports only misjudge what replicas have done since."""

_REQUESTS_MIX: Final = 20_000
_REQUESTS_ALONE: Final = 4_000
_DURATION_S_MAX: Final = 2_400.0


class Run(NamedTuple):
    """One simulation.

    Attributes:
        setup: The fleet and its traffic.
        policy: As in POLICIES, or PRODUCT under other conditions.
        seed: Of everything random.
    """

    setup: Setup
    policy: str
    seed: int


Found = Mapping[tuple[str, str], Sequence[Seen]]
"""What was seen, by setup and policy, in the order of SEEDS."""


def measure(console: Console) -> dict[str, float]:
    """Plays everything and prints one table per setup."""
    alone = recorded.found(console)
    saturated = side_by_side(recorded.saturation, list(alone.values()), told("saturated fleets"))
    setups = [recorded.setup(*each, most) for each, most in zip(alone.items(), saturated, strict=True)]
    runs = [Run(setup, policy, seed) for setup in setups for policy in _policies(setup) for seed in SEEDS]
    # The longest first, so that no core is left alone with one of them at the end.
    order = sorted(range(len(runs)), key=lambda at: -_requests(runs[at].setup))
    found = dict(zip(order, side_by_side(play, [runs[at] for at in order], told("policies")), strict=True))
    table: dict[tuple[str, str], list[Seen]] = {}
    for at, run in enumerate(runs):
        table.setdefault((run.setup.name, run.policy), []).append(found[at])
    for setup in setups:
        _print(setup, table, console)
    return metrics(setups, table)


def play(run: Run) -> Seen:
    """One simulation, in whatever process."""
    setup, old = run.setup, run.policy in (OLD, OLD_ONE)
    settings = Settings(
        seed=run.seed,
        duration_s=min(_DURATION_S_MAX, _requests(setup) / setup.requests_per_s),
        routers=1 if run.policy in (ONE, OLD_ONE) else Settings().routers,
        quota=False,
        sharder="whole_fleet",
        policy=run.policy.split(",")[0],
        report_delay_s=OLD_S if old else Settings().report_delay_s,
        answers_report=not old,
    )
    return seen(simulated(recorded.played(setup, settings)))


def metrics(setups: Sequence[Setup], table: Found) -> dict[str, float]:
    """What the tables come to."""
    found = {}
    for setup in setups:
        for policy in POLICIES:
            found[f"{setup.name}_{policy}_ttft_p95_s"] = mean(each.ttft_p95_s for each in table[setup.name, policy])
        found[f"{setup.name}_load"] = setup.load
    names = [setup.name for setup in setups]
    found["mix_ttft_p95_over_two_choices_ratio"] = mean(ratios(table, MIX, PRODUCT, "two_choices"))
    found["mix_ttft_p95_over_least_requests_ratio"] = mean(ratios(table, MIX, PRODUCT, "least_requests"))
    tpot = zip(table[MIX, PRODUCT], table[MIX, "two_choices"], strict=True)
    found["mix_tpot_p95_over_two_choices_ratio"] = mean(own.tpot_p95_s / other.tpot_p95_s for own, other in tpot)
    found["mix_reports_5s_old_ttft_p95_ratio"] = mean(ratios(table, MIX, OLD, PRODUCT))
    found["mix_reports_5s_old_one_router_ttft_p95_ratio"] = mean(ratios(table, MIX, OLD_ONE, ONE))
    conversations = [setup.name for setup in setups if setup.conversation]
    if conversations:
        found["conversation_ttft_p95_over_two_choices_ratio"] = max(
            mean(ratios(table, name, PRODUCT, "two_choices")) for name in conversations
        )
    found["worst_trace_ttft_p95_over_least_requests_ratio"] = max(
        mean(ratios(table, name, PRODUCT, "least_requests")) for name in names
    )
    return found


def ratios(table: Found, setup: str, policy: str, other: str) -> list[float]:
    """95th percentiles of the time to first token under one policy over those under another, by seed."""
    both = zip(table[setup, policy], table[setup, other], strict=True)
    return [own.ttft_p95_s / its.ttft_p95_s for own, its in both]


def _policies(setup: Setup) -> tuple[str, ...]:
    return (*POLICIES, OLD, ONE, OLD_ONE) if setup.name == MIX else POLICIES


def _requests(setup: Setup) -> int:
    return _REQUESTS_MIX if setup.name == MIX else _REQUESTS_ALONE


def _print(setup: Setup, table: Found, console: Console) -> None:
    outside = "" if LOAD_RANGE[0] <= setup.load <= LOAD_RANGE[1] else f", outside {LOAD_RANGE}"
    rate = f"{setup.requests_per_s:.1f} requests/s"
    title = f"{setup.name}: {setup.replicas} replicas of {recorded.HARDWARE}, {rate}, load {setup.load:.2f}{outside}"
    shown = Table(title=f"{title}; mean over seeds (least-greatest)", title_justify="left")
    for column in ("policy", "TTFT p50 s", "p95 s", "p99 s", "p95 / two choices", "p95 / least requests"):
        shown.add_column(column)
    for column in ("TPOT p95 ms", "cached", "unserved"):
        shown.add_column(column)
    for policy in _policies(setup):
        rows = table[setup.name, policy]
        shown.add_row(
            policy,
            spread([each.ttft_p50_s for each in rows]),
            spread([each.ttft_p95_s for each in rows]),
            spread([each.ttft_p99_s for each in rows]),
            spread(ratios(table, setup.name, policy, "two_choices")),
            spread(ratios(table, setup.name, policy, "least_requests")),
            spread([1_000.0 * each.tpot_p95_s for each in rows], 0),
            f"{mean(each.cached_share for each in rows):.1%}",
            str(sum(each.unserved for each in rows)),
        )
    console.print(shown)
    if setup.name == MIX:
        console.print(f"stretch goal: {STRETCH['mix_ttft_p95_over_two_choices_ratio']} of two choices")
