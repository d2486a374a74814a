"""The truth a cost profile is judged by: what a simulated replica really sustains, found by trying.

The highest rate at which requests of given lengths keep the latency objective: as many at a time as the mean time per
output token allows, at most what the engine runs at once, with at most 90 % of the KV cache. Windows are long (several
lives of a request, no hurry in virtual time) and share nothing with how a calibration measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engines.simulated.hardware import Hardware
from engines.simulated.rehearsal import rehearse
from engines.simulated.work import SchedulerLimits
from model_units.calibration.load import LoadResult, LoadSpec

KV_SHARE_MAX: Final = 0.9
_LIVES: Final = 4.0
_DECKS: Final = 8.0
_WINDOW_S_MIN: Final = 20.0
_CLOSE: Final = 0.004


def sustained_requests_per_s(
    hardware: Hardware, lengths: Sequence[tuple[int, int]], *, tpot_objective_ms: float, limits: SchedulerLimits
) -> float:
    """Requests per second a replica sustains.

    Args:
        hardware: The replica.
        lengths: (input, output) tokens to draw from, evenly.
        tpot_objective_ms: Mean time per output token to keep, milliseconds.
        limits: Its scheduler.

    Raises:
        ValueError: A request is larger than the KV cache, or so long that no window is filled.
    """
    tokens = sum(read + made for read, made in lengths) / len(lengths)
    output = sum(made for _, made in lengths) / len(lengths)
    most = max(1, min(limits.sequences_max, int(KV_SHARE_MAX * hardware.kv_capacity_tokens / tokens)))
    objective_s = tpot_objective_ms / 1000.0

    window_s = max(_WINDOW_S_MIN, _LIVES * output * objective_s)
    if len(lengths) > 1:  # every pair has to come several times
        rate = _rate(_measure(hardware, lengths, min(most, 16), window_s, limits), output)
        window_s = max(window_s, _DECKS * len(lengths) / rate)

    def run(concurrency: int) -> tuple[float, float]:
        result = _measure(hardware, lengths, concurrency, window_s, limits)
        return result.tpot_s, _rate(result, output)

    low, low_run = 1, run(1)
    if low_run[0] >= objective_s:
        # Even one at a time is too slow: it is served all the same, and takes the whole replica.
        return low_run[1]
    high, high_run = most, run(most)
    if high_run[0] <= objective_s:
        return high_run[1]
    while high - low > 1 and high_run[1] > 0 and (high - low) / high > _CLOSE:
        share = (objective_s - low_run[0]) / (high_run[0] - low_run[0])
        guess = low + share * (high - low)
        middle = min(high - 1, max(low + 1, round(0.8 * guess + 0.1 * (low + high))))
        middle_run = run(middle)
        if middle_run[0] <= objective_s:
            low, low_run = middle, middle_run
        else:
            high, high_run = middle, middle_run
        if abs(middle_run[0] / objective_s - 1) < _CLOSE:
            break
    share = (objective_s - low_run[0]) / (high_run[0] - low_run[0])
    return low_run[1] + share * (high_run[1] - low_run[1])


def _measure(
    hardware: Hardware, lengths: Sequence[tuple[int, int]], concurrency: int, window_s: float, limits: SchedulerLimits
) -> LoadResult:
    spec = LoadSpec(tuple(lengths), concurrency, window_s, 20.0 * window_s, seed=7)
    result = rehearse(hardware, spec, limits)
    if not result.usable:
        raise ValueError(f"{concurrency} at a time fill no window of {window_s:g} s: the requests are too long")
    return result


def _rate(result: LoadResult, output_mean: float) -> float:
    """Requests per second: as many as began and as many as the tokens make, whose difference is the window's edge."""
    began = result.first_tokens / result.window_s
    made = result.output_tokens / output_mean / result.window_s
    return (began + made) / 2
