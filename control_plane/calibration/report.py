"""A calibration as a page: what came out, how good it is, and every measurement behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from common.report import Cell, Page
from control_plane.calibration import evaluate, figures
from control_plane.calibration.evaluate import Curve, Experiment, FormErrors
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.errors import InvalidArgumentError
from fairlead.typical_requests import TYPICAL_REQUESTS
from model_units.calibration.analysis import MIX_NOISE
from model_units.calibration.load import LoadSpec
from model_units.calibration.outcome import Outcome
from model_units.cost import COEFFICIENTS, CostForm
from model_units.fit import Fit, Row
from model_units.units import MILLI_PER_MODEL_UNIT, from_replica_seconds

_UNITS: Final = {
    "a": "replica-seconds per input token",
    "b": "replica-seconds per output token",
    "d": "replica-seconds per input token squared",
    "g": "replica-seconds per output token and token of context",
}
_FORMULAS: Final = {
    CostForm.ATTENTION: "a·I + d·I² for the prompt of I tokens, b·O + g·O·(I + O/2) for the answer of O tokens",
    CostForm.PRODUCT: "a·I for the prompt of I tokens, b·O + g·I·O for the answer of O tokens",
}
_NS_PER_S: Final = 1_000_000_000
# Until everything is measured there is always something to object to.
_MEASURED: Final = (pb.CALIBRATION_STATE_PUBLISHED, pb.CALIBRATION_STATE_REFUSED)


@dataclass(frozen=True, slots=True)
class _Findings:
    """What the measurements say, and what is wrong with them."""

    measured: list[Experiment]
    outcome: Outcome | None = None
    problem: str = ""


def render(calibration: pb.Calibration) -> str:
    """Draws a calibration, whatever it has come to so far. Takes seconds: not for an event loop.

    Args:
        calibration: With its experiments.

    Returns:
        One self-contained HTML page.
    """
    found = _findings(calibration)
    page = Page(f"Calibration of {calibration.model_id}", _headline(calibration, found))
    _summary(page, calibration, found)
    if found.outcome is not None and found.outcome.fit is not None:
        _coefficients(page, found.outcome.fit)
        _quality(page, calibration, found)
        _prices(page, found.outcome.fit)
    if curves := evaluate.curves(found.measured):
        _figures(page, calibration, found.outcome, curves)
    _experiments(page, found.measured)
    return page.render()


def _findings(calibration: pb.Calibration) -> _Findings:
    try:
        measured = evaluate.experiments(calibration)
    except (InvalidArgumentError, ValueError) as error:
        return _Findings([], problem=f"What is stored cannot be read: {error}")
    if not measured:
        return _Findings([])
    try:
        return _Findings(measured, evaluate.outcome(calibration, measured))
    except ValueError as error:
        return _Findings(measured, problem=f"What was measured cannot be evaluated: {error}")


def _state(calibration: pb.Calibration) -> str:
    return pb.CalibrationState.Name(calibration.state).removeprefix("CALIBRATION_STATE_").lower()


def _headline(calibration: pb.Calibration, found: _Findings) -> str:
    said = f"{_state(calibration)}. {calibration.detail}".strip()
    if found.outcome is not None and found.outcome.evidence is not None:
        evidence = found.outcome.evidence
        said += (
            f" {evidence.points} lengths in {evidence.engine_s / 60:.1f} minutes of engine time; off by "
            f"{evidence.hold_out_error:.1%} on lengths left out of the fit."
        )
    return said[0].upper() + said[1:]


def _summary(page: Page, calibration: pb.Calibration, found: _Findings) -> None:
    options = calibration.options
    rows: list[tuple[str, Cell]] = [
        ("Calibration", calibration.calibration_id),
        ("Model", calibration.model_id),
        ("State", _state(calibration)),
        ("Detail", calibration.detail),
        ("Replica", calibration.replica_id),
        ("Hardware", calibration.hardware),
        ("Engine", calibration.engine),
        ("Time per output token that full load keeps", f"{options.tpot_objective_ms:g} ms"),
        ("95th percentile of the time to first token that full load keeps", _objective(options.ttft_objective_ms)),
        ("Loads measured", len(found.measured)),
        ("Engine time", f"{calibration.engine_s:,.0f} s of {options.budget.ToNanoseconds() / _NS_PER_S:,.0f} s"),
        ("Done", f"{calibration.progress:.0%}"),
    ]
    if calibration.state == pb.CALIBRATION_STATE_PUBLISHED:
        rows.append(("Cost profile", calibration.profile.profile_id))
    page.section("Summary")
    page.table(("", "value"), rows)
    if found.problem:
        page.text(found.problem)
    if calibration.state in _MEASURED and found.outcome is not None:
        for objection in found.outcome.objections:
            page.text(f"Objection: {objection}.")
    if not found.measured and not found.problem:
        page.text("Nothing has been measured yet.")


def _objective(value_ms: float) -> str:
    return f"{value_ms:g} ms" if value_ms else "none"


def _coefficients(page: Page, fit: Fit) -> None:
    page.section("Cost function", f"In replica-seconds: {_FORMULAS[fit.form]}.")
    rows: list[tuple[Cell, ...]] = []
    for name, value in zip(COEFFICIENTS, fit.coefficients, strict=True):
        low, high = fit.interval(name)
        wide = (high - low) / 2 / value if value > 0 and math.isfinite(high) else None
        rows.append((name, _exact(value), _exact(low), _exact(high), _percent(wide), _UNITS[name]))
    page.table(
        ("coefficient", "value", "95 % from", "to", "±", "unit"), rows, "Coefficients and how well they are known"
    )


def _exact(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "no bound"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _quality(page: Page, calibration: pb.Calibration, found: _Findings) -> None:
    """Errors in the form that was fitted beside those of the other one, on the same measurements."""
    outcome = found.outcome
    assert outcome is not None
    assert outcome.fit is not None
    form = outcome.fit.form
    other = CostForm.PRODUCT if form is CostForm.ATTENTION else CostForm.ATTENTION
    ours = evaluate.own_errors(outcome)
    try:
        theirs = evaluate.errors_in(other, outcome)
    except ValueError:
        theirs = FormErrors(None, {})
    rows = [("lengths left out of the fit, weighted by cost", _percent(ours.hold_out), _percent(theirs.hold_out))]
    rows += [
        (f"traffic class {name}", _signed(error), _signed(theirs.classes.get(name)))
        for name, error in ours.classes.items()
    ]
    page.section(
        "How good it is",
        f"Published by itself up to {calibration.options.error_max:.1%}, a traffic class up to {MIX_NOISE:.1%} more. "
        "The other form is fitted to the same measurements, for comparison. A plus means priced too dear.",
    )
    columns = ("error on", f"form {form.value}", f"form {other.value}")
    page.table(columns, rows, "Errors of the predicted cost")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1%}"


def _prices(page: Page, fit: Fit) -> None:
    rows = []
    for name, read, made in TYPICAL_REQUESTS:
        replica_s = fit.predict(Row.of_request(read, made, 1.0))
        rows.append((name, read, made, replica_s, from_replica_seconds(replica_s) / MILLI_PER_MODEL_UNIT))
    page.section("What requests cost", "A replica serves 100 model units (MU) per minute, by definition.")
    page.table(("request", "input tokens", "output tokens", "replica-seconds", "MU"), rows, "Prices, nothing cached")


def _figures(page: Page, calibration: pb.Calibration, outcome: Outcome | None, curves: list[Curve]) -> None:
    options = calibration.options
    page.section("Figures")
    if outcome is not None and outcome.fit is not None:
        page.figure(
            figures.cost_map(outcome.fit, outcome.points),
            "Cost of a request, MU, over the lengths of prompt and answer. Dots are the lengths that were measured; "
            "beyond them the function is extrapolated.",
        )
        page.figure(
            figures.predicted(outcome.points, outcome.classes),
            "Predicted against measured cost. Every point is predicted by a fit that has not seen it; traffic classes "
            "are never part of the fit. The band is ±5 %.",
        )
    page.figure(
        figures.load_curves(curves, options.tpot_objective_ms, options.ttft_objective_ms),
        "Latency as more requests run at a time, for each pair of lengths (prompt + answer) and each traffic class. "
        "Dashed: the objective. The rate at which a curve meets it is the replica's capacity for these lengths.",
    )
    evidence = outcome.evidence if outcome is not None else None
    if outcome is None or evidence is None:
        return
    if evidence.latency_curve:
        page.figure(
            figures.latency_curve(evidence.latency_curve, evidence.latency_spread),
            "Time per output token that a healthy replica shows, over the load. The band is the typical distance of "
            "measurements; production that stays outside it drifts.",
        )
    page.figure(
        figures.errors(outcome, options.error_max),
        "Error of every length when it is left out of the fit, and below them of every traffic class. Dashed: what is "
        "published by itself. A plus means priced too dear.",
    )


def _experiments(page: Page, experiments: list[Experiment]) -> None:
    if not experiments:
        return
    rows: list[tuple[Cell, ...]] = [
        (
            str(number),
            each.traffic_class or ("idle" if number == 1 else "fit"),
            _lengths(each.load),
            each.load.concurrency,
            each.result.window_s,
            each.result.engine_s,
            each.result.first_tokens / each.result.window_s if each.result.window_s > 0 else None,
            each.result.tpot_s * 1000,
            each.result.ttft_s_p50 * 1000,
            each.result.ttft_s_p95 * 1000,
            "cut short" if each.result.cut_short else "",
        )
        for number, each in enumerate(experiments, start=1)
    ]
    page.section("Every load")
    page.table(
        (
            "load",
            "for",
            "prompt + answer",
            "at a time",
            "window s",
            "engine s",
            "requests/s",
            "TPOT ms",
            "TTFT p50 ms",
            "TTFT p95 ms",
            "note",
        ),
        rows,
        "Loads in the order in which they were put on the replica",
    )


def _lengths(load: LoadSpec) -> str:
    if len(load.lengths) == 1:
        return f"{load.lengths[0][0]:,} + {load.lengths[0][1]:,}"
    mean = [sum(pair[side] for pair in load.lengths) / len(load.lengths) for side in (0, 1)]
    return f"{len(load.lengths):,} pairs, on average {mean[0]:,.0f} + {mean[1]:,.0f}"
