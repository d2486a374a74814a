"""How a tenant's rate changes over a run: surges, shifts, and the noise that any traffic has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Final, Protocol, Self, TypeVar

from simulation.scenario import TenantSpec

NOISE_WINDOW_S: Final = 30.0
"""Noise changes this often: slower than a round of the sharder (15 s), so that it is seen, and faster than its answer
to a lasting change (90 s), so that it should be left alone."""


class _Timed(Protocol):
    @property
    def at_s(self) -> float: ...

    def _replace(self, *, at_s: float) -> Self: ...


A = TypeVar("A", bound=_Timed)


class Shape:
    """A rate over time, relative to what the scenario says.

    Args:
        pieces: (since when, seconds; factor, 0 or more), in order; the first begins at 0.

    Attributes:
        pieces: The same.
    """

    def __init__(self, pieces: tuple[tuple[float, float], ...]) -> None:
        self.pieces = pieces

    def work_s(self, until_s: float) -> float:
        """How many seconds at a factor of 1 bring as much as this does up to a moment."""
        ends = [*(begin for begin, _ in self.pieces[1:]), math.inf]
        spans = zip(self.pieces, ends, strict=True)
        return sum(factor * max(0.0, min(end, until_s) - begin) for (begin, factor), end in spans)

    def apply(self, arrivals: Iterator[A]) -> Iterator[A]:
        """Moves arrivals at a factor of 1, in order, to when they come by this shape."""
        at_work_s, place = 0.0, 0
        for arrival in arrivals:
            while True:
                begin, factor = self.pieces[place]
                last = place + 1 == len(self.pieces)
                ends_work_s = math.inf if last else at_work_s + factor * (self.pieces[place + 1][0] - begin)
                if arrival.at_s < ends_work_s and factor:
                    break
                if last:
                    return
                at_work_s, place = ends_work_s, place + 1
            yield arrival._replace(at_s=begin + (arrival.at_s - at_work_s) / factor)


def shape_of(spec: TenantSpec, random: Callable[[], Random], duration_s: float) -> Shape | None:
    """The shape of a tenant's traffic.

    Args:
        spec: The tenant.
        random: Makes the random stream its noise is drawn from.
        duration_s: How long the run lasts.

    Returns:
        Seconds count from the beginning of the tenant's traffic; None where its rate never changes.
    """
    if spec.surge_factor == 1.0 and not spec.noise:
        return None
    begin_s = max(0.0, spec.surge_at_s - spec.start_s)
    end_s = begin_s + spec.surge_for_s if spec.surge_for_s else math.inf
    moments = {0.0, begin_s, *([end_s] if end_s < math.inf else [])}
    draws: dict[int, float] = {}
    if spec.noise:
        noise, windows = random(), math.ceil(duration_s / NOISE_WINDOW_S)
        draws = {at: 1.0 + spec.noise * noise.uniform(-1.0, 1.0) for at in range(windows)}
        moments.update(at * NOISE_WINDOW_S for at in range(windows))

    def factor(at_s: float) -> float:
        surge = spec.surge_factor if begin_s <= at_s < end_s else 1.0
        return surge * draws.get(int(at_s / NOISE_WINDOW_S), 1.0)

    return Shape(tuple((at_s, factor(at_s)) for at_s in sorted(moments)))
