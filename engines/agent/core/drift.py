"""Is the engine as fast as the cost profile in force says? Compared at the load it has right now.

The profile's latency curve gives the time per output token of a healthy replica over its load, where load is the sum,
over the sequences being decoded, of what each costs per output token (model_units.latency). Both are seen from here:

    t = time that sequences spent decoding / tokens they got
    u = replica-seconds of work served, by the profile's own prices / time the engine had work
    load = t * u        ratio = t / curve(load)

An engine that takes f times as long for everything shows f times t and, with as many sequences, u / f: the load stays
and the ratio is f. How busy it is does not enter.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from engines.agent.core.decoding import Sums
from model_units.latency import healthy_tpot_ms

TOKENS_PER_WINDOW_MIN: Final = 20
"""Fewer say more about who came and went than about the engine."""

TOKENS_MIN: Final = 200
"""Before these were seen no ratio is stated."""

_BUSY_SHARE_MIN: Final = 0.5
# Windows older than this many smoothing times say nothing about now.
_AGE_MAX: Final = 10.0


def telling(sums: Sums) -> bool:
    """Whether a window says anything about the engine's speed."""
    return (
        sums.tokens >= TOKENS_PER_WINDOW_MIN
        and sums.decoding_s > 0.0
        and sums.work_s > 0.0
        and sums.busy_s > _BUSY_SHARE_MIN * sums.window_s
    )


class DriftWindow:
    """The ratio over the busy windows of the last while.

    Args:
        curve: (load, TPOT) in milliseconds, as in a profile's evidence; empty says nothing ever.
        smoothing_s: How much busy time is looked back on, seconds, above 0.
    """

    def __init__(self, curve: tuple[tuple[float, float], ...], smoothing_s: float = 60.0) -> None:
        self._curve = curve
        self._smoothing_s = smoothing_s
        self._windows: deque[tuple[float, Sums, float]] = deque()  # (when, what, ratio), oldest first

    def add(self, sums: Sums, now_s: float) -> None:
        """Takes a window that ended at `now_s`; one that says nothing is ignored."""
        if self._curve and telling(sums):
            tpot_s = sums.decoding_s / sums.tokens
            load_ms = 1_000.0 * tpot_s * sums.work_s / sums.busy_s
            self._windows.append((now_s, sums, 1_000.0 * tpot_s / healthy_tpot_ms(self._curve, load_ms)))
        while self._windows and self._surplus(now_s):
            self._windows.popleft()

    def _surplus(self, now_s: float) -> bool:
        """Whether the oldest window can be done without."""
        oldest_s, oldest, _ = self._windows[0]
        busy_s = sum(sums.busy_s for _, sums, _ in self._windows)
        return busy_s - oldest.busy_s >= self._smoothing_s or now_s - oldest_s > _AGE_MAX * self._smoothing_s

    @property
    def tokens(self) -> int:
        """Tokens the ratio stands for."""
        return sum(sums.tokens for _, sums, _ in self._windows)

    @property
    def ratio(self) -> float:
        """Time taken over time the curve says, each window by its tokens; 0 before TOKENS_MIN were seen."""
        tokens = self.tokens
        if tokens < TOKENS_MIN:
            return 0.0
        return sum(sums.tokens * ratio for _, sums, ratio in self._windows) / tokens
