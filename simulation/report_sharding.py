"""The report's part on the sharder: the heat of the replicas with who came and left, evenness, moves and causes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from common.report import INK, PALETTE, SEQUENTIAL, Cell, Page, legend, new_axes, new_figure
from control_plane.core.sharding.values import Cause
from simulation.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Rows of a heat map that can still be told apart, and of tables that are still read.
_REPLICAS_SHOWN = 64
_ROUNDS_SHOWN = 60
_MOVES_SHOWN = 40

_COLORS: Final = {
    Cause.REMOVAL: PALETTE[1],
    Cause.DRAIN: PALETTE[4],
    Cause.ADDITION: PALETTE[2],
    Cause.SHRINK: PALETTE[3],
    Cause.BALANCE: PALETTE[0],
    Cause.OVERLAP: INK,
}


def sharding_sections(page: Page, result: Result) -> None:
    """Adds how even the replicas were, whom tenants met, and what moved and why.

    Args:
        page: The report.
        result: Of a run.
    """
    view = result.sharding()
    shares = sorted(view.footprints.values())
    page.section("Replicas")
    page.figure(
        heat(result),
        "Utilisation: work served over capacity in the last ten seconds. Blank: not there. Triangles up: slices came "
        "to the replica; down: they left it; by cause.",
    )
    page.figure(_evenness(result), "Mean utilisation of the replicas, and the busiest one's over that mean.")
    facts: list[list[Cell]] = [
        ["max/mean utilisation, median", _plain(view.worst(0.5))],
        ["max/mean utilisation, p99", _plain(view.worst(0.99))],
        ["replicas that served a tenant, median, %", 100 * float(np.median(shares)) if shares else None],
        ["replicas that served a tenant, most, %", 100 * shares[-1] if shares else None],
        ["misrouted attempts, %", 100 * view.misrouted_share],
        ["refused because no replica could meet the deadline", result.too_late],
    ]
    page.table(["what", "value"], facts)
    if view.rearrangements:
        _moves(page, result)


def heat(result: Result) -> Figure:
    """Utilisation of the replicas over time, with the moves."""
    tracks = result.tracks[:_REPLICAS_SHOWN]
    length = 1 + max((bucket for track in tracks for bucket, _ in track.utilization), default=0)
    grid = np.full((max(1, len(tracks)), length), np.nan)
    for row, track in enumerate(tracks):
        for bucket, value in track.utilization:
            grid[row, bucket] = value
    figure = new_figure(height_in=max(2.2, 1.4 + 0.16 * len(tracks)))
    axes = new_axes(figure, "time, s", "replica")
    axes.grid(False)
    image = axes.imshow(
        grid,
        aspect="auto",
        cmap=SEQUENTIAL,
        vmin=0.0,
        vmax=1.0,
        interpolation="nearest",
        extent=(0.0, length * result.bucket_s, max(1, len(tracks)) - 0.5, -0.5),
    )
    if len(tracks) <= _REPLICAS_SHOWN // 2:
        axes.set_yticks(range(len(tracks)), [track.replica_id for track in tracks])
    rows = {track.replica_id: row for row, track in enumerate(tracks)}
    for cause, color in _COLORS.items():
        labelled = False
        for came, marker in ((True, "^"), (False, "v")):
            points = marks(result, cause, came=came, rows=rows)
            if points:
                label = None if labelled else cause.value
                labelled = True
                at_s, places = zip(*points, strict=True)
                axes.scatter(at_s, places, marker=marker, s=14, color=color, linewidths=0, label=label)
    if axes.get_legend_handles_labels()[0]:
        legend(axes)
    bar = figure.colorbar(image, ax=axes)
    bar.ax.tick_params(colors=INK, labelsize=8)
    return figure


def marks(result: Result, cause: Cause, *, came: bool, rows: dict[str, int]) -> list[tuple[float, float]]:
    """Where slices came to a replica or left it.

    Args:
        result: Of a run.
        cause: Why.
        came: Whether they came.
        rows: Row by replica id; others are left out.

    Returns:
        (seconds of traffic, a little above or below the row), each once.
    """
    points: dict[tuple[float, float], None] = {}
    for each in result.rearrangements:
        for move in each.moves:
            row = rows.get(move.to_replica_id if came else move.from_replica_id)
            if move.cause is cause and row is not None and each.at_s >= result.start_s:
                points[each.at_s - result.start_s, row + (-0.2 if came else 0.2)] = None
    return list(points)


def _evenness(result: Result) -> Figure:
    figure = new_figure(height_in=3.0)
    axes = new_axes(figure, "time, s", "utilisation; max / mean")
    evenness = result.sharding().evenness
    times = [each.at_s for each in evenness]
    axes.plot(times, [each.mean for each in evenness], color=PALETTE[0], label="mean utilisation")
    axes.plot(times, [each.worst for each in evenness], color=PALETTE[1], linewidth=1.1, label="max / mean")
    axes.axhline(1.2, color=INK, linewidth=0.7, linestyle=":")
    axes.set_ylim(bottom=0.0)
    legend(axes)
    return figure


def _moves(page: Page, result: Result) -> None:
    rounds = [each for each in result.rearrangements if each.at_s >= result.start_s]
    page.section("Moves", "What each new assignment changed, in per cent of all load, and why.")
    rows: list[list[Cell]] = [
        [
            each.at_s - result.start_s,
            each.model_id,
            each.reason,
            len(each.moves),
            100 * each.churn(),
            *(100 * each.churn(cause) for cause in Cause),
        ]
        for each in rounds[:_ROUNDS_SHOWN]
    ]
    page.table(["at, s", "model", "why", "moves", "all %", *(f"{cause.value} %" for cause in Cause)], rows)
    if len(rounds) > _ROUNDS_SHOWN:
        page.text(f"{len(rounds) - _ROUNDS_SHOWN} more are left out.")
    moves = [(each.at_s - result.start_s, move) for each in rounds for move in each.moves]
    moves.sort(key=lambda item: (-item[1].load, item[0]))
    page.text("The largest of them:")
    page.table(
        ["at, s", "cause", "tenant", "left", "came", "MU per minute", "warm tokens left behind"],
        [
            [
                at_s,
                move.cause.value,
                move.tenant_id or "several",
                move.from_replica_id,
                move.to_replica_id,
                move.load / 1_000.0,
                move.warm_tokens,
            ]
            for at_s, move in moves[:_MOVES_SHOWN]
        ],
    )


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
