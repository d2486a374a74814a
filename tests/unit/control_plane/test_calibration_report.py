"""The page of a calibration: complete, half way, empty, hostile; its numbers are those of the measurement."""

from __future__ import annotations

import functools

import pytest

from control_plane.calibration import evaluate
from control_plane.calibration.report import render
from engines.simulated.hardware import hardware
from engines.simulated.rehearsal import rehearse
from fairlead.admin.v1 import calibration_pb2 as pb
from model_units.calibration.calibrator import Calibrator, EngineLimits, Objective
from model_units.calibration.outcome import Outcome
from model_units.cost import CostForm
from model_units.loads import load_to_proto, measurement_to_proto
from tests.support.html import Checked, assert_self_contained

LIMITS = EngineLimits(sequences_max=256, kv_capacity_tokens=400_000, context_tokens=16_384)
HOSTILE = "<img src=x onerror=alert(1)> [/bold] $\\frac 1 0$"
EVIL = 'mi"x</svg><script>'


@functools.cache
def measured(form: CostForm = CostForm.ATTENTION) -> tuple[bytes, Outcome]:
    """A whole calibration of the simulated H100, as it is stored, and what its own core made of it."""
    core = Calibrator(LIMITS, Objective(50.0), budget_s=900.0, error_max=0.05, form=form, seed=1)
    calibration = pb.Calibration(
        calibration_id="tiny@20260101T000000-000",
        model_id="tiny",
        state=pb.CALIBRATION_STATE_RUNNING,
        detail="measuring",
        replica_id="tiny-r1",
        hardware="h100",
        engine="simulated 1",
        sequences_max=LIMITS.sequences_max,
        kv_capacity_tokens=LIMITS.kv_capacity_tokens,
        context_tokens=LIMITS.context_tokens,
    )
    options = calibration.options
    options.tpot_objective_ms, options.error_max, options.seed = 50.0, 0.05, 1
    options.budget.seconds = 900
    options.form = pb.COST_FORM_ATTENTION if form is CostForm.ATTENTION else pb.COST_FORM_PRODUCT
    while (load := core.next()) is not None:
        traffic_class = core.traffic_class
        result = rehearse(hardware("h100"), load)
        core.record(result)
        message = calibration.experiments.add(traffic_class=traffic_class)
        message.load.CopyFrom(load_to_proto(load))
        message.measurement.CopyFrom(measurement_to_proto(result))
    calibration.engine_s = core.progress.engine_s
    return calibration.SerializeToString(), core.outcome()


def calibrated(loads: int | None = None, form: CostForm = CostForm.ATTENTION) -> pb.Calibration:
    """A copy of that calibration after so many loads; None for all."""
    calibration = pb.Calibration.FromString(measured(form)[0])
    if loads is not None:
        del calibration.experiments[loads:]
    return calibration


def test_what_is_stored_evaluates_to_what_was_measured() -> None:
    """The outcome read back from the record is the one of the core that measured, to the last digit."""
    calibration = calibrated()
    found = evaluate.outcome(calibration, evaluate.experiments(calibration))
    assert found == measured()[1]
    assert found.fit is not None


@pytest.mark.parametrize("form", list(CostForm))
def test_errors_in_its_own_form_are_its_own(form: CostForm) -> None:
    """The comparison with another form gives the known errors where both forms are the same."""
    found = measured(form)[1]
    own, again = evaluate.own_errors(found), evaluate.errors_in(form, found)
    assert again.hold_out == pytest.approx(own.hold_out)
    # The products of a mix's lengths are not counted but estimated, and estimated otherwise than by the core.
    assert again.classes == pytest.approx(own.classes, abs=1e-9 if form is CostForm.ATTENTION else 0.05)


def test_the_product_form_is_worse() -> None:
    """The form without attention is clearly further off on the same measurements: that is what the page compares."""
    found = measured()[1]
    other = evaluate.errors_in(CostForm.PRODUCT, found)
    own = evaluate.own_errors(found)
    assert other.hold_out is not None
    assert own.hold_out is not None
    assert other.hold_out > 1.2 * own.hold_out
    assert set(other.classes) == set(own.classes)


def test_a_complete_page() -> None:
    """Everything there is to say is on it: coefficients, errors of both forms, prices, five figures, every load."""
    calibration, found = calibrated(), measured()[1]
    calibration.state = pb.CALIBRATION_STATE_PUBLISHED
    calibration.profile.profile_id = "tiny/h100/7"
    page = render(calibration)
    assert_self_contained(page)
    read = Checked(page)
    assert [tag for tag, _ in read.tags].count("figure") == 5
    assert found.fit is not None
    assert found.evidence is not None
    said = [f"{found.fit.coefficients[0]:.4g}", f"{found.fit.interval('a')[0]:.4g}", "tiny/h100/7", "published"]
    said += [f"{found.evidence.hold_out_error:.1%}", "form attention", "form product", "±5%", "chat turn", "MU"]
    said += [f"traffic class {name}" for name in found.evidence.class_errors]
    for each in said:
        assert each in read.text, each
    rows = page[page.index("Every load") :].count("<tr>") - 1
    assert rows == len(calibration.experiments)


@pytest.mark.parametrize("loads", [1, 4])
def test_half_way(loads: int) -> None:
    """Before there is a fit the loads are shown, and nothing is claimed or objected to."""
    page = render(calibrated(loads))
    assert_self_contained(page)
    read = Checked(page)
    assert "Every load" in read.text
    assert "Cost function" not in read.text
    assert "Objection" not in read.text
    assert [tag for tag, _ in read.tags].count("figure") == (0 if loads == 1 else 1)


def test_from_the_first_fit_on_there_is_a_page() -> None:
    """Also the first fits, which know little about themselves, can be drawn."""
    for loads in (8, 10):
        assert_self_contained(render(calibrated(loads)))


def test_nothing_measured() -> None:
    """A calibration that waits or has failed at once has a page that says so."""
    for calibration in (calibrated(0), pb.Calibration(), pb.Calibration(state=pb.CALIBRATION_STATE_FAILED)):
        page = render(calibration)
        assert_self_contained(page)
        assert "Nothing has been measured yet." in Checked(page).text


def test_hostile_names_are_text() -> None:
    """A model's name, a detail and a class cannot break out of the page, its attributes or its figures."""
    calibration = calibrated()
    calibration.model_id = calibration.detail = calibration.engine = HOSTILE
    for each in calibration.experiments:
        each.traffic_class = EVIL if each.traffic_class else ""
    page = render(calibration)
    assert_self_contained(page)
    read = Checked(page)
    assert HOSTILE in read.text
    assert EVIL in read.text


def test_measurements_of_another_version_are_shown_without_a_verdict() -> None:
    """Where the record does not fit the core, the loads are shown and the page says why there is no more."""
    calibration = calibrated()
    calibration.sequences_max = 3
    page = render(calibration)
    assert_self_contained(page)
    read = Checked(page)
    assert "cannot be evaluated" in read.text
    assert "Every load" in read.text
    calibration.experiments[0].measurement.window_s = float("nan")
    assert "cannot be read" in Checked(render(calibration)).text


def test_a_refused_one_names_the_objections() -> None:
    """What speaks against a profile is on its page."""
    calibration = calibrated()
    calibration.state, calibration.options.error_max = pb.CALIBRATION_STATE_REFUSED, 0.0001
    text = Checked(render(calibration)).text
    assert "Objection: the hold-out error is" in text
