"""What is drawn from: quantile functions for lengths, renewal processes for arrivals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from simulation.traces.workload import Floats


@dataclass(frozen=True, slots=True)
class QuantileFunction:
    """A distribution by its quantiles; between them it is a line, beyond the first and last it is flat.

    Attributes:
        shares: Rising, 0 to 1.
        values: Not falling, one per share.
    """

    shares: Floats
    values: Floats

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]], *, factor: float = 1.0) -> QuantileFunction:
        """From (share, value) pairs; values are multiplied by `factor`."""
        shares, values = zip(*points, strict=True)
        return cls(np.array(shares, dtype=np.float64), np.array(values, dtype=np.float64) * factor)

    def at(self, shares: Floats) -> Floats:
        """The quantiles of some shares; a uniform draw gives a draw of the distribution."""
        values: Floats = np.interp(shares, self.shares, self.values)
        return values

    @property
    def mean(self) -> float:
        """Mean of what is drawn."""
        below = self.shares[0] * self.values[0]
        above = (1 - self.shares[-1]) * self.values[-1]
        return float(below + np.trapezoid(self.values, self.shares) + above)


class Family(StrEnum):
    """Distributions of the times between arrivals, as published."""

    GAMMA = "Gamma"
    WEIBULL = "Weibull"


_WEIBULL_SHAPES: Final = np.geomspace(50.0, 0.08, 400)
_WEIBULL_CVS: Final = np.array(
    [math.sqrt(math.gamma(1 + 2 / k) / math.gamma(1 + 1 / k) ** 2 - 1) for k in _WEIBULL_SHAPES]
)
_CV_MIN: Final = 0.02  # as even as a clock, for any purpose here


def shape_of(family: Family, cv: float) -> float:
    """The shape parameter that gives a coefficient of variation.

    Args:
        family: Of the times between arrivals.
        cv: Standard deviation over mean, 0 or more; taken as at least 0.02, for Weibull as at most about 1e6.
    """
    cv = max(cv, _CV_MIN)
    return cv**-2 if family is Family.GAMMA else float(np.interp(cv, _WEIBULL_CVS, _WEIBULL_SHAPES))


def arrivals(draws: np.random.Generator, count: int, span_s: float, family: Family, shape: float) -> Floats:
    """Arrivals of a renewal process that is known to have had `count` of them in a span.

    The times between arrivals are drawn from the family and stretched to fill the span together, so the count is met
    and they vary as wanted among themselves (as far as so few of them can: at most by a CV of about sqrt(count)).

    Args:
        draws: Randomness.
        count: How many, 0 or more.
        span_s: Length of the span, seconds.
        family: Of the times between arrivals.
        shape: Its shape parameter, above 0.

    Returns:
        Seconds after the span's beginning, sorted.
    """
    gaps = draws.standard_gamma(shape, count + 1) if family is Family.GAMMA else draws.weibull(shape, count + 1)
    total = gaps.sum()
    if not 0 < total < math.inf:  # every gap rounded down to nothing: one of them is all there is
        gaps, total = np.zeros(count + 1), 1.0
        gaps[draws.integers(count + 1)] = 1.0
    times: Floats = np.minimum(np.cumsum(gaps[:-1]) / total, np.nextafter(1.0, 0.0)) * span_s
    return times
