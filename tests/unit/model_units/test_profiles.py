from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import model_units
from fairlead.errors import InvalidArgumentError, NotFoundError
from model_units.profiles import ProfileCatalogue, built_in_profiles, parse_profile

H100 = built_in_profiles().get("llama-3.1-8b/h100/1")


def test_built_in_profiles_are_complete() -> None:
    """Proves that every shipped file parses and is named after the id it holds."""
    assert set(built_in_profiles().ids) == {
        "llama-3.1-70b/h100-tp4/1",
        "llama-3.1-8b/a100/1",
        "llama-3.1-8b/h100/1",
        "tiny-llama/cpu-2core/1",
    }
    for path in (Path(model_units.__file__).parent / "profiles").glob("*.json"):
        assert path.stem == parse_profile(path.read_bytes()).profile_id.replace("/", "_")


def test_measured_constants() -> None:
    """Proves that the H100 constants are the fitted ones, so that an edit of the file does not go unseen."""
    assert (H100.a, H100.b, H100.d, H100.g) == (1.934e-5, 2.764e-5, 4.017e-10, 4.532e-8)
    assert H100.tpot_objective_ms == 50


@pytest.mark.parametrize(
    ("hardware", "profile_id"),
    [
        ("h100", "llama-3.1-8b/h100/1"),
        ("a100", "llama-3.1-8b/a100/1"),
        ("h100-tp4", "llama-3.1-70b/h100-tp4/1"),
        ("cpu-2core", "tiny-llama/cpu-2core/1"),
    ],
)
def test_default_of_hardware(hardware: str, profile_id: str) -> None:
    """Proves that a model without a profile gets its hardware's own, and a named one wins."""
    assert built_in_profiles().resolve("", hardware).profile_id == profile_id
    assert built_in_profiles().resolve("llama-3.1-8b/a100/1", hardware).profile_id == "llama-3.1-8b/a100/1"


def test_newest_version_of_the_preferred_model_is_the_default() -> None:
    """Proves that a newer fit takes over and that another model on the same hardware does not."""
    newer = dataclasses.replace(H100, version=2, profile_id="llama-3.1-8b/h100/2")
    other = dataclasses.replace(H100, version=9, model="other", profile_id="other/h100/9")
    assert ProfileCatalogue([H100, newer, other]).default_for("h100") is newer
    assert ProfileCatalogue([other]).default_for("h100") is other


def test_unknown_profile_lists_the_known_ones() -> None:
    """Proves that a wrong id or label is answered with what there is."""
    with pytest.raises(NotFoundError, match=r"known: .*llama-3.1-8b/h100/1"):
        built_in_profiles().get("llama/b200/1")
    with pytest.raises(NotFoundError, match=r"known: .*cpu-2core"):
        built_in_profiles().default_for("abacus")


def test_duplicate_ids_are_refused() -> None:
    """Proves that one id never means two profiles."""
    with pytest.raises(InvalidArgumentError, match="two cost profiles"):
        ProfileCatalogue([H100, H100])


def _changed(**changes: object) -> str:
    return json.dumps({**dataclasses.asdict(H100), **changes})


def test_round_trip() -> None:
    """Proves that a profile written as JSON is read back equal."""
    assert parse_profile(_changed()) == H100


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        (_changed(e=1), "no field 'e'"),
        (json.dumps({"profile_id": "x"}), "needs the field"),
        (_changed(a="1"), "'a' must be of type float"),
        (_changed(version=True), "'version' must be of type int"),
        (_changed(version=1.5), "'version' must be of type int"),
        (_changed(model=None), "'model' must be of type str"),
        (_changed(a=-1), "a must be 0 to"),
        (_changed(a=float("nan")), "a must be 0 to"),
    ],
)
def test_broken_profiles_are_refused_with_the_reason(text: str, named: str) -> None:
    """Proves that a broken file names what is wrong with it."""
    with pytest.raises(InvalidArgumentError, match=named):
        parse_profile(text)
