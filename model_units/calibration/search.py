"""The highest load that keeps an objective: how many requests at a time to try next. Pure.

*Stress* is what a load does to the objective: measured over allowed, the worse of the two latencies; 1 is exactly what
is allowed. It grows with the number of requests at a time, nearly on a line from an idle replica's. The search goes up
or down that line until a load comes close to 1, or two that differ by one request lie on both sides of it.

A step takes a fixed time and a time for its work, so the share of a replica that is work grows with the time per output
token t, from none in an idle replica's t0: 1 - t0/t. Work per second at the objective T is therefore that of a load
close to it, times (1 - t0/T) / (1 - t0/t).

Two loads end the search early: the most the engine takes, and one that brings no more work than a smaller one (the
replica is busy with prefill all the time: its rate is what it can do, whatever waits).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from model_units.calibration.load import LoadResult

# A load this close to the objective is close enough: what is left is put right by the share of work in a step.
_STRESS_LOW: Final = 0.75
_STRESS_HIGH: Final = 1.4
# A load is not close enough where more than this has to be put right.
_CORRECTION_MAX: Final = 0.3
# Nearer to idle than this, the share of work in a step is too small to tell anything.
_WORK_MIN: Final = 0.2
# The time to first token does not follow from the share of work: a load has to come this close to its objective.
_TTFT_CLOSE: Final = 0.1
# More requests at a time that bring less than this much more work bring nothing.
_GAIN_MIN: Final = 1.02
_GROWTH_MAX: Final = 4.0
_PROBES_MAX: Final = 6


@dataclass(frozen=True, slots=True)
class Objective:
    """What full load still keeps.

    Attributes:
        tpot_ms: Mean time per output token, milliseconds, above 0.
        ttft_ms: 95th percentile of the time to first token, milliseconds; 0 for none.
    """

    tpot_ms: float
    ttft_ms: float = 0.0

    def stress(self, result: LoadResult) -> float:
        """Measured over allowed."""
        stress = 1000.0 * result.tpot_s / self.tpot_ms
        return max(stress, 1000.0 * result.ttft_s_p95 / self.ttft_ms) if self.ttft_ms else stress

    def tpot_binds(self, result: LoadResult) -> bool:
        """Whether the time per output token is the worse of the two."""
        return self.stress(result) == 1000.0 * result.tpot_s / self.tpot_ms


@dataclass(frozen=True, slots=True)
class Probe:
    """One load that was tried.

    Attributes:
        concurrency: Requests at a time.
        result: What it came to.
        stress: What it did to the objective.
    """

    concurrency: int
    result: LoadResult
    stress: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens read and made per second."""
        return (self.result.input_tokens + self.result.output_tokens) / self.result.window_s


@dataclass(frozen=True, slots=True)
class Rates:
    """Work per second at the highest load that keeps the objective.

    Attributes:
        requests: Requests begun.
        input_tokens: Prompt tokens computed.
        input_squares: The sum of the prompts' squared lengths.
        output_tokens: Tokens made.
        context_tokens: The sum of their contexts.
        kept: Whether the objective is kept; not even one request at a time does where it is False.
    """

    requests: float
    input_tokens: float
    input_squares: float
    output_tokens: float
    context_tokens: float
    kept: bool


class Search:
    """Looks for the highest load.

    Args:
        objective: What to keep.
        most: Most requests at a time, 1 or more.
        guess: Where to begin, 1 to `most`.
        idle_stress: Stress of an idle replica, as far as it is known, 0 or more.
    """

    def __init__(self, objective: Objective, *, most: int, guess: int, idle_stress: float) -> None:
        self._objective = objective
        self._most = most
        self._guess = max(1, min(most, guess))
        self._idle = min(0.8, idle_stress)
        self.probes: list[Probe] = []

    def record(self, concurrency: int, result: LoadResult) -> None:
        """Takes what a load came to."""
        self.probes.append(Probe(concurrency, result, self._objective.stress(result)))
        self.probes.sort(key=lambda probe: probe.concurrency)

    def next(self) -> int | None:
        """Requests at a time to try next; None when the search is over."""
        if not self.probes:
            return self._guess
        if len(self.probes) >= _PROBES_MAX or self._closest() is not None:
            return None
        low, high = self._around()
        if high is None:
            return self._up()
        if low is None:
            return self._down(high)
        if high.concurrency - low.concurrency <= 1:
            return None
        share = (1.0 - low.stress) / (high.stress - low.stress)
        middle = round(low.concurrency + share * (high.concurrency - low.concurrency))
        return min(high.concurrency - 1, max(low.concurrency + 1, middle))

    def rates(self) -> Rates:
        """Work per second where the objective is just kept; to be asked when `next` is None."""
        low, high = self._around()
        full = low is not None and high is None and (low.concurrency >= self._most or self._saturated())
        if full:
            most = max(self.probes, key=lambda probe: probe.tokens_per_s)
            return _between(most, most, 0.0, (1.0, 1.0), kept=True)
        closest = self._closest()
        telling = [each for each in (low, high) if each is not None and self._tells(each)]
        if len(telling) < 2 and closest is not None:
            telling = [closest]
        elif low is None or not telling:
            only = low or self.probes[0]
            return _between(only, only, 0.0, (1.0, 1.0), kept=low is not None)
        first, last = telling[0], telling[-1]
        share = (1.0 - first.stress) / (last.stress - first.stress) if first is not last else 0.0
        return _between(first, last, share, (self._to_objective(first), self._to_objective(last)), kept=True)

    def _tells(self, probe: Probe) -> bool:
        """Whether the share of work in a load's steps is large enough to tell what would be one at the objective."""
        return self._objective.tpot_binds(probe.result) and probe.stress * (1.0 - _WORK_MIN) >= self._idle

    def _to_objective(self, probe: Probe) -> float:
        """What the rates of a load have to be multiplied with to be those at the objective; infinite where its steps
        hold no work."""
        if not self._objective.tpot_binds(probe.result):
            return 1.0
        work = probe.stress - self._idle
        return (1.0 - self._idle) * probe.stress / work if work > 0.0 else math.inf

    def _close(self, probe: Probe) -> bool:
        """Whether a load says what one at the objective would."""
        if not self._objective.tpot_binds(probe.result):
            return abs(probe.stress - 1.0) <= _TTFT_CLOSE
        near = _STRESS_LOW <= probe.stress <= _STRESS_HIGH
        return near and abs(self._to_objective(probe) - 1.0) <= _CORRECTION_MAX

    def _closest(self) -> Probe | None:
        """The load closest to the objective, if one is close enough."""
        return min(filter(self._close, self.probes), key=lambda each: abs(each.stress - 1.0), default=None)

    def _around(self) -> tuple[Probe | None, Probe | None]:
        """The heaviest load that keeps the objective, and the lightest heavier one that does not."""
        low = max((each for each in self.probes if each.stress <= 1.0), key=lambda each: each.concurrency, default=None)
        above = low.concurrency if low else 0
        high = min(
            (each for each in self.probes if each.stress > 1.0 and each.concurrency > above),
            key=lambda each: each.concurrency,
            default=None,
        )
        return low, high

    def _up(self) -> int | None:
        top = self.probes[-1]
        if top.concurrency >= self._most or self._saturated():
            return None
        reach = (1.0 - self._idle) / max(0.05, top.stress - self._idle)
        wanted = round(top.concurrency * min(_GROWTH_MAX, max(1.25, 1.03 * reach)))
        return min(self._most, max(top.concurrency + 1, wanted))

    def _down(self, high: Probe) -> int | None:
        if high.concurrency == 1:
            return None
        reach = (1.0 - self._idle) / max(0.05, high.stress - self._idle)
        return max(1, min(high.concurrency - 1, round(0.97 * reach * high.concurrency)))

    def _saturated(self) -> bool:
        """Whether the heaviest load brings no more work than a clearly lighter one."""
        if len(self.probes) < 2:
            return False
        below, top = self.probes[-2:]
        clearly = top.concurrency >= 1.25 * below.concurrency
        return clearly and top.tokens_per_s < _GAIN_MIN * below.tokens_per_s


def _between(low: Probe, high: Probe, share: float, factors: tuple[float, float], *, kept: bool) -> Rates:
    """Rates on the line from one load's to another's, each times its factor."""

    def rate(name: str) -> float:
        first, second = (
            factor * getattr(each.result, name) / each.result.window_s
            for each, factor in zip((low, high), factors, strict=True)
        )
        return float(first + share * (second - first))

    return Rates(
        requests=rate("first_tokens"),
        input_tokens=rate("input_tokens"),
        input_squares=rate("input_squares"),
        output_tokens=rate("output_tokens"),
        context_tokens=rate("context_tokens"),
        kept=kept,
    )
