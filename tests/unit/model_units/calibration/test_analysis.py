"""What a calibration's measurements come to."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from model_units.calibration.analysis import fit_targets
from model_units.calibration.calibrator import Calibrator
from model_units.calibration.design import Lengths
from model_units.calibration.outcome import Target
from model_units.calibration.search import Objective, Rates
from model_units.cost import COEFFICIENTS, CostForm, CostProfile
from model_units.fit import Row, fit
from tests.unit.model_units.calibration.replicas import H100_LIMITS, LinearReplica, calibrated_h100

TRUE = LinearReplica()


def target(read: int, made: int, factor: float = 1.0) -> Target:
    """A point that costs a factor of what the linear replica takes."""
    rate = 1.0 / (factor * TRUE.cost_s(read, made))
    row = Row.of_request(read, made, 1.0)
    rates = Rates(
        requests=rate,
        input_tokens=rate * row.input_tokens,
        input_squares=rate * row.input_squares,
        output_tokens=rate * row.output_tokens,
        context_tokens=rate * row.context_tokens,
        kept=True,
    )
    return Target(Lengths(read, made), "", (), rates)


POINTS = [(200, 300), (1_000, 20), (3_000, 200), (8_000, 400), (500, 500), (2_000, 60), (60, 30)]


def test_what_is_left_out_is_weighed_by_its_traffic() -> None:
    """Proves that the hold-out error is the mean over the points, each as heavy as the traffic it stands for."""
    outcome = calibrated_h100()[0].outcome()
    assert outcome.evidence is not None
    rows = outcome.rows[: len(outcome.points)]
    weights = [row.weight for row in rows]
    expected = math.fsum(
        weight * abs(point.hold_out_error) for weight, point in zip(weights, outcome.points, strict=True)
    ) / math.fsum(weights)
    assert outcome.evidence.hold_out_error == pytest.approx(expected)
    assert len(set(weights)) > 1
    index = 3
    without = fit([*outcome.rows[:index], *outcome.rows[index + 1 :]])
    assert outcome.points[index].hold_out_error == pytest.approx(without.predict(rows[index]) - 1.0)


def test_a_mix_is_judged_by_a_fit_that_has_not_seen_it() -> None:
    """Proves that the error of a traffic class is that of the fit to everything else."""
    outcome = calibrated_h100()[0].outcome()
    place = len(outcome.points) + 2
    without = fit([*outcome.rows[:place], *outcome.rows[place + 1 :]])
    assert outcome.classes[2].error == pytest.approx(without.predict(outcome.rows[place]) - 1.0)


def test_one_second_of_full_load_costs_one_replica_second() -> None:
    """Proves the equation behind every point: a replica that costs what the coefficients say is fitted by them."""
    found, rows = fit_targets([target(*pair) for pair in POINTS], CostForm.ATTENTION, 16_384)
    assert found is not None
    assert found.coefficients == pytest.approx(TRUE.coefficients, rel=1e-6)
    assert all(row.replica_s == 1.0 for row in rows)


def test_too_few_or_too_much_alike_lengths_have_no_fit() -> None:
    """Proves that nothing is fitted to five points, nor to points that do not tell the terms apart."""
    assert fit_targets([target(*pair) for pair in POINTS[:5]], CostForm.ATTENTION, 16_384) == (None, ())
    same = [replace(target(100, 100), lengths=Lengths(100 + index, 100)) for index in range(8)]
    assert fit_targets(same, CostForm.ATTENTION, 16_384) == (None, ())


@pytest.mark.parametrize("form", list(CostForm))
def test_the_evidence_fits_a_profile(form: CostForm) -> None:
    """Proves that what a calibration found can be published as it is: finite, in range, intervals around values."""
    outcome = calibrated_h100(form)[0].outcome()
    assert outcome.fit is not None
    assert outcome.evidence is not None
    a, b, d, g = outcome.fit.coefficients
    profile = CostProfile(
        "m/h100/1", "m", "h100", "simulated 1", 50.0, a, b, d, g, "a test", 1, form, evidence=outcome.evidence
    )
    assert profile.evidence is not None
    for name in COEFFICIENTS:
        low, high = profile.evidence.intervals[name]
        assert 0.0 <= low <= getattr(profile, name) <= high < math.inf
    curve = profile.evidence.latency_curve
    assert len(curve) >= 4
    assert curve[0][1] < 15.0 < 40.0 < curve[-1][1]
    assert 0.0 < profile.evidence.latency_spread < 0.15


def test_points_show_what_was_tried() -> None:
    """Proves that every point carries its loads in ascending order, with finite latencies and rates."""
    outcome = calibrated_h100()[0].outcome()
    for point in outcome.points:
        loads = [concurrency for concurrency, *_ in point.curve]
        assert loads == sorted(set(loads))
        assert all(tpot_ms > 0 and math.isfinite(ttft_ms) and rate > 0 for _, tpot_ms, ttft_ms, rate in point.curve)
        assert point.replica_s > 0
        assert point.predicted_replica_s > 0


def test_the_bar_of_a_class_is_said_with_its_allowance() -> None:
    """Proves that a class is objected to only beyond the allowed error and the noise of a mix, and that the objection
    names that limit."""
    calibrator, done = calibrated_h100()
    errors = sorted(abs(error) for error in calibrator.outcome().evidence.class_errors.values())  # type: ignore[union-attr]
    for error_max, named in ((errors[-1] - 0.005, False), (errors[-1] - 0.015, True)):
        strict = Calibrator(H100_LIMITS, Objective(50.0), error_max=error_max)
        strict.restore(done)
        said = [each for each in strict.outcome().objections if each.startswith("the capacity for")]
        assert bool(said) == named
        assert all(f"more than {error_max + 0.01:.1%}" in each for each in said)
