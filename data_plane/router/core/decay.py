"""Sums that forget: the building block of every "lately" in the router."""

from __future__ import annotations

import math
from typing import Final

_LN2: Final = math.log(2.0)
_NS_PER_S: Final = 1_000_000_000


class DecayingSum:
    """A sum whose every summand halves each half-life.

    Fed at a steady rate r per second it settles at r * half_life_s / ln 2.

    Args:
        half_life_s: Above 0.
        now_ns: Monotonic time of the start.
    """

    __slots__ = ("_at_ns", "_decay_per_ns", "_value")

    def __init__(self, half_life_s: float, now_ns: int) -> None:
        self._decay_per_ns = _LN2 / (half_life_s * _NS_PER_S)
        self._value = 0.0
        self._at_ns = now_ns

    def add(self, amount: float, now_ns: int) -> None:
        """Adds `amount` at `now_ns`; an older time counts as the newest one seen."""
        elapsed_ns = now_ns - self._at_ns
        if elapsed_ns > 0:
            self._value *= math.exp(-elapsed_ns * self._decay_per_ns)
            self._at_ns = now_ns
        self._value += amount

    def value(self, now_ns: int) -> float:
        """The sum at `now_ns`."""
        elapsed_ns = now_ns - self._at_ns
        return self._value * math.exp(-elapsed_ns * self._decay_per_ns) if elapsed_ns > 0 else self._value

    def per_minute(self, now_ns: int) -> float:
        """The steady rate per minute that would hold the sum at its value."""
        return self.value(now_ns) * self._decay_per_ns * 60 * _NS_PER_S
