"""How well what is reserved at admission adds up to what requests cost: the output-length estimator on a trace."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from math import ceil, log2
from typing import Final

from fairlead.replay import TraceRequest
from model_units.cost import TOKENS_MAX, CostProfile, cost, decode_shape
from model_units.length import OutputLengthEstimator

WINDOW_S: Final = 60.0

# When an answer is known, after its request: a usual time to first token, and 30 ms per token.
_FIRST_TOKEN_S: Final = 0.5
_TOKEN_S: Final = 0.03

_MODEL: Final = "model"


def evaluate(requests: Sequence[TraceRequest], profile: CostProfile) -> dict[str, float]:
    """Compares the prices reserved in each minute of a trace with the true ones.

    The prompt's length is known, the answer's is estimated from the requests that have ended before. Each client of the
    trace is a tenant. A minute that the trace's end cuts short is left out, unless there is no other.

    Args:
        requests: Sorted by arrival, at least one.
        profile: What prices them.

    Returns:
        `windows`; `max_tokens`, the 99th percentile of the output lengths rounded up to a power of two; and for each
        way to reserve ("estimate", "max_tokens", "input_only") by NAME_error the sum over the windows of
        |reserved - true| over the sum of the true prices, by NAME_window_error the mean over the windows of
        |reserved / true - 1|, and by NAME_bias the signed error of the sum over all windows.
    """
    lengths = sorted(request.output_tokens for request in requests)
    max_tokens = 2 ** ceil(log2(lengths[int(0.99 * (len(lengths) - 1))]))
    estimates = _estimates(requests, profile)
    ways: dict[str, Callable[[int], int]] = {
        "estimate": lambda number: estimates[number],
        "max_tokens": lambda number: max_tokens,
        "input_only": lambda number: 0,
    }
    true = _windows(requests, profile, lambda number: requests[number].output_tokens)
    report: dict[str, float] = {"windows": len(true), "max_tokens": max_tokens}
    for name, output_tokens in ways.items():
        reserved = _windows(requests, profile, output_tokens)
        errors = [abs(reserved[window] - true[window]) for window in true]
        report[f"{name}_error"] = sum(errors) / sum(true.values())
        report[f"{name}_window_error"] = sum(
            error / price for error, price in zip(errors, true.values(), strict=True)
        ) / len(true)
        report[f"{name}_bias"] = sum(reserved.values()) / sum(true.values()) - 1.0
    return report


def _estimates(requests: Sequence[TraceRequest], profile: CostProfile) -> list[int]:
    """The estimated output tokens of each request at its arrival."""
    estimator, estimates = OutputLengthEstimator(), []
    running: list[tuple[float, int]] = []
    for number, request in enumerate(requests):
        while running and running[0][0] <= request.arrival_s:
            ended = requests[heapq.heappop(running)[1]]
            linear, _ = decode_shape(profile, ended.input_tokens)
            estimator.observe(ended.client, _MODEL, ended.output_tokens, linear=linear)
        shape = decode_shape(profile, request.input_tokens)
        estimates.append(int(estimator.estimate(request.client, _MODEL, max_tokens=TOKENS_MAX, shape=shape)))
        end_s = request.arrival_s + _FIRST_TOKEN_S + request.output_tokens * _TOKEN_S
        heapq.heappush(running, (end_s, number))
    return estimates


def _windows(
    requests: Sequence[TraceRequest], profile: CostProfile, output_tokens: Callable[[int], int]
) -> dict[int, int]:
    """Sum of the prices of each window of arrivals, mMU, in order of time."""
    sums: dict[int, int] = defaultdict(int)
    for number, request in enumerate(requests):
        price = cost(profile, input_tokens=request.input_tokens, output_tokens=output_tokens(number))
        sums[int(request.arrival_s // WINDOW_S)] += price.total_milli_mu
    if len(sums) > 1:
        del sums[max(sums)]
    return dict(sums)
