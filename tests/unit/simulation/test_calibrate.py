"""The profiles that ship for simulated hardware."""

from __future__ import annotations

import dataclasses

import pytest

from engines.simulated.hardware import HARDWARE
from model_units.profiles import built_in_profiles
from simulation.calibrate import calibrate, main, profile_of


@pytest.mark.parametrize("label", sorted(HARDWARE))
def test_shipped_profiles_are_what_calibration_finds(label: str) -> None:
    """Proves that the newest profile of every simulated hardware is the result of the command that claims to make it,
    so that no figure in it was typed by hand and none is left from an older core. (Another processor may round a choice
    of lengths the other way: hence a few percent.)"""
    hardware = HARDWARE[label]
    shipped = built_in_profiles().default_for(label)
    found = profile_of(hardware, calibrate(hardware), shipped.version)
    for name, within in (("a", 0.03), ("b", 0.05), ("d", 0.15), ("g", 0.1)):
        assert getattr(found, name) == pytest.approx(getattr(shipped, name), rel=within), name
    assert found.evidence is not None
    assert shipped.evidence is not None
    assert found.evidence.hold_out_error == pytest.approx(shipped.evidence.hold_out_error, abs=0.02)
    assert found.evidence.stated_error <= 0.06
    assert found.evidence.engine_s <= 900
    assert found.tpot_objective_ms == shipped.tpot_objective_ms


def test_an_unacceptable_outcome_makes_no_profile() -> None:
    """Proves that what a calibration objects to cannot be shipped."""
    outcome = calibrate(HARDWARE["h100"])
    with pytest.raises(ValueError, match="h100: too far off"):
        profile_of(HARDWARE["h100"], dataclasses.replace(outcome, objections=("too far off",)), 9)


def test_unknown_hardware_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Proves that a wrong label ends the command with those there are."""
    with pytest.raises(SystemExit):
        main(["abacus"])
    assert "no simulated hardware abacus; known: h100" in capsys.readouterr().err
