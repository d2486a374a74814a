"""What `make bench-quota` is held to: every bar, by the phase that measures it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import nan
from typing import Final

from benchmarks.report import Bar, Report

LEASE_S: Final = 10.0
"""ratelimiter's lease_s."""
REPORT_S: Final = 1.0
"""ratelimiter's refresh_s: how often routers report."""
SLACK_S: Final = 1.0
"""For reading three metrics pages every half second on a machine that is busy."""
WHOLE_AGAIN_S: Final = LEASE_S + 2 * REPORT_S + SLACK_S
"""A dead router's lease ends, each of the others hears of it with its next report and asks for the rest with the one
after."""

ROUNDING_PERCENT: Final = 0.1
"""Leases are whole milli-MU per minute: each router's part of a quota is rounded down."""

_NONE: Final = Bar(0.0)

BARS: Final[Mapping[str, Mapping[str, Bar]]] = {
    "capacity": {"capacity_lost_to_new_quotas_max_s": Bar(2.0)},
    "steady": {
        "admitted_over_quota_worst_tenant_percent": Bar(0.5),
        "admitted_over_quota_total_percent": Bar(0.5),
        "usable_share_worst_tenant_percent": Bar(98.0, at_most=False),
        "usable_share_total_percent": Bar(98.0, at_most=False),
        "truncated_streams": _NONE,
        "failed_streams": _NONE,
        "steady_own_cpu_percent": Bar(80.0),
        "over_after_kill_worst_tenant_percent": Bar(2.0),
        "over_after_kill_total_percent": Bar(2.0),
        "over_after_kill_whole_again_total_percent": Bar(2.0),
        "whole_again_s": Bar(WHOLE_AGAIN_S),
        "leaked_after_kill_worst_tenant_percent": Bar(ROUNDING_PERCENT),
        "usable_after_kill_worst_tenant_percent": Bar(98.0, at_most=False),
    },
    "neighbours": {"live_neighbours_ttft_p95_ratio": Bar(1.25)},
    "owners": {
        "owner_back_max_s": Bar(2.0),
        "owner_admitted_in_2s_over_reservation_min": Bar(1.0, at_most=False),
    },
    "books": {
        "settled_minus_told_milli_mu": _NONE,
        "settled_minus_true_costs_milli_mu": _NONE,
        "token_counts_that_differ": _NONE,
        "received_minus_ended": _NONE,
        "open_holds": _NONE,
        "held_milli_mu_at_end": _NONE,
        "completed_minus_told": _NONE,
    },
    "isolation": {
        "isolation_product_steady_ttft_p95_ratio": Bar(1.10),
        "isolation_product_pulses_ttft_p95_ratio": Bar(1.10),
        # Of all that the others send: which of two requests meets an empty bucket differs between two runs.
        "isolation_product_steady_others_refused_more_percent": Bar(0.1),
        "isolation_product_pulses_others_refused_more_percent": Bar(0.1),
    },
    "decision": {"router_cpu_per_decision_us": Bar(20.0)},
    "allocator": {
        "allocator_round_s": Bar(1.0),
        # Per tenant at 5,000 against 1,250: 1 would be linear; a sort's share and colder caches are granted.
        "allocator_cost_per_tenant_ratio": Bar(1.3),
    },
}
"""By phase, then by metric."""

_BY_METRIC: Final = {metric: bar for bars in BARS.values() for metric, bar in bars.items()}


def add(report: Report, metric: str, value: float) -> None:
    """Adds a measured value with its bar, where it has one."""
    report.add(metric, value, _BY_METRIC.get(metric))


def miss(report: Report, phases: Iterable[str]) -> None:
    """Adds every bar of these phases that nothing was measured for: it is missed."""
    for phase in phases:
        for metric in BARS.get(phase, ()):
            if metric not in report.metrics:
                add(report, metric, nan)
