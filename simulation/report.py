"""The HTML report of a simulation: what came out, and how the fleet looked over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from common.report import PALETTE, Cell, Page, legend, log_axis, new_axes, new_figure
from simulation.report_sharding import sharding_sections
from simulation.result import TOTAL, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Lines of a plot that can still be told apart.
_TENANTS_SHOWN = len(PALETTE)
_INCIDENTS_SHOWN = 40

_MARKS = {"crash": PALETTE[1], "freeze": PALETTE[1], "slow": PALETTE[1], "drain": PALETTE[4]}


def render(result: Result, wall_s: float) -> str:
    """Renders a report.

    Args:
        result: Of a run.
        wall_s: How long it took.

    Returns:
        A page of HTML that needs nothing else.
    """
    settings = result.scenario.settings
    total = result.summaries()[-1]
    simulated_s = result.end_s - result.start_s
    summary = (
        f"{result.requests:,} requests in {simulated_s:,.0f} simulated seconds, computed in {wall_s:,.1f} s: "
        f"{total.completed:,} completed, {sum(total.refused.values()):,} refused, "
        f"{sum(total.failed.values()):,} failed. Seed {settings.seed}."
    )
    page = Page(f"Simulation: {settings.name or 'scenario'}", summary)
    _tenants(page, result)
    page.section("Latency")
    page.figure(_latency(result), "Time to first token of all requests by the time they arrived.")
    sharding_sections(page, result)
    page.figure(_pending(result), "Prefill that waits at replicas: mean and most.")
    page.section("Admission")
    page.figure(_admission(result), "Requests admitted (above) and refused (below) per second, by tenant.")
    _incidents(page, result)
    if result.notes:
        page.section("Workloads", "What was assumed, put right or filled in to make traffic of them.")
        page.table(["note"], [[note] for note in result.notes])
    return page.render()


def _tenants(page: Page, result: Result) -> None:
    columns = ["tenant", "received", "admitted", "refused", "completed", "failed", "cancelled"]
    columns += ["TTFT p50 s", "p95 s", "p99 s", "TPOT p50 ms", "p95 ms", "p99 ms", "MU", "of quota %", "cached %"]
    rows: list[list[Cell]] = [
        [
            each.name,
            each.received,
            each.admitted,
            sum(each.refused.values()),
            each.completed,
            sum(each.failed.values()),
            each.cancelled,
            *(_plain(value) for value in (each.ttft.p50_s, each.ttft.p95_s, each.ttft.p99_s)),
            *(_plain(1_000 * value) for value in (each.tpot.p50_s, each.tpot.p95_s, each.tpot.p99_s)),
            each.settled_mu,
            _plain(100 * each.quota_used),
            _plain(100 * each.cached_share),
        ]
        for each in result.summaries()
    ]
    page.section("Tenants")
    page.table(columns, rows)
    total = next(each for each in result.summaries() if each.name == TOTAL)
    reasons: list[list[Cell]] = [["refused", reason, count] for reason, count in total.refused.items()]
    reasons += [["failed", reason, count] for reason, count in total.failed.items()]
    if reasons:
        page.table(["outcome", "reason", "requests"], reasons)


def _latency(result: Result) -> Figure:
    figure = new_figure()
    axes = new_axes(figure, "time, s", "time to first token, s")
    arrived = np.concatenate([np.array(book.ttft_at_s) for book in result.books.values()]) - result.start_s
    ttft = np.concatenate([np.array(book.ttft_s) for book in result.books.values()])
    buckets = np.floor(arrived / result.bucket_s).astype(int)
    order = np.argsort(buckets, kind="stable")
    known, starts = np.unique(buckets[order], return_index=True)
    groups = np.split(ttft[order], starts[1:]) if len(known) else []
    for quantile, color in ((50, PALETTE[0]), (95, PALETTE[2]), (99, PALETTE[1])):
        values = [float(np.percentile(group, quantile)) for group in groups]
        axes.plot(known * result.bucket_s, values, color=color, linewidth=1.2, label=f"p{quantile}")
    log_axis(axes, "y")
    _mark(axes, result)
    legend(axes)
    return figure


def _pending(result: Result) -> Figure:
    figure = new_figure(height_in=3.0)
    axes = new_axes(figure, "time, s", "waiting prefill, s")
    sums: dict[int, list[float]] = {}
    for track in result.tracks:
        for bucket, value in track.pending_s:
            sums.setdefault(bucket, []).append(value)
    times = [bucket * result.bucket_s for bucket in sorted(sums)]
    axes.plot(times, [float(np.mean(sums[bucket])) for bucket in sorted(sums)], color=PALETTE[0], label="mean")
    axes.plot(times, [max(sums[bucket]) for bucket in sorted(sums)], color=PALETTE[1], linewidth=0.9, label="most")
    _mark(axes, result)
    legend(axes)
    return figure


def _admission(result: Result) -> Figure:
    figure = new_figure(height_in=5.0)
    busiest = sorted(result.books, key=lambda name: -result.books[name].received)
    for place, kind in ((1, "admitted"), (2, "refused")):
        axes = new_axes(figure, "time, s", f"{kind} requests/s", place=(2, 1, place))
        groups = [(name, [name]) for name in busiest[: _TENANTS_SHOWN - 1]]
        if len(busiest) >= _TENANTS_SHOWN:
            groups.append((f"{len(busiest) - len(groups)} others", busiest[_TENANTS_SHOWN - 1 :]))
        for color, (label, names) in zip(PALETTE, groups, strict=False):
            axes.plot(*_series(result, names, kind), color=color, linewidth=1.1, label=label)
        axes.set_ylim(bottom=0.0)
        _mark(axes, result)
        if place == 1:
            legend(axes)
    return figure


def _series(result: Result, names: list[str], kind: str) -> tuple[list[float], list[float]]:
    length = round(result.scenario.settings.duration_s / result.bucket_s)
    counts = [sum(result.books[name].times[kind, bucket] for name in names) for bucket in range(max(1, length))]
    return [bucket * result.bucket_s for bucket in range(len(counts))], [count / result.bucket_s for count in counts]


def _mark(axes: Axes, result: Result) -> None:
    """A line where something went wrong."""
    for incident in result.incidents:
        if incident.kind in _MARKS:
            axes.axvline(
                incident.at_s - result.start_s, color=_MARKS[incident.kind], linewidth=0.9, linestyle="--", alpha=0.8
            )


def _incidents(page: Page, result: Result) -> None:
    shown = [incident for incident in result.incidents if incident.at_s >= result.start_s]
    if not shown:
        return
    page.section("What happened", "Failures, cold starts and new assignments of tenants to replicas.")
    rows: list[list[Cell]] = [
        [incident.at_s - result.start_s, incident.kind, incident.text] for incident in shown[:_INCIDENTS_SHOWN]
    ]
    page.table(["at, s", "what", "which"], rows)
    if len(shown) > _INCIDENTS_SHOWN:
        page.text(f"{len(shown) - _INCIDENTS_SHOWN} more are left out.")


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
