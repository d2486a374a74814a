"""From what a calibration has measured to what may be published. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from model_units.calibration.load import LoadResult
from model_units.calibration.outcome import MeasuredClass, MeasuredPoint, Outcome, Target
from model_units.calibration.search import Objective, Probe
from model_units.cost import COEFFICIENTS, CostForm, Evidence
from model_units.fit import Fit, Row, fit, leave_one_out
from model_units.latency import fit_latency_curve

_POINTS_MIN: Final = 6
# The last load repeats the first one: a larger change of its time per output token is a change of the replica.
_REPEAT_MAX: Final = 0.2
_ABANDONED_MAX: Final = 2


def fit_points(targets: Sequence[Target], form: CostForm) -> tuple[Fit | None, tuple[Row, ...]]:
    """Fits the points among the targets.

    A class counts as much as another, and within it a point as much as its cost: so the capacity that the profile
    predicts for a class comes out right, whatever a request of it costs.

    Returns:
        The fit, or None where there are too few points; and its rows.
    """
    points = [target for target in targets if target.lengths is not None]
    if len(points) < _POINTS_MIN:
        return None, ()
    rough = fit([point.row(1.0) for point in points], form)
    costs = [_request_cost(rough, point) for point in points]
    totals: dict[str, float] = {}
    for point, cost_s in zip(points, costs, strict=True):
        totals[point.traffic_class] = totals.get(point.traffic_class, 0.0) + cost_s
    scale = len(points) / len(totals)
    rows = tuple(
        point.row(scale * cost_s / totals[point.traffic_class]) for point, cost_s in zip(points, costs, strict=True)
    )
    return fit(rows, form), rows


def analyse(
    objective: Objective,
    targets: Sequence[Target],
    idle: Sequence[LoadResult],
    abandoned: Sequence[str],
    *,
    form: CostForm,
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
        error_max: Worst error that may be published.
        engine_s: Replica time used.
        untested: Traffic classes that were not reached.
    """
    found, rows = fit_points(targets, form)
    if found is None:
        objections = ("too few lengths could be measured to fit a cost function",)
        return Outcome(objective, None, (), (), (), None, objections)
    points = _points(targets, found, rows, form)
    classes = tuple(
        MeasuredClass(target.traffic_class, found.predict(target.row(1.0)) - 1.0, target.rates.requests)
        for target in targets
        if target.lengths is None
    )
    total_s = sum(point.replica_s for point in points)
    curve, spread = fit_latency_curve(_latencies(targets, idle, found))
    evidence = Evidence(
        intervals={name: found.interval(name) for name in COEFFICIENTS} if found.degrees_of_freedom else {},
        hold_out_error=sum(abs(point.hold_out_error) * point.replica_s for point in points) / total_s,
        class_errors={each.name: each.error for each in classes},
        points=len(points),
        engine_s=engine_s,
        latency_curve=curve,
        latency_spread=spread,
    )
    objections = tuple(_objections(targets, idle, abandoned, evidence, error_max, untested))
    return Outcome(objective, found, rows, points, classes, evidence, objections)


def _points(targets: Sequence[Target], found: Fit, rows: Sequence[Row], form: CostForm) -> tuple[MeasuredPoint, ...]:
    errors = leave_one_out(rows, form)
    points = []
    for target, row, error in zip((each for each in targets if each.lengths), rows, errors, strict=True):
        assert target.lengths is not None
        predicted_s = _request_cost(found, target)
        points.append(
            MeasuredPoint(
                traffic_class=target.traffic_class,
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


def _request_cost(found: Fit, target: Target) -> float:
    assert target.lengths is not None
    return found.predict(Row.of_request(target.lengths.input_tokens, target.lengths.output_tokens, 1.0))


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
        if abs(error) > error_max:
            found.append(f"the capacity for {name} is {abs(error):.1%} off, more than {error_max:.1%}")
    if untested:
        found.append(f"not tested on {', '.join(untested)}: allow more replica time")
    if len(abandoned) > _ABANDONED_MAX:
        found.append(f"could not be measured: {', '.join(abandoned)}")
    tight = sum(not target.rates.kept for target in targets)
    if tight > len(targets) // 3:
        found.append("not even one request at a time keeps the objective at most lengths: allow more time per token")
    if len(idle) > 1 and idle[0].tpot_s > 0 and abs(idle[-1].tpot_s / idle[0].tpot_s - 1.0) > _REPEAT_MAX:
        change = idle[-1].tpot_s / idle[0].tpot_s
        found.append(f"the replica changed its speed meanwhile: an idle step takes {change:.2f} times as long as before")
    return found
