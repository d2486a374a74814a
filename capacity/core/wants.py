"""How wants are counted, so that their noise moves nobody's quota.

Wants are rounded up to 1/16 of their power of two (6 % at most). Over time, what is counted rises at once; it falls at
once when less than half is wanted, and otherwise only after a time in which wants were two steps lower all along.
"""

from __future__ import annotations

import numpy as np

from capacity.core.columns import Column, column
from common.clock import NS_PER_S, MonotonicNs

_STEPS = 16
# Wants are seen about once a second: ten of them show the height of their noise.
HOLD_NS = 10 * NS_PER_S


def round_up(wants: Column) -> Column:
    """Wants rounded up to 1/16 of their power of two; below 16 as they are."""
    if wants.dtype == object:
        return column([_round_up(want) for want in wants.tolist()])
    # frexp's exponent is the number of bits; floats are exact for all that a 64-bit column holds.
    steps = 1 << np.maximum(np.frexp(wants.astype(np.float64))[1] - _STEPS.bit_length(), 0).astype(np.int64)
    rounded: Column = -(-wants // steps) * steps
    return rounded


def _round_up(want: int) -> int:
    step = 1 << max(0, want.bit_length() - _STEPS.bit_length())
    return -(-want // step) * step


def _with_room(wants: Column) -> Column:
    """One step more than wants: what is counted falls to this, so that it does not rise again with the next noise."""
    return round_up(wants + wants // _STEPS)


class SteadyWants:
    """What is counted of one model's wants as time goes by."""

    def __init__(self) -> None:
        self._tenants: tuple[str, ...] = ()
        self._counted = self._peak = self._wants = column([])
        self._ends_ns = MonotonicNs(0)

    def count(self, tenants: tuple[str, ...], wants: Column, now: MonotonicNs) -> Column:
        """Takes what is wanted now and returns what is counted.

        Args:
            tenants: Who; anyone new starts with what it wants.
            wants: One each, at most the ceiling.
            now: Current time.
        """
        if tenants != self._tenants:
            self._align(tenants)
        self._wants = wants
        self._peak = np.maximum(self._peak, wants)
        with_room = _with_room(wants)
        rises = wants > self._counted
        collapses = with_room * 2 < self._counted
        self._counted = np.where(rises | collapses, round_up(wants), self._counted)
        self._peak = np.where(collapses, wants, self._peak)
        if now >= self._ends_ns:
            highest = _with_room(self._peak)
            self._counted = np.where(highest < self._counted, highest, self._counted)
            self._peak, self._ends_ns = wants, MonotonicNs(now + HOLD_NS)
        return self._counted

    def is_due(self, now: MonotonicNs) -> bool:
        """Whether something may fall by the passing of time alone."""
        return now >= self._ends_ns and bool((self._counted > _with_room(self._wants)).any())

    def _align(self, tenants: tuple[str, ...]) -> None:
        counted = dict(zip(self._tenants, self._counted.tolist(), strict=True))
        peak = dict(zip(self._tenants, self._peak.tolist(), strict=True))
        self._counted = column([counted.get(tenant, 0) for tenant in tenants])
        self._peak = column([peak.get(tenant, 0) for tenant in tenants])
        self._tenants = tenants
