"""Whether sessions stay where their prefixes are, and whether one tenant's surge stays with its own replicas.

16 replicas, 64 tenants by Zipf's law who chat in sessions of several turns. How much of the prompts is found in caches
is held against an oracle that gives every session one replica whatever the load is. Then one tenant of middle size asks
for more than the whole fleet can do; what the other tenants notice is the ratio of their time to first token meanwhile
to that in a run without the surge: with quota, as in the product, and without, where only subsets hold it back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.routing import session_hash
from benchmarks.routing.progress import told
from benchmarks.routing.runs import SEEDS, mean, side_by_side, simulated, spread
from simulation.result import Result
from simulation.scenario import CHAT, ModelSpec, Scenario, Settings, TenantSpec, make_scenario

REPLICAS: Final = 16
TENANTS: Final = 64
LOAD: Final = 0.6
CALM_S: Final = 240.0
SURGE_S: Final = 120.0
SURGE_LOAD: Final = 1.5
"""What the surging tenant asks for, over what the fleet can do."""
AGGRESSOR: Final = "aggressor"

RULES: Final = {
    "two choices": ("two_choices", "whole_fleet", False),
    "least cost, whole fleet": ("cost", "whole_fleet", False),
    "session hash": ("cost", "whole_fleet", False),
    "subsets + cost": ("cost", "on", False),
    "fixed subsets + cost": ("cost", "fixed", False),
    "subsets + cost + quota": ("cost", "on", True),
}
"""Policy, sharder, and whether quota is in force, by name; in that of session hash the oracle takes the policy's place.
Without quota the sharder follows a surge with ever more replicas; fixed subsets show what they hold by themselves."""
ORACLE: Final = "session hash"
UNLIMITED: Final = "subsets + cost"
FIXED: Final = "fixed subsets + cost"
PRODUCT: Final = "subsets + cost + quota"

# Sold beside what the tenants use on average; the aggressor bought twice its load and is lent nothing.
_SOLD: Final = 1.2
_AGGRESSOR_SOLD: Final = 2.0
_BURST: Final = 4.0
# The aggressor's load in calm times; what it sends is turned up from there.
_AGGRESSOR_LOAD: Final = 0.02
_CAPACITY_MU_PER_MINUTE: Final = 100.0
# Tenants whose first placement follows no load yet are moved until then.
_SETTLED_S: Final = 60.0


class Run(NamedTuple):
    """One simulation.

    Attributes:
        rule: One of RULES.
        surge: Whether there is a surge.
        seed: Of everything random.
    """

    rule: str
    surge: bool
    seed: int


class Seen(NamedTuple):
    """What is kept of it.

    Attributes:
        cached_share: Prompt tokens found in caches, after the fleet has settled.
        ttft_p99_s: Of everybody.
        others_p99_s: Of everybody but the aggressor, of requests that came during the surge, or then without one.
        median_share: Part of the replicas that the median tenant used.
        aggressor_share: Part of the replicas that the aggressor used.
        unserved: Requests of the others that were not answered.
    """

    cached_share: float
    ttft_p99_s: float
    others_p99_s: float
    median_share: float
    aggressor_share: float
    unserved: int


def measure(console: Console) -> dict[str, float]:
    """Runs all rules with and without the surge, and prints the table."""
    runs = [Run(rule, surge, seed) for surge in (True, False) for rule in RULES for seed in SEEDS]
    found = dict(zip(runs, side_by_side(play, runs, told("stickiness")), strict=True))
    calm = {rule: [found[Run(rule, False, seed)] for seed in SEEDS] for rule in RULES}
    surge = {rule: [found[Run(rule, True, seed)] for seed in SEEDS] for rule in RULES}
    table = Table(title=f"{REPLICAS} replicas, {TENANTS} tenants who chat, load {LOAD:g}", title_justify="left")
    for column in ("rule", "cached", "TTFT p99 s", "others' p99 in a surge s", "over no surge"):
        table.add_column(column)
    for column in ("median tenant on", "aggressor on", "others unserved"):
        table.add_column(column)
    for rule in RULES:
        table.add_row(
            rule,
            spread([each.cached_share for each in calm[rule]], 3),
            spread([each.ttft_p99_s for each in calm[rule]]),
            spread([each.others_p99_s for each in surge[rule]]),
            spread(_ratios(surge[rule], calm[rule])),
            spread([each.median_share for each in calm[rule]]),
            spread([each.aggressor_share for each in surge[rule]]),
            str(sum(each.unserved for each in surge[rule])),
        )
    console.print(table)
    own, oracle = calm[UNLIMITED], calm[ORACLE]
    pairs = zip(own, oracle, strict=True)
    return {
        "cached_tokens_over_session_hash_ratio": mean(a.cached_share / b.cached_share for a, b in pairs),
        "cached_tokens_share": mean(each.cached_share for each in own),
        "cached_tokens_session_hash_share": mean(each.cached_share for each in oracle),
        "cached_tokens_two_choices_share": mean(each.cached_share for each in calm["two choices"]),
        "chat_ttft_p99_s": mean(each.ttft_p99_s for each in own),
        "chat_two_choices_ttft_p99_s": mean(each.ttft_p99_s for each in calm["two choices"]),
        "surge_others_ttft_p99_ratio": mean(_ratios(surge[PRODUCT], calm[PRODUCT])),
        "surge_others_without_quota_ttft_p99_ratio": mean(_ratios(surge[UNLIMITED], own)),
        "surge_others_fixed_subsets_ttft_p99_ratio": mean(_ratios(surge[FIXED], calm[FIXED])),
        "surge_others_ttft_p99_s": mean(each.others_p99_s for each in surge[PRODUCT]),
        "surge_others_whole_fleet_ttft_p99_s": mean(each.others_p99_s for each in surge["least cost, whole fleet"]),
        "surge_others_two_choices_ttft_p99_s": mean(each.others_p99_s for each in surge["two choices"]),
        "median_tenant_replicas_share": mean(each.median_share for each in own),
        "surging_tenant_replicas_share": mean(each.aggressor_share for each in surge[PRODUCT]),
    }


def play(run: Run) -> Seen:
    """One simulation, in whatever process."""
    if run.rule == ORACLE:
        with session_hash.in_force():
            return kept(simulated(scenario(run)))
    return kept(simulated(scenario(run)))


def scenario(run: Run) -> Scenario:
    """The fleet and its tenants."""
    policy, sharder, quota = RULES[run.rule]
    settings = Settings(seed=run.seed, duration_s=CALM_S + SURGE_S, quota=quota, sharder=sharder, policy=policy)
    chat = TenantSpec(
        id="tenant",
        workload=CHAT,
        session="client",
        turns=8.0,
        think_s=15.0,
        input_tokens=400,
        system_tokens=1_024,
    )
    bought = REPLICAS * _CAPACITY_MU_PER_MINUTE
    tenants = [
        replace(
            chat,
            count=TENANTS,
            zipf=1.0,
            load=LOAD,
            reservation_mu_per_minute=bought * LOAD * _SOLD,
            burst_mu_per_minute=bought * LOAD * _SOLD * _BURST,
        ),
        replace(
            chat,
            id=AGGRESSOR,
            load=_AGGRESSOR_LOAD,
            reservation_mu_per_minute=bought * _AGGRESSOR_LOAD * _AGGRESSOR_SOLD,
            surge_at_s=CALM_S if run.surge else 0.0,
            surge_for_s=SURGE_S if run.surge else 0.0,
            surge_factor=SURGE_LOAD / _AGGRESSOR_LOAD if run.surge else 1.0,
        ),
    ]
    return make_scenario(settings, [ModelSpec(id="chat", replicas=REPLICAS)], tenants)


def kept(result: Result) -> Seen:
    """What is kept of a run."""
    others = {name: book for name, book in result.books.items() if name != AGGRESSOR}
    every = np.concatenate([np.array(book.ttft_s) for book in others.values()])
    came_s = np.concatenate([np.array(book.ttft_at_s) for book in others.values()]) - result.start_s
    shares = [len(book.dispatched) / REPLICAS for book in others.values() if book.dispatched]
    total = result.summaries()[-1]
    return Seen(
        total.cached_share,
        float(np.percentile(every[came_s > _SETTLED_S], 99)),
        float(np.percentile(every[came_s > CALM_S], 99)),
        float(np.median(shares)),
        len(result.books[AGGRESSOR].dispatched) / REPLICAS,
        sum(book.received - len(book.ttft_s) for book in others.values()),
    )


def _ratios(surge: list[Seen], calm: list[Seen]) -> list[float]:
    return [with_.others_p99_s / without.others_p99_s for with_, without in zip(surge, calm, strict=True)]
