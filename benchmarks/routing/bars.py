"""What `make bench-routing` is held to: every bar, by the phase that measures it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import nan
from typing import Final

from benchmarks.report import Bar, Report

BARS: Final[Mapping[str, Mapping[str, Bar]]] = {
    "policies": {
        "mix_ttft_p95_over_two_choices_ratio": Bar(0.45),
        "mix_ttft_p95_over_least_requests_ratio": Bar(0.55),
        "mix_tpot_p95_over_two_choices_ratio": Bar(1.05),
        "mix_reports_5s_old_ttft_p95_ratio": Bar(1.10),
        "mix_reports_5s_old_one_router_ttft_p95_ratio": Bar(1.10),
        "worst_trace_ttft_p95_over_least_requests_ratio": Bar(1.05),
    },
    "stickiness": {
        "cached_tokens_over_session_hash_ratio": Bar(0.95, at_most=False),
        "surge_others_ttft_p99_ratio": Bar(2.0),
        "surge_others_without_quota_ttft_p99_ratio": Bar(2.0),
        "median_tenant_replicas_share": Bar(0.20),
    },
    "decision": {"routing_decision_calibrated_us": Bar(15.0)},
    "sharder": {
        "utilization_max_over_mean_median_ratio": Bar(1.20),
        "utilization_max_over_mean_p99_ratio": Bar(1.5),
        "even_again_after_shift_s": Bar(90.0),
        "balancing_churn_under_noise_percent": Bar(1.0),
        "lost_one_moved_over_fair_part_ratio": Bar(1.05),
        "rolling_restart_moved_over_load_ratio": Bar(2.1),
        "assignment_64_replicas_s": Bar(0.2),
        "assignment_512_replicas_s": Bar(2.0),
        "misrouted_steady_percent": Bar(0.05),
        "misrouted_rolling_restart_percent": Bar(1.0),
    },
}
"""Bars by phase and metric. Source: what the design promises. The phase `live` brings its own."""

OPTIONAL: Final[Mapping[str, Bar]] = {"conversation_ttft_p95_over_two_choices_ratio": Bar(0.75)}
"""Of metrics that not every folder of traces has."""

STRETCH: Final[Mapping[str, float]] = {"mix_ttft_p95_over_two_choices_ratio": 0.33}
"""What would be better than the bar."""

_BY_METRIC: Final = {metric: bar for bars in (*BARS.values(), OPTIONAL) for metric, bar in bars.items()}


def add(report: Report, metric: str, value: float) -> None:
    """Adds a measured value with its bar, where it has one."""
    report.add(metric, value, _BY_METRIC.get(metric))


def miss(report: Report, phases: Iterable[str]) -> None:
    """A metric with a bar that its phase could not measure counts as missed."""
    for phase in phases:
        for metric, bar in BARS.get(phase, {}).items():
            if metric not in report.metrics:
                report.add(metric, nan, bar)
