from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import model_units
from fairlead.errors import InvalidArgumentError, NotFoundError
from model_units.cost import CostProfile, Evidence
from model_units.profiles import ProfileCatalogue, built_in_profiles, parse_profile, render_profile
from tests.unit.model_units.strategies import profiles

H100 = built_in_profiles().get("llama-3.1-8b/h100/1")


def test_built_in_profiles_are_complete() -> None:
    """Proves that every shipped file parses and is named after the id it holds."""
    assert set(built_in_profiles().ids) == {
        "llama-3.1-70b/a100-tp4/1",
        "llama-3.1-70b/h100-tp4/1",
        "llama-3.1-70b/h100-tp4/2",
        "llama-3.1-70b/h100-tp8/1",
        "llama-3.1-8b/a100/1",
        "llama-3.1-8b/a100/2",
        "llama-3.1-8b/h100/1",
        "llama-3.1-8b/h100/2",
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
        ("h100", "llama-3.1-8b/h100/2"),
        ("a100", "llama-3.1-8b/a100/2"),
        ("h100-tp4", "llama-3.1-70b/h100-tp4/2"),
        ("a100-tp4", "llama-3.1-70b/a100-tp4/1"),
        ("h100-tp8", "llama-3.1-70b/h100-tp8/1"),
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


def test_live_profiles_are_found_but_never_replace_or_become_a_default() -> None:
    """Proves that a live profile is found as soon as its owner adds it, shadows no built-in and is no default."""
    live: dict[str, CostProfile] = {}
    catalogue = ProfileCatalogue([H100], live)
    second = dataclasses.replace(H100, version=2, profile_id="llama-3.1-8b/h100/2", a=1e-4)
    with pytest.raises(NotFoundError):
        catalogue.get(second.profile_id)
    live[second.profile_id] = second
    live[H100.profile_id] = dataclasses.replace(H100, a=9e-5)
    assert catalogue.get(second.profile_id) is second
    assert catalogue.get(H100.profile_id) is H100
    assert catalogue.default_for("h100") is H100
    assert catalogue.ids == (H100.profile_id, second.profile_id)
    assert [catalogue.is_built_in(profile_id) for profile_id in catalogue.ids] == [True, False]
    del live[second.profile_id]
    assert list(catalogue.ids) == [H100.profile_id]


def test_versions_count_numerically_and_across_both_sources() -> None:
    """Proves that version 10 follows 9 and the next version is above every built-in and live one."""
    live = {
        profile.profile_id: profile
        for version in (10, 9, 2)
        for profile in [dataclasses.replace(H100, version=version, profile_id=f"llama-3.1-8b/h100/{version}")]
    }
    catalogue = ProfileCatalogue([H100], live)
    assert [profile.version for profile in catalogue.versions_of("llama-3.1-8b", "h100")] == [1, 2, 9, 10]
    assert catalogue.next_version("llama-3.1-8b", "h100") == 11
    assert catalogue.versions_of("llama-3.1-8b", "b200") == []
    assert catalogue.next_version("llama-3.1-8b", "b200") == 1


@given(profiles(plausible=True))
def test_round_trip(profile: CostProfile) -> None:
    """Proves that a profile written as JSON is read back equal, whatever it holds."""
    assert parse_profile(render_profile(profile)) == profile


def test_shipped_files_are_rendered_as_they_are() -> None:
    """Proves that fields at their defaults are left out: a shipped file and its rendering hold the same JSON."""
    for path in (Path(model_units.__file__).parent / "profiles").glob("*.json"):
        assert json.loads(render_profile(parse_profile(path.read_bytes()))) == json.loads(path.read_bytes())


def _changed(**changes: object) -> str:
    return json.dumps({**json.loads(render_profile(H100)), **changes})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        (b"\xff\xfe{", "JSON"),
        (render_profile(H100)[:200], "JSON"),
        ("[]", "object"),
        (_changed(e=1), "no field 'e'"),
        (json.dumps({"profile_id": "x"}), "needs the field 'model'"),
        (_changed(a="1"), "profile.a must be a number"),
        (_changed(a=True), "profile.a must be a number"),
        (_changed(a=10**400), "profile.a is too large"),
        (_changed(version=True), "profile.version must be a whole number"),
        (_changed(version="1"), "profile.version must be a whole number"),
        (_changed(version=1.5), "profile.version must be a whole number"),
        (_changed(version=0), "version must be 1 to"),
        (_changed(version=2**31), "version must be 1 to"),
        (_changed(version=2), "profile_id must be model/hardware/version"),
        (_changed(model=None), "profile.model must be a text"),
        (_changed(engine="\ud800"), "engine must be"),
        (_changed(a=-1), "a must be 0 to"),
        (_changed(a=float("nan")), "a must be 0 to"),
        (_changed(g=float("inf")), "g must be 0 to"),
        (_changed(form="quadratic"), "profile.form must be 'attention' or 'product'"),
        (_changed(form=[]), "profile.form must be"),
        (_changed(form="product"), "d must be 0"),
        (_changed(image_s=-1), "image_s must be 0 to"),
        (_changed(image_cpu_s=float("nan")), "image_cpu_s must be 0 to"),
        (_changed(ttft_objective_ms=1e9), "ttft_objective_ms must be 0 to"),
        (_changed(create_time="yesterday"), "create_time must be a time"),
        (_changed(create_time="2026-02-30T00:00:00Z"), "create_time must be a time"),
        (_changed(create_time="2026-02-01T00:00:00+01:00"), "create_time must be a time"),
    ],
)
def test_broken_profiles_are_refused_with_the_reason(text: str | bytes, named: str) -> None:
    """Proves that a broken file names what is wrong with it."""
    with pytest.raises(InvalidArgumentError, match=named):
        parse_profile(text)


@pytest.mark.parametrize(
    ("evidence", "named"),
    [
        ([], "profile.evidence must be a JSON object"),
        ({"quality": 1}, "profile.evidence has no field 'quality'"),
        ({"intervals": {"a": [2e-5, 1e-5]}}, r"intervals\[a\] high"),
        ({"intervals": {"a": [-1e-5, 1e-5]}}, r"intervals\[a\] low"),
        ({"intervals": {"a": [float("nan"), 1e-5]}}, r"intervals\[a\] low"),
        ({"intervals": {"c": [0, 1]}}, "intervals must be of a, b, d, g, not of 'c'"),
        ({"intervals": {"a": [1e-5]}}, "profile.evidence.intervals.a must be a list of two numbers"),
        ({"intervals": [1]}, "profile.evidence.intervals must be a JSON object"),
        ({"class_errors": {"chat": "2 %"}}, "profile.evidence.class_errors.chat must be a number"),
        ({"class_errors": {"chat": float("inf")}}, r"class_errors\[chat\]"),
        ({"class_errors": {"": 0.1}}, "class_errors must not be empty"),
        ({"hold_out_error": -0.1}, "hold_out_error"),
        ({"points": 2.5}, "profile.evidence.points must be a whole number"),
        ({"points": True}, "profile.evidence.points must be a whole number"),
        ({"points": -1}, "points must be 0 to"),
        ({"engine_s": float("nan")}, "engine_s"),
        ({"latency_curve": {"1": 2}}, "profile.evidence.latency_curve must be a list"),
        ({"latency_curve": [[1, 10], [2]]}, r"profile.evidence.latency_curve\[1\] must be a list of two"),
        ({"latency_curve": [[1, 10], [2, 9]]}, "latency_curve must ascend"),
        ({"latency_curve": [[1, 10], [1, 11]]}, "latency_curve must ascend"),
        ({"latency_curve": [[1, 0]]}, "latency_curve TPOT must be above 0"),
        ({"latency_curve": [[float("nan"), 1]]}, "latency_curve intensity"),
        ({"latency_spread": -1}, "latency_spread"),
    ],
)
def test_nonsense_in_evidence_is_refused_by_name(evidence: object, named: str) -> None:
    """Proves that evidence which contradicts itself never becomes part of a profile."""
    with pytest.raises(InvalidArgumentError, match=named):
        parse_profile(_changed(evidence=evidence))


def test_no_evidence_may_be_written_as_null() -> None:
    """Proves that null and a field left out mean the same: nothing is stated."""
    assert parse_profile(_changed(evidence=None)).evidence is None
    assert parse_profile(_changed(evidence={})).evidence == Evidence()


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_a_profile_or_a_clear_refusal(text: bytes | str) -> None:
    """Proves that no input makes the reader fail in a way that is not its own."""
    with pytest.raises(InvalidArgumentError):
        parse_profile(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = st.sampled_from([field.name for field in dataclasses.fields(CostProfile)])


@given(st.dictionaries(_FIELDS, _JSON, min_size=1, max_size=3))
def test_any_json_in_a_field_is_read_or_refused(changes: dict[str, object]) -> None:
    """Proves that a value of any JSON type in any field is either read or refused as an invalid argument."""
    try:
        parsed = parse_profile(_changed(**changes))
    except InvalidArgumentError:
        return
    assert parse_profile(render_profile(parsed)) == parsed
