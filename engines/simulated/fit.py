"""Fits the step-time constants of a configuration to its measured kernels.

`python -m engines.simulated.fit [CSV]` prints what the constants in hardware.py are made of.

The formula of hardware.py, without the host's work, is fitted to whole decode steps and prefill steps, in the mean
absolute relative error that its bars speak of (4 % for decode, 5 % for prefill). Kernel times jump where a kernel
changes its tiling, so single points may be off by a quarter: the absolute error is not led astray by them as squares
would be. The parts of a step (linear layers, attention) count a little too: steps alone cannot tell a0 from w0.

How: the two lines of the linear layers are told apart by a breakpoint, which is scanned. From each, weighted least
squares with weights of one over the last error (which converges to the least absolute error) and points handed to the
line that is higher there, until nothing improves. Constants below zero are taken out of the fit, but g0 may be one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engines.simulated.config_names import facts_of
from engines.simulated.hardware import PUBLISHED, Hardware
from engines.simulated.kernel_points import SHIPPED_POINTS, Component, KernelPoint, check_points, read_kernel_points
from fairlead.errors import InvalidArgumentError

DECODE_ERROR_MAX: Final = 0.04
"""Bar: mean absolute relative error over the decode steps."""
PREFILL_ERROR_MAX: Final = 0.05
"""Bar: mean absolute relative error over the prefill steps."""

_WEIGHTS: Final = {
    Component.DECODE_STEP: 1.0 / DECODE_ERROR_MAX,
    Component.PREFILL_STEP: 1.0 / PREFILL_ERROR_MAX,
    Component.LINEAR_LAYERS: 2.0,
    Component.DECODE_ATTENTION: 0.4,
    Component.PREFILL_ATTENTION: 0.4,
}
_ROUNDS: Final = 60
_BREAKPOINTS_MAX: Final = 40  # scanned; the rounds move the breakpoint on from there
_ERROR_FLOOR: Final = 1e-5  # keeps the weight of a point that is met exactly finite
_DIGITS: Final = 4  # of the constants: 0.05 %, far below what a fit knows
_CONSTANTS: Final = ("w0", "w1", "g0", "g1", "a0", "ad", "ap", "h")
_G0: Final = 2

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class HardwareFit:
    """Constants and how well they meet the measurements.

    Attributes:
        hardware: The constants, rounded.
        decode_error: Mean absolute relative error over the decode steps.
        prefill_error: The same over the prefill steps.
        worst: The step that is met worst.
        worst_error: Its relative error; above 0 where the formula says too much.
        notes: What was assumed about host work and KV capacity, one sentence each.
    """

    hardware: Hardware
    decode_error: float
    prefill_error: float
    worst: KernelPoint
    worst_error: float
    notes: tuple[str, ...]

    @property
    def acceptable(self) -> bool:
        """Whether both bars are met."""
        return self.decode_error <= DECODE_ERROR_MAX and self.prefill_error <= PREFILL_ERROR_MAX


def fit_hardware(config: str, points: Sequence[KernelPoint]) -> HardwareFit:
    """Fits one configuration.

    Args:
        config: Its name, which tells host work, KV capacity and label (see config_names.py).
        points: Its measurements; decode steps and prefill steps are needed, the parts of a step help.

    Returns:
        The constants and their errors.

    Raises:
        InvalidArgumentError: Steps of one kind are missing, or a number is out of range.
    """
    points = tuple(points)
    check_points(config, points)
    constants = [_rounded(value) for value in _Problem(points).solve()]
    w0, w1, g0, g1, a0, ad, ap = constants
    facts = facts_of(config)
    fitted = Hardware(
        facts.label, facts.model, w0, w1, g0, g1, a0, ad, ap, facts.host_ms, facts.kv_capacity_tokens, facts.weights_gb
    )
    return _judged(fitted, points, facts.notes)


def relative_error(hardware: Hardware, point: KernelPoint) -> float:
    """What the formula says of a measured step, host work aside, against the measurement; above 0 when too much."""
    said_s = replace(hardware, h=0.0).step_s(
        prefill_tokens=point.prefill_tokens,
        prefill_squares=point.prefill_squares,
        sequences=point.sequences,
        context_tokens=point.context_tokens,
    )
    return said_s * 1_000.0 / point.ms - 1.0


def errors_of(hardware: Hardware, points: Sequence[KernelPoint]) -> tuple[float, float]:
    """Mean absolute relative errors of some constants over (decode steps, prefill steps), which must be there."""
    decode, prefill = (
        [abs(relative_error(hardware, point)) for point in points if point.component is component]
        for component in (Component.DECODE_STEP, Component.PREFILL_STEP)
    )
    return float(np.mean(decode)), float(np.mean(prefill))


def _judged(hardware: Hardware, points: tuple[KernelPoint, ...], notes: tuple[str, ...]) -> HardwareFit:
    steps = [point for point in points if point.component in (Component.DECODE_STEP, Component.PREFILL_STEP)]
    worst = max(steps, key=lambda point: abs(relative_error(hardware, point)))
    decode_error, prefill_error = errors_of(hardware, points)
    return HardwareFit(hardware, decode_error, prefill_error, worst, relative_error(hardware, worst), notes)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


class _Problem:
    """The measurements as arrays, one row per point; constants are (w0, w1, g0, g1, a0, ad, ap)."""

    def __init__(self, points: Sequence[KernelPoint]) -> None:
        self._tokens = np.array([point.linear_tokens for point in points], dtype=np.float64)
        self._linear = self._tokens > 0
        attention = [point.component is not Component.LINEAR_LAYERS for point in points]
        self._rest = np.array(
            [
                (float(point.sequences > 0), point.context_tokens, point.prefill_squares) if counts else (0.0, 0.0, 0.0)
                for point, counts in zip(points, attention, strict=True)
            ]
        )
        self._ms = np.array([point.ms for point in points])
        counts = {component: sum(point.component is component for point in points) for component in Component}
        self._weights = np.array([_WEIGHTS[point.component] / counts[point.component] for point in points])

    def solve(self) -> Floats:
        """The constants of least weighted absolute error that were found."""
        tokens = np.unique(self._tokens[self._linear])
        between = [float(low + high) / 2 for low, high in pairwise(tokens)]
        breakpoints = between[:: 1 + len(between) // _BREAKPOINTS_MAX]
        tried = [self._one_line(), *(self._from(breakpoint) for breakpoint in breakpoints)]
        best = min(tried, key=self._loss)
        if best[3] < best[1]:  # the lines by slope, so that w is the one of few tokens
            best[[0, 1, 2, 3]] = best[[2, 3, 0, 1]]
        return best

    def _loss(self, constants: Floats) -> float:
        return float(np.sum(self._weights * np.abs(self._errors(constants))))

    def _errors(self, constants: Floats) -> Floats:
        w0, w1, g0, g1 = constants[:4]
        linear = np.maximum(w0 + w1 * self._tokens, g0 + g1 * self._tokens)
        said = np.where(self._linear, linear, 0.0) + self._rest @ constants[4:]
        errors: Floats = said / self._ms - 1.0
        return errors

    def _one_line(self) -> Floats:
        """The best constants with a single line, as both lines: for measurements that never reach the other one."""
        best, weights = np.zeros(7), self._weights
        for _ in range(_ROUNDS):
            constants = self._least_squares(np.zeros_like(self._linear), weights)
            constants[2:4] = constants[:2]
            best = min(best, constants, key=self._loss)
            weights = self._reweighted(constants)
        return best

    def _from(self, breakpoint: float) -> Floats:
        """The best constants on the way from one breakpoint."""
        upper = self._tokens >= breakpoint
        best, weights = np.zeros(7), self._weights
        for _ in range(_ROUNDS):
            constants = self._least_squares(upper, weights)
            best = min(best, constants, key=self._loss)
            weights = self._reweighted(constants)
            w0, w1, g0, g1 = constants[:4]
            upper = g0 + g1 * self._tokens > w0 + w1 * self._tokens
            if len(set(upper[self._linear])) < 2:
                break
        return best

    def _reweighted(self, constants: Floats) -> Floats:
        weights: Floats = self._weights / np.maximum(np.abs(self._errors(constants)), _ERROR_FLOOR)
        return weights

    def _least_squares(self, upper: Mask, weights: Floats) -> Floats:
        """Weighted least squares of the relative error, with the points of `upper` on the line g."""
        lower_share, upper_share = self._linear * ~upper, self._linear * upper
        columns = np.column_stack(
            [lower_share, lower_share * self._tokens, upper_share, upper_share * self._tokens, self._rest]
        )
        root = np.sqrt(weights)
        rows, target = columns * (root / self._ms)[:, None], root
        scale = np.linalg.norm(rows, axis=0)
        free = scale > 0
        while True:
            constants = np.zeros(7)
            constants[free] = np.linalg.lstsq(rows[:, free] / scale[free], target, rcond=None)[0] / scale[free]
            negative = constants < 0
            negative[_G0] = False
            if not negative.any():
                return constants
            free &= ~negative


def comparison(fits: Sequence[HardwareFit], points: Mapping[str, Sequence[KernelPoint]]) -> Table:
    """Lays fits out: constants, errors, and where constants were published for the label, those below.

    Args:
        fits: One per configuration.
        points: The measurements by configuration, in the order of `fits`.
    """
    table = Table(title="Step-time constants in ms, errors as mean absolute relative error", title_justify="left")
    table.add_column("configuration")
    for name in (*_CONSTANTS, "KV tokens", "decode error", "prefill error"):
        table.add_column(name, justify="right")
    for fit, (config, rows) in zip(fits, points.items(), strict=True):
        label = fit.hardware.label
        decode, prefill = fit.decode_error, fit.prefill_error
        table.add_row(
            escape(f"{config}\n({label})"),
            *_cells(fit.hardware, decode, prefill),
            style="" if fit.acceptable else "red",
        )
        if label in PUBLISHED:
            table.add_row("published", *_cells(PUBLISHED[label], *errors_of(PUBLISHED[label], rows)), style="dim")
    return table


def _cells(hardware: Hardware, decode_error: float, prefill_error: float) -> list[str]:
    constants = [f"{getattr(hardware, name):.{_DIGITS}g}" for name in _CONSTANTS]
    return [*constants, f"{hardware.kv_capacity_tokens:,}", f"{decode_error:.2%}", f"{prefill_error:.2%}"]


def main(path: Path | str = SHIPPED_POINTS, console: Console | None = None) -> int:
    """Prints the fit of every configuration of a file.

    Args:
        path: The measurements.
        console: Where to.

    Returns:
        Exit code: 0, 1 when a configuration misses a bar, 2 when the file cannot be used.
    """
    console = console or Console()
    try:
        points = read_kernel_points(path)
        fits = [fit_hardware(config, rows) for config, rows in points.items()]
    except InvalidArgumentError as error:
        console.print(error.message, style="red", markup=False)
        return 2
    console.print(comparison(fits, points))
    for config, fit in zip(points, fits, strict=True):
        for note in fit.notes:
            console.print(f"{config}: {note}", markup=False)
        worst = fit.worst
        where = f"{worst.component} of {worst.batch} x {worst.length}"
        console.print(f"{config}: worst {where}: {fit.worst_error:+.1%}", markup=False)
        if not fit.acceptable:
            bars = f"decode {DECODE_ERROR_MAX:.0%}, prefill {PREFILL_ERROR_MAX:.0%}"
            console.print(f"{config} misses a bar: {bars}", markup=False)
    return 0 if all(fit.acceptable for fit in fits) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else SHIPPED_POINTS))
