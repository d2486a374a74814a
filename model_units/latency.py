"""How slow a healthy replica is at a given load, so that an unhealthy one can be told from a busy one.

Load is an *intensity*: the costs per output token of the sequences a replica decodes, added up, in milliseconds. With
`t` the mean time per output token and `u` the priced work the replica served per second of a window, it is `t * u`: at
full load and on the profile's objective the two are equal. Time per output token grows with it, and a profile carries
that curve as it was measured; production that lies off it has drifted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from model_units.least_squares import COLUMNS_MAX, Floats, non_negative

Curve = tuple[tuple[float, float], ...]
"""(intensity, TPOT) in milliseconds, ascending in both."""

_KNOTS: Final = 8
# Intensities closer to each other than a picosecond are one.
_DIGITS: Final = 9


def healthy_tpot_ms(curve: Sequence[tuple[float, float]], intensity_ms: float) -> float:
    """Time per output token that a healthy replica shows.

    Args:
        curve: (intensity, TPOT) in milliseconds, ascending, at least one point.
        intensity_ms: The load, milliseconds, 0 or more.

    Returns:
        Milliseconds: linear between points, flat before the first, going on with the last slope after the last.

    Raises:
        ValueError: The curve is empty.
    """
    if not curve:
        raise ValueError("a latency curve needs at least one point")
    first_intensity, tpot = curve[0]
    if intensity_ms <= first_intensity:
        return tpot
    for (low, low_tpot), (high, high_tpot) in pairwise(curve):
        slope = (high_tpot - low_tpot) / (high - low)
        tpot = low_tpot + slope * (intensity_ms - low)
        if intensity_ms <= high:
            break
    return tpot


def fit_latency_curve(points: Sequence[tuple[float, float]], knots: int = _KNOTS) -> tuple[Curve, float]:
    """The non-decreasing, piecewise linear curve of least squared relative error through measurements.

    Its knots are quantiles of the measured intensities, the least and the greatest among them, and at most half as many
    as there are measurements, so that every stretch of it is held by several.

    Args:
        points: (intensity, TPOT) in milliseconds, the first 0 or more, the second above 0, in any order, at least one.
        knots: Most points of the curve, 2 to 12.

    Returns:
        The curve, and its spread: the root mean square of the measurements' relative distance from it.

    Raises:
        ValueError: No points, impossible ones, or knots out of range.
    """
    if not 2 <= knots <= COLUMNS_MAX:
        raise ValueError(f"knots must be 2 to {COLUMNS_MAX}, not {knots}")
    if not points:
        raise ValueError("a latency curve needs at least one measurement")
    for intensity_ms, tpot_ms in points:
        if not (math.isfinite(intensity_ms) and math.isfinite(tpot_ms) and intensity_ms >= 0.0 and tpot_ms > 0.0):
            raise ValueError(f"({intensity_ms}, {tpot_ms}) is no measurement: both finite, 0 or more and above 0")
    intensities, tpots = np.array(sorted(points)).T
    intensities = intensities.round(_DIGITS)
    at = _knots(intensities, min(knots, max(2, len(points) // 2)))
    # Value at the first knot and the rises from knot to knot, none of them negative.
    rises = np.tril(np.ones((len(at), len(at))))
    shares = np.array([np.interp(intensities, at, unit) for unit in np.eye(len(at))]).T
    steps = non_negative(shares @ rises / tpots[:, None], np.ones(len(tpots)))
    # Convex stretches may pull the fit under everything that was seen.
    values = np.maximum(np.cumsum(steps), tpots.min())
    curve = tuple(zip(at.tolist(), values.tolist(), strict=True))
    relative = np.interp(intensities, at, values) / tpots - 1.0
    return curve, float(np.sqrt(np.mean(relative**2)))


def _knots(intensities: Floats, count: int) -> Floats:
    """At most `count` different measured intensities, evenly spread over the sorted measurements."""
    places = np.round(np.linspace(0, len(intensities) - 1, count)).astype(int)
    chosen: Floats = np.unique(intensities[places])
    return chosen
