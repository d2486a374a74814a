"""From what a calibration has measured to what may be published. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from model_units.calibration.design import Cost, cloud, weights
from model_units.calibration.load import LoadResult
from model_units.calibration.outcome import MeasuredClass, MeasuredPoint, Outcome, Target
from model_units.calibration.search import Objective, Probe
from model_units.calibration.traffic import CLASSES
from model_units.cost import COEFFICIENTS, ERROR_MAX, LINEAR_MAX_S, CostForm, Evidence
from model_units.fit import Fit, Row, fit, leave_one_out
from model_units.latency import fit_latency_curve

POINTS_MIN: Final = 6
"""Fewest points that are fitted."""

_PRIOR: Final = (2.0e-5, 3.4e-5, 6.7e-10, 4.7e-8)

# The last load repeats the first one: a larger change of its time per output token is a change of the replica.
_REPEAT_MAX: Final = 0.2
_ABANDONED_MAX: Final = 2
# What all mixes weigh beside all points.
_MIX_SHARE: Final = 2.0
# Where the time to first token decides at more of the targets than this, it is a likely cause of errors.
_WAITING_MAX: Final = 0.2
MIX_NOISE: Final = 0.01
"""Two measurements of one mix differ by about this much: the error of a traffic class may be this much beyond the
allowed one."""


def prior_cost(read: int, made: int) -> float:
    """Proportions of the cost of requests, as far as they are known before anything is measured: those of Llama 3.1 8B
    on an H100, in replica-seconds of it."""
    row = Row.of_request(read, made, 1.0)
    terms = (row.input_tokens, row.output_tokens, row.input_squares, row.context_tokens)
    return math.fsum(value * term for value, term in zip(_PRIOR, terms, strict=True))


def fit_targets(
    targets: Sequence[Target], form: CostForm, context_tokens: int, ttft_ms: float = 0.0
) -> tuple[Fit | None, tuple[Row, ...]]:
    """Fits what was measured: every point counts as much as the traffic it stands for, and the mixes of the traffic
    classes together twice as much as all points, for real traffic is mixed and shares its steps better than any one
    pair of lengths.

    Returns:
        The fit, or None where there are too few points; and its rows, the points first, then the mixes.
    """
    points = [(target, target.lengths) for target in targets if target.lengths is not None]
    mixes = [target for target in targets if target.lengths is None]
    if len(points) < POINTS_MIN:
        return None, ()
    at = [lengths for _, lengths in points]
    of_mixes = tuple(mix.row(_MIX_SHARE * len(points) / len(CLASSES)) for mix in mixes)
    found: Fit | None = None
    rows: tuple[Row, ...] = ()
    for _ in range(2):  # the masses need costs and the costs need a fit: once with the prior, once with that fit
        masses = cloud(context_tokens, request_cost(found), ttft_ms) if found else cloud(context_tokens, prior_cost)
        of_points = tuple(target.row(weight) for (target, _), weight in zip(points, weights(masses, at), strict=True))
        rows = (*of_points, *of_mixes)
        try:
            found = fit(rows, form)
        except ValueError:  # lengths that are too much alike do not tell the terms apart
            return None, ()
    return found, rows


def request_cost(found: Fit) -> Cost:
    """What requests cost by a fit, replica-seconds."""
    return lambda read, made: found.predict(Row.of_request(read, made, 1.0))


def analyse(
    objective: Objective,
    targets: Sequence[Target],
    idle: Sequence[LoadResult],
    abandoned: Sequence[str],
    *,
    form: CostForm,
    context_tokens: int,
    error_max: float,
    engine_s: float,
    untested: Sequence[str],
) -> Outcome:
    """Everything a calibration can say.

    Args:
        objective: What full load keeps.
        targets: What was measured.
        idle: The loads of one request at a time: at the beginning, and at the end.
        abandoned: What could not be measured, for people.
        form: Which terms to fit.
        context_tokens: Longest prompt plus answer.
        error_max: Worst hold-out error that may be published; a traffic class may be `MIX_NOISE` beyond it.
        engine_s: Replica time used.
        untested: Traffic classes that were not reached.
    """
    found, rows = fit_targets(targets, form, context_tokens, objective.ttft_ms)
    errors = _hold_out_errors(rows, form)
    if found is None or errors is None:
        too_few = ("too few lengths could be measured to fit a cost function",)
        return Outcome(objective, None, (), (), (), None, too_few)
    points = _points(targets, found, rows, errors)
    mixes = (target for target in targets if target.lengths is None)
    classes = tuple(
        MeasuredClass(target.traffic_class, error, target.rates.requests)
        for target, error in zip(mixes, errors[len(points) :], strict=True)
    )
    weighed = [(abs(point.hold_out_error), row.weight) for point, row in zip(points, rows, strict=False)]
    total = math.fsum(weight for _, weight in weighed)
    latencies = _latencies(targets, idle, found)
    curve, spread = fit_latency_curve(latencies) if latencies else ((), 0.0)
    evidence = Evidence(
        intervals={name: _interval(found, name) for name in COEFFICIENTS} if found.degrees_of_freedom else {},
        hold_out_error=math.fsum(error * weight for error, weight in weighed) / total,
        class_errors={each.name: each.error for each in classes},
        points=len(points),
        engine_s=engine_s,
        latency_curve=curve,
        latency_spread=min(spread, ERROR_MAX),
    )
    objections = tuple(_objections(objective, targets, idle, abandoned, evidence, error_max, untested))
    return Outcome(objective, found, rows, points, classes, evidence, objections)


def _hold_out_errors(rows: Sequence[Row], form: CostForm) -> tuple[float, ...] | None:
    """Error of every row where it is left out; None where too few are left to fit."""
    try:
        errors = leave_one_out(rows, form)
    except ValueError:
        return None
    # Noise can be off by any factor.
    return tuple(min(error, ERROR_MAX) for error in errors)


def _interval(found: Fit, name: str) -> tuple[float, float]:
    """Confidence interval of a coefficient, as far as a profile can state it: noise has intervals of any width."""
    low, high = found.interval(name)
    return min(low, LINEAR_MAX_S), min(high, LINEAR_MAX_S)


def _points(
    targets: Sequence[Target], found: Fit, rows: Sequence[Row], errors: Sequence[float]
) -> tuple[MeasuredPoint, ...]:
    points = []
    for target, row, error in zip((each for each in targets if each.lengths), rows, errors, strict=False):
        assert target.lengths is not None
        predicted_s = request_cost(found)(target.lengths.input_tokens, target.lengths.output_tokens)
        points.append(
            MeasuredPoint(
                input_tokens=target.lengths.input_tokens,
                output_tokens=target.lengths.output_tokens,
                replica_s=predicted_s / found.predict(row),
                predicted_replica_s=predicted_s,
                hold_out_error=error,
                curve=tuple(_shown(probe) for probe in target.probes),
            )
        )
    return tuple(points)


def _shown(probe: Probe) -> tuple[int, float, float, float]:
    result = probe.result
    rate = result.first_tokens / result.window_s
    return probe.concurrency, 1000.0 * result.tpot_s, 1000.0 * result.ttft_s_p95, rate


def _latencies(targets: Sequence[Target], idle: Sequence[LoadResult], found: Fit) -> list[tuple[float, float]]:
    """(intensity, TPOT) in milliseconds of every load that had one."""
    results = [*idle, *(probe.result for target in targets for probe in target.probes)]
    return [
        (1000.0 * result.tpot_s * found.predict(_row(result)) / result.window_s, 1000.0 * result.tpot_s)
        for result in results
        if result.usable and result.tpot_s > 0
    ]


def _row(result: LoadResult) -> Row:
    return Row(
        input_tokens=result.input_tokens,
        input_squares=result.input_squares,
        output_tokens=result.output_tokens,
        context_tokens=result.context_tokens,
        product_tokens=result.output_tokens * result.input_tokens / max(1, result.first_tokens),
        replica_s=result.window_s,
    )


def _objections(
    objective: Objective,
    targets: Sequence[Target],
    idle: Sequence[LoadResult],
    abandoned: Sequence[str],
    evidence: Evidence,
    error_max: float,
    untested: Sequence[str],
) -> list[str]:
    found = []
    if evidence.hold_out_error > error_max:
        found.append(f"the hold-out error is {evidence.hold_out_error:.1%}, more than {error_max:.1%}")
    for name, error in evidence.class_errors.items():
        if abs(error) > error_max + MIX_NOISE:
            most = error_max + MIX_NOISE
            found.append(f"the capacity for {name} is {abs(error):.1%} off, more than {most:.1%}")
    waiting = sum(_waits(objective, target) for target in targets)
    if found and waiting > _WAITING_MAX * len(targets):
        found.append(
            f"the objective on the time to first token decides at {waiting} of {len(targets)} lengths and mixes;"
            " waiting does not add up the way work does:"
            f" allow more than {objective.ttft_ms:g} ms, or leave it out and keep it by routing"
        )
    if len(idle) < 2:
        found.append("the measurement is not finished")
    if untested:
        found.append(f"not tested on {', '.join(untested)}: allow more replica time")
    if len(abandoned) > _ABANDONED_MAX:
        found.append(f"could not be measured: {', '.join(abandoned)}")
    tight = sum(not target.rates.kept for target in targets)
    if tight > len(targets) // 3:
        found.append("not even one request at a time keeps the objective at most lengths: allow more time per token")
    if len(idle) > 1 and idle[0].tpot_s > 0 and abs(idle[-1].tpot_s / idle[0].tpot_s - 1.0) > _REPEAT_MAX:
        change = idle[-1].tpot_s / idle[0].tpot_s
        found.append(
            f"the replica changed its speed meanwhile: an idle step takes {change:.2f} times as long as before"
        )
    return found


def _waits(objective: Objective, target: Target) -> bool:
    """Whether the time to first token is what limits a target: at its load closest to the objective."""
    closest = min(target.probes, key=lambda probe: abs(probe.stress - 1.0), default=None)
    return closest is not None and not objective.tpot_binds(closest.result)
