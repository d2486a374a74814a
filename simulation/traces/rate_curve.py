"""Rates of services over days (requests per minute on a grid) as requests: Poisson within each step of the grid.

Such a file knows no lengths. For the two services of the Azure 2024 week a few facts of the same logs are published:
quantiles of the output and the mean total. Outputs are drawn from these quantiles (geometric between them). Inputs take
the shape of the same service's 2023 trace, scaled so that input plus output meet the published mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from fairlead.errors import InvalidArgumentError
from fairlead.replay.files import csv_rows
from simulation.traces.distributions import QuantileFunction
from simulation.traces.lengths_only import poisson
from simulation.traces.workload import Batch, Selection, Workload, check_size, whole_tokens, workload_of

CURVE_COLUMNS: Final = ("service", "t_s", "rpm_mean")

_RPM_MAX: Final = 1e9  # more than anybody has: a wrong column
_POINTS_BETWEEN: Final = 8  # of a geometric piece, so that straight lines follow it within 1 %


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is published of a service's lengths; the mean total is in tokens per request."""

    outputs: tuple[tuple[float, float], ...]
    total_mean: float
    input_shape: tuple[tuple[float, float], ...]


# Outputs and totals: AzurePublicDataset, LLM inference 2024. The largest output goes on by the last ratio. Inputs: p50,
# p95 and p99 of the services' 2023 traces.
_FACTS: Final = {
    "code": _Facts(
        outputs=((0.0, 1), (0.5, 8), (0.9, 43), (0.95, 79), (0.99, 271), (1.0, 271 * 271 / 79)),
        total_mean=2_534,
        input_shape=((0.0, 1), (0.5, 1_465), (0.95, 7_163), (0.99, 7_436), (1.0, 7_500)),
    ),
    "conv": _Facts(
        outputs=((0.0, 1), (0.5, 41), (0.9, 342), (0.95, 455), (0.99, 694), (1.0, 694 * 694 / 455)),
        total_mean=1_737,
        input_shape=((0.0, 1), (0.5, 1_015), (0.95, 4_085), (0.99, 4_121), (1.0, 4_200)),
    ),
}


@dataclass(frozen=True, slots=True)
class _Step:
    service: str
    start_s: float
    requests_per_s: float


def curve_workload(path: Path, selection: Selection) -> Workload:
    """Draws requests from rate curves; each service is a client.

    Args:
        path: CSV with `service,t_s,rpm_mean`, t_s the beginning of each step of an even grid.
        selection: Part, rate and seed.

    Raises:
        InvalidArgumentError: The file is wrong, names a service whose lengths nobody published, or the part is empty.
    """
    notes = [
        "output lengths follow the published quantiles of each service, inputs the shape of its 2023 trace at the "
        "published mean total"
    ]
    steps, width_s = _read(path, notes)
    begin_s = min(step.start_s for step in steps)
    end_s = begin_s + selection.end_s(max(step.start_s for step in steps) + width_s - begin_s, path.name)
    start_s = begin_s + selection.start_s
    chosen = [step for step in steps if step.start_s < end_s and step.start_s + width_s > start_s]
    overlaps_s = [min(end_s, step.start_s + width_s) - max(start_s, step.start_s) for step in chosen]
    own = sum(step.requests_per_s * overlap_s for step, overlap_s in zip(chosen, overlaps_s, strict=True))
    if own == 0:
        raise InvalidArgumentError(f"nobody sent anything in this part of {path.name}", field="start_s")
    factor = selection.factor(own / (end_s - start_s))
    check_size(sum(step.requests_per_s for step in chosen) * width_s * factor, path.name)
    batches = []
    for step in chosen:
        draws = selection.stream("curve", step.service, round(step.start_s))
        times = step.start_s + poisson(draws, step.requests_per_s * factor, width_s)
        inputs, outputs = _LENGTHS[step.service]
        shares = draws.random((2, len(times)))
        batch = Batch(step.service, times, whole_tokens(inputs.at(shares[0])), whole_tokens(outputs.at(shares[1])))
        batches.append(batch.between(start_s, end_s))
    return workload_of(path.name, batches, notes, end_s - start_s)


def _read(path: Path, notes: list[str]) -> tuple[list[_Step], float]:
    """The steps in order, and how long each is."""
    steps = []
    for row in csv_rows(path, CURVE_COLUMNS):
        service = row.text("service")
        if service not in _FACTS:
            row.lines.fail(f"no lengths are known of the service {service!r}; known: {', '.join(_FACTS)}")
        steps.append(_Step(service, row.number("t_s"), row.number("rpm_mean", high=_RPM_MAX) / 60))
    ordered = sorted(steps, key=lambda step: (step.service, step.start_s))
    if any(late.service == early.service and late.start_s < early.start_s for early, late in pairwise(steps)):
        notes.append("steps were not in order: sorted")
    gaps = [late.start_s - early.start_s for early, late in pairwise(ordered) if late.service == early.service]
    if not gaps or min(gaps) <= 0:
        raise InvalidArgumentError(
            f"{path.name} is no rate curve: a service needs two or more steps at different t_s", field="trace"
        )
    return ordered, float(np.median(gaps))


def _geometric(points: tuple[tuple[float, float], ...]) -> QuantileFunction:
    """Quantiles with geometric pieces between some points."""
    fine = []
    for (low, small), (high, large) in pairwise(points):
        for step in range(_POINTS_BETWEEN):
            part = step / _POINTS_BETWEEN
            fine.append((low + part * (high - low), small * math.exp(part * math.log(large / small))))
    return QuantileFunction.of([*fine, points[-1]])


def _lengths(facts: _Facts) -> tuple[QuantileFunction, QuantileFunction]:
    """Distributions of (input, output)."""
    outputs = _geometric(facts.outputs)
    shape = QuantileFunction.of(facts.input_shape)
    factor = (facts.total_mean - outputs.mean) / shape.mean
    return QuantileFunction.of(facts.input_shape, factor=factor), outputs


_LENGTHS: Final = {service: _lengths(facts) for service, facts in _FACTS.items()}
