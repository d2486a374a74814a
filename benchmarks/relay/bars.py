"""What `make bench-relay` is held to, and how its metrics come from the runs.

Bars in microseconds and milliseconds are for the reference core (`machine.REFERENCE_STEP_US`): they are judged on
scaled figures, and the raw ones stand beside them. Ratios are judged as they are.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
from typing import Final

from benchmarks.relay.machine import REFERENCE_STEP_US
from benchmarks.relay.rounds import DIRECT, OURS, Results
from benchmarks.relay.scenarios import LIVE, SCENARIOS, Sample
from benchmarks.report import Bar, Report

_CPU: Final[Mapping[str, float]] = {
    "grpc_unary": 45.0,
    "grpc_s32": 120.0,
    "grpc_p20k": 11.0,
    "grpc_p50k": 6.5,
    "triton_p20k": 13.0,
    "triton_p50k": 9.0,
    "openai_p20k": 21.0,
    "http_p20k": 22.0,
    "http_s32": 260.0,
    "ticket": 35.0,
}
"""us of the reference core, per request or per token."""

_RATIOS: Final = (
    ("grpc_unary", "envoy", 0.75, ""),
    ("grpc_unary", "grpc_aio", 1 / 10, ""),
    ("grpc_s32", "envoy", 0.6, ""),
    ("grpc_s32", "grpc_aio", 1 / 30, ""),
    ("grpc_p20k", "envoy", 0.75, ""),
    ("grpc_p20k", "grpc_aio", 1 / 8, "grpc_p2500"),
    ("grpc_p50k", "envoy", 0.75, ""),
    ("grpc_p50k", "grpc_aio", 1 / 8, "grpc_p2500"),
    ("http_p20k", "envoy", 0.8, ""),
    ("http_p20k", "sglang-router", 0.8, ""),
    ("http_p20k", "vllm-router", 0.8, ""),
    ("http_p20k", "nginx", 1.1, ""),
    ("http_s32", "litellm", 1 / 150, "http_s32_by_4"),
    ("http_s32", "sglang-router", 1 / 1.4, ""),
)
"""(scenario, rival, bar, the rival's own scenario where it cannot carry ours)."""

_ADDED_TTFT_MS: Final = {"p50": 0.6, "p99": 2.0}
_IDLE_MB: Final = 60.0
_STREAM_KB: Final = 4.0
_LATE_MS: Final = 5.0
"""An engine that is later than half the time between two tokens was short of its core: such a run says little."""
_TICKETS_PER_S: Final = 20_000.0


def report(results: Results, phases: Collection[str], left_out: Collection[str], to: Report) -> None:
    """Adds every metric of the phases that ran, with its bar where it has one; one not measured counts as missed.

    Args:
        results: Of the rounds.
        phases: Those that ran.
        left_out: Rivals that could not be had, or were not wanted: their ratios are left out, not missed.
        to: The report.
    """
    ran = [scenario for scenario in SCENARIOS if scenario.phase in phases]
    names = {scenario.name for scenario in ran}
    for scenario in ran:
        if OURS in (scenario.systems or (OURS,)):
            bar = Bar(_CPU[scenario.name]) if scenario.name in _CPU else None
            to.add(f"{scenario.name}_us", results.median(scenario.name, OURS, Sample.scaled), bar)
            to.add(f"{scenario.name}_raw_us", results.median(scenario.name, OURS, Sample.raw))
    for name, rival, limit, own in _RATIOS:
        if {name, own or name} <= names and rival not in left_out:
            to.add(f"{name}_over_{rival}_ratio", results.ratio(name, rival, own), Bar(limit))
    if "t50" in phases:
        _added_ttft(results, to)
    if "live" in phases:
        _live(results, to)
    if "memory" in phases:
        to.add("idle_mb", results.idle_kb / 1024, Bar(_IDLE_MB))
    if "ticket" in phases:
        per_s = 1e6 / results.median("ticket", OURS, Sample.scaled)
        to.add("tickets_per_s_per_core", per_s, Bar(_TICKETS_PER_S, at_most=False))
    ours = [sample for (_, target), samples in results.samples.items() if target == OURS for sample in samples]
    to.add("runs_with_errors", float(sum(each is None or each.failed for each in ours)), Bar(0.0))
    every = [each for samples in results.samples.values() for each in samples if each is not None]
    to.add("runs_with_late_engine", float(sum(each.engine_late_ms > _LATE_MS for each in every)))
    steps = [each.step_us for each in every]
    if steps:
        to.add("reference_step_us", statistics.median(steps))


def _added_ttft(results: Results, to: Report) -> None:
    """Time to first token beyond that of the mock engine asked directly; queueing on the load's core is in both."""
    for protocol in ("grpc", "http"):
        name = f"{protocol}_t50"
        step_us = results.median(name, OURS, lambda each: each.step_us)
        for part, value in (("p50", Sample.first_token), ("p99", Sample.first_token_p99)):
            added_ms = results.median(name, OURS, value) - results.median(name, DIRECT, value)
            to.add(f"{name}_added_ttft_{part}_ms", added_ms * REFERENCE_STEP_US / step_us, Bar(_ADDED_TTFT_MS[part]))
            to.add(f"{name}_added_ttft_{part}_raw_ms", added_ms)


def _live(results: Results, to: Report) -> None:
    """Cost per token while the same tokens come on more and more streams, and what a stream costs in memory."""
    most, few = f"live_{LIVE[-1]}", f"live_{LIVE[0]}"
    cost = [results.median(f"live_{streams}", OURS, Sample.scaled) for streams in LIVE]
    to.add("live_most_over_least_cost_ratio", max(cost) / min(cost) if not any(map(math.isnan, cost)) else math.nan)
    more_kb = results.median(most, OURS, lambda each: each.memory_kb) - results.median(
        few, OURS, lambda each: each.memory_kb
    )
    to.add("live_stream_kb", more_kb / (LIVE[-1] - LIVE[0]), Bar(_STREAM_KB))
