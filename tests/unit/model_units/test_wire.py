from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.admin.v1 import calibration_pb2
from fairlead.errors import InvalidArgumentError
from model_units.cost import CostForm, CostProfile
from model_units.profiles import built_in_profiles
from model_units.wire import decode_profile, form_from_proto, form_to_proto, profile_from_proto, profile_to_proto
from tests.unit.model_units.strategies import profiles

H100 = built_in_profiles().get("llama-3.1-8b/h100/1")


@given(profiles())
def test_round_trip_through_bytes(profile: CostProfile) -> None:
    """Proves that a profile survives being stored: the bytes give an equal one back, whatever it holds."""
    assert decode_profile(profile_to_proto(profile).SerializeToString()) == profile


@pytest.mark.parametrize("fraction", [".500", ".123456", ".123456789"])
def test_fractions_of_a_second_survive(fraction: str) -> None:
    """Proves that a time is kept to the nanosecond."""
    message = profile_to_proto(H100)
    message.create_time.FromJsonString(f"2026-01-31T08:30:00{fraction}Z")
    assert profile_to_proto(profile_from_proto(message)) == message


def test_unset_form_is_attention_and_unknown_forms_are_refused() -> None:
    """Proves that a message without a form reads as ATTENTION and that a form of the future is not guessed."""
    assert form_from_proto(calibration_pb2.COST_FORM_UNSPECIFIED) is CostForm.ATTENTION
    for form in CostForm:
        assert form_from_proto(form_to_proto(form)) is form
    with pytest.raises(InvalidArgumentError, match="form 7 stands for no form"):
        form_from_proto(7)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"version": 0}, "version"),
        ({"version": -1}, "version"),
        ({"model": ""}, "model"),
        ({"profile_id": "x/y/1"}, "profile_id"),
        ({"a": -1.0}, "a must be"),
        ({"b": 0.0}, "b must be above 0"),
        ({"g": math.nan}, "g must be"),
        ({"tpot_objective_ms": 0.0}, "tpot_objective_ms"),
        ({"form": calibration_pb2.COST_FORM_PRODUCT}, "d must be 0"),
        ({"evidence": {"hold_out_error": math.inf}}, "hold_out_error"),
        ({"evidence": {"points": -1}}, "points"),
        ({"evidence": {"intervals": {"e": {"low": 1.0, "high": 2.0}}}}, "intervals"),
        ({"evidence": {"intervals": {"a": {"low": 2.0, "high": 1.0}}}}, "intervals"),
        ({"evidence": {"latency_curve": [{"intensity_ms": 1.0}]}}, "TPOT must be above 0"),
        ({"create_time": {"seconds": 10**15}}, "create_time"),
        ({"create_time": {"nanos": -5}}, "create_time"),
    ],
)
def test_bad_messages_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    """Proves that no invalid profile gets in over the wire, and that the refusal names the field."""
    message = profile_to_proto(H100)
    for name in changes:
        message.ClearField(name)  # type: ignore[arg-type]  # the names above are fields
    message.MergeFrom(calibration_pb2.CostProfile(**changes))
    with pytest.raises(InvalidArgumentError, match=named):
        profile_from_proto(message)


def test_bytes_that_are_no_message_are_refused() -> None:
    """Proves that a damaged or empty value in the store is a clear refusal."""
    with pytest.raises(InvalidArgumentError, match="no cost profile message"):
        decode_profile(b"\xff\xff\xff")
    with pytest.raises(InvalidArgumentError, match="profile_id must not be empty"):
        decode_profile(b"")
    with pytest.raises(InvalidArgumentError):
        decode_profile(profile_to_proto(H100).SerializeToString()[:-5])


@given(st.binary(max_size=120))
def test_any_bytes_are_a_profile_or_a_refusal(value: bytes) -> None:
    """Proves that no stored value makes a reader fail in another way than by InvalidArgumentError."""
    with pytest.raises(InvalidArgumentError):
        decode_profile(value)
