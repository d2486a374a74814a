"""The figures of a calibration's report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from common.report import INK, PALETTE, SEQUENTIAL, legend, log_axis, new_axes, new_figure
from control_plane.calibration.evaluate import Curve
from model_units.calibration.outcome import MeasuredClass, MeasuredPoint, Outcome
from model_units.fit import Fit, Row
from model_units.units import MILLI_PER_MODEL_UNIT, REPLICA_CAPACITY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MU_PER_REPLICA_SECOND: Final = REPLICA_CAPACITY / MILLI_PER_MODEL_UNIT / 60
_BAND: Final = 0.05
"""The band around the diagonal: the error that is aimed at."""
_CELLS: Final = 48
# Where the colours begin again, lines and marks change.
_STYLES: Final = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
_NAME_MAX: Final = 30


def cost_map(fit: Fit, points: Sequence[MeasuredPoint]) -> Figure:
    """Cost over the lengths of prompt and answer.

    Args:
        fit: The cost function.
        points: The lengths that were measured, at least one.
    """
    reads, mades = (np.array([getattr(point, f"{side}_tokens") for point in points]) for side in ("input", "output"))
    x = np.geomspace(max(1.0, reads.min() / 1.5), reads.max() * 1.5, _CELLS)
    y = np.geomspace(max(1.0, mades.min() / 1.5), mades.max() * 1.5, _CELLS)
    cost = np.array([[_mu(fit, read, made) for read in x] for made in y])
    levels = np.geomspace(cost.min(), cost.max() * 1.001, 13)
    figure = new_figure(height_in=4.6)
    axes = new_axes(figure, "prompt, tokens", "answer, tokens")
    axes.grid(False)
    filled = axes.contourf(x, y, cost, levels=levels, cmap=SEQUENTIAL, norm="log")
    lines = axes.contour(x, y, cost, levels=levels[2:-1:2], colors="white", linewidths=0.7, alpha=0.8)
    axes.clabel(lines, fmt=lambda value: f"{value:.3g}", fontsize=8)
    axes.plot(reads, mades, "o", color="white", markeredgecolor="black", markersize=5.5, linestyle="none")
    log_axis(axes, "x", base=2)
    log_axis(axes, "y", base=2)
    bar = figure.colorbar(filled, ax=axes, ticks=levels[::3], format=lambda value, _: f"{value:.3g}")
    bar.set_label("MU per request", color=INK, fontsize=9.5)
    bar.ax.tick_params(which="both", colors=INK, labelsize=9)
    bar.ax.minorticks_off()
    return figure


def _mu(fit: Fit, read: float, made: float) -> float:
    return fit.predict(Row.of_request(read, made, 1.0)) * _MU_PER_REPLICA_SECOND


def predicted(points: Sequence[MeasuredPoint], classes: Sequence[MeasuredClass]) -> Figure:
    """Predicted against measured cost, with the diagonal and a band around it.

    Args:
        points: The lengths that were measured, at least one.
        classes: Traffic that was measured beside them.
    """
    measured = np.array([point.replica_s for point in points]) * _MU_PER_REPLICA_SECOND
    held_out = measured * (1 + np.array([point.hold_out_error for point in points]))
    figure = new_figure(height_in=4.6)
    axes = new_axes(figure, "measured, MU per request", "predicted, MU per request")
    rates = [each for each in classes if each.requests_per_s > 0]
    of_classes = np.array([_MU_PER_REPLICA_SECOND / each.requests_per_s for each in rates])
    ends = np.concatenate([measured, of_classes])
    diagonal = np.array([ends.min() / 1.4, ends.max() * 1.4])
    axes.fill_between(
        diagonal, diagonal * (1 - _BAND), diagonal * (1 + _BAND), color=PALETTE[-1], alpha=0.3, label=f"±{_BAND:.0%}"
    )
    axes.plot(diagonal, diagonal, color=INK, linewidth=0.9)
    axes.plot(measured, held_out, "o", color=PALETTE[0], markersize=5, label="lengths, left out of the fit")
    if rates:
        guessed = of_classes * (1 + np.array([each.error for each in rates]))
        axes.plot(of_classes, guessed, "D", color=PALETTE[1], markersize=6, label="traffic classes")
    log_axis(axes, "x")
    log_axis(axes, "y")
    legend(axes)
    return figure


def load_curves(curves: Sequence[Curve], tpot_objective_ms: float, ttft_objective_ms: float) -> Figure:
    """Latency over the number of requests at a time, one line for each pair of lengths and each traffic class.

    Args:
        curves: What was measured, at least one.
        tpot_objective_ms: Objective of the time per output token.
        ttft_objective_ms: Objective of the time to first token; 0 for none.
    """
    figure = new_figure(height_in=5.2)
    tpot = new_axes(figure, "requests at a time", "time per output token, ms", place=(1, 2, 1))
    ttft = new_axes(figure, "requests at a time", "time to first token, 95th percentile, ms", place=(1, 2, 2))
    for number, curve in enumerate(curves):
        concurrency, per_token_ms, first_ms = zip(*curve.points, strict=True)
        line, mark = _STYLES[number // len(PALETTE) % len(_STYLES)]
        for axes, latency_ms in ((tpot, per_token_ms), (ttft, [each or math.nan for each in first_ms])):
            axes.plot(
                concurrency,
                latency_ms,
                color=PALETTE[number % len(PALETTE)],
                linestyle=line,
                linewidth=1.2,
                marker=mark,
                markersize=4,
                label=curve.name[:_NAME_MAX],
            )
    for axes, objective_ms in ((tpot, tpot_objective_ms), (ttft, ttft_objective_ms)):
        log_axis(axes, "x", base=2)
        if objective_ms:
            axes.axhline(objective_ms, color=INK, linestyle="--", linewidth=1)
    if any(point[2] > 0 for curve in curves for point in curve.points):
        log_axis(ttft, "y")
    _shared_legend(figure, tpot)
    return figure


def _shared_legend(figure: Figure, axes: Axes) -> None:
    """One legend below all axes."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=8, labelcolor=INK)


def latency_curve(curve: Sequence[tuple[float, float]], spread: float) -> Figure:
    """What a healthy replica shows, with the typical distance of measurements.

    Args:
        curve: (intensity, time per output token), milliseconds, ascending; at least one.
        spread: Relative distance.
    """
    x, y = np.array(curve).T
    figure = new_figure(height_in=3.6)
    axes = new_axes(figure, "load: cost per output token of all that decode, ms", "time per output token, ms")
    axes.fill_between(x, y * (1 - spread), y * (1 + spread), color=PALETTE[0], alpha=0.2, label=f"±{spread:.1%}")
    axes.plot(x, y, color=PALETTE[0], marker="o", markersize=4, label="healthy replica")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    legend(axes)
    return figure


def errors(outcome: Outcome, error_max: float) -> Figure:
    """Signed error of every length left out of the fit and of every traffic class.

    Args:
        outcome: With a fit.
        error_max: The error up to which a profile is published by itself; drawn as two lines.
    """
    bars = [
        (f"{point.input_tokens:,} + {point.output_tokens:,}", point.hold_out_error, PALETTE[0])
        for point in sorted(outcome.points, key=lambda point: (point.input_tokens, point.output_tokens))
    ]
    bars += [(each.name[:_NAME_MAX], each.error, PALETTE[1]) for each in outcome.classes]
    figure = new_figure(height_in=1.2 + 0.22 * len(bars))
    axes = new_axes(figure, "error, %", "")
    places = np.arange(len(bars))
    axes.barh(places, [100 * error for _, error, _ in bars], color=[colour for _, _, colour in bars], height=0.7)
    axes.set_yticks(places, [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.axvline(0, color=INK, linewidth=0.9)
    for side in (-1, 1):
        axes.axvline(100 * side * error_max, color=INK, linewidth=0.9, linestyle="--")
    return figure
