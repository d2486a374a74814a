from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_units.cost import TOKENS_MAX, CostProfile, cost
from model_units.profiles import built_in_profiles

PROFILES = [built_in_profiles().get(profile_id) for profile_id in built_in_profiles().ids]
H100 = built_in_profiles().get("llama-3.1-8b/h100/1")

profiles = st.sampled_from(PROFILES)
token_counts = st.integers(0, TOKENS_MAX)


def replaced(field: str, value: float) -> CostProfile:
    changes: dict[str, Any] = {field: value}
    return dataclasses.replace(H100, **changes)


def test_worked_example_of_the_docstring() -> None:
    """Proves the formula: the numbers of the module's worked example, computed here by hand."""
    price = cost(H100, input_tokens=4_000, output_tokens=200)
    prefill_s = 1.934e-5 * 4_000 + 4.017e-10 * 16_000_000
    decode_s = 2.764e-5 * 200 + 4.532e-8 * 200 * 4_100
    assert price.prefill_milli_mu == math.ceil(prefill_s * 100_000 / 60) == 140
    assert price.decode_milli_mu == math.ceil(decode_s * 100_000 / 60) == 72
    assert price.total_milli_mu == 212


@given(profiles, token_counts, token_counts, token_counts)
def test_never_falls_when_a_count_grows(profile: CostProfile, input_tokens: int, output_tokens: int, more: int) -> None:
    """Proves monotony: a longer prompt or a longer answer never costs less, in either part."""
    small = cost(profile, input_tokens=input_tokens, output_tokens=output_tokens)
    longer_prompt = cost(profile, input_tokens=max(input_tokens, more), output_tokens=output_tokens)
    longer_answer = cost(profile, input_tokens=input_tokens, output_tokens=max(output_tokens, more))
    assert longer_prompt.prefill_milli_mu >= small.prefill_milli_mu
    assert longer_prompt.decode_milli_mu >= small.decode_milli_mu
    assert longer_answer.prefill_milli_mu == small.prefill_milli_mu
    assert longer_answer.decode_milli_mu >= small.decode_milli_mu


@given(profiles, token_counts, token_counts, st.data())
def test_cached_prefix_is_a_discount(
    profile: CostProfile, input_tokens: int, output_tokens: int, data: st.DataObject
) -> None:
    """Proves that a cached prefix never raises the price, never makes it negative, and leaves decode alone."""
    cached = data.draw(st.integers(0, input_tokens))
    more_cached = data.draw(st.integers(cached, input_tokens))
    full = cost(profile, input_tokens=input_tokens, output_tokens=output_tokens)
    some = cost(profile, input_tokens=input_tokens, output_tokens=output_tokens, cached_input_tokens=cached)
    more = cost(profile, input_tokens=input_tokens, output_tokens=output_tokens, cached_input_tokens=more_cached)
    assert 0 <= more.prefill_milli_mu <= some.prefill_milli_mu <= full.prefill_milli_mu
    assert full.decode_milli_mu == some.decode_milli_mu == more.decode_milli_mu
    everything = cost(profile, input_tokens=input_tokens, output_tokens=0, cached_input_tokens=input_tokens)
    assert everything.total_milli_mu == 0


@given(profiles, st.integers(0, 200_000), st.lists(st.integers(0, 5_000), min_size=1, max_size=20))
def test_rounding_of_a_split_output_is_bounded(profile: CostProfile, input_tokens: int, pieces: list[int]) -> None:
    """Proves that an answer continued on other replicas costs at most one mMU per piece more than in one go."""
    whole = cost(profile, input_tokens=input_tokens, output_tokens=sum(pieces)).decode_milli_mu
    split, context = 0, input_tokens
    for piece in pieces:
        split += cost(profile, input_tokens=context, output_tokens=piece).decode_milli_mu
        context += piece
    assert whole - 1 <= split <= whole + len(pieces)


@given(profiles, st.integers(1, TOKENS_MAX), st.integers(1, TOKENS_MAX))
def test_no_work_is_free(profile: CostProfile, input_tokens: int, output_tokens: int) -> None:
    """Proves that rounding never makes a prompt or an answer free."""
    price = cost(profile, input_tokens=input_tokens, output_tokens=output_tokens)
    assert price.prefill_milli_mu >= 1
    assert price.decode_milli_mu >= 1


@pytest.mark.parametrize(
    ("input_tokens", "output_tokens", "cached", "named"),
    [
        (-1, 0, 0, "input_tokens"),
        (TOKENS_MAX + 1, 0, 0, "input_tokens"),
        (0, -1, 0, "output_tokens"),
        (0, TOKENS_MAX + 1, 0, "output_tokens"),
        (5, 0, 6, "cached_input_tokens"),
        (5, 0, -1, "cached_input_tokens"),
    ],
)
def test_counts_out_of_range_are_refused_by_name(
    input_tokens: int, output_tokens: int, cached: int, named: str
) -> None:
    """Proves that an impossible count is refused and named instead of priced."""
    with pytest.raises(ValueError, match=named):
        cost(H100, input_tokens=input_tokens, output_tokens=output_tokens, cached_input_tokens=cached)


@pytest.mark.parametrize("field", ["a", "b", "d", "g", "tpot_objective_ms"])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, -math.inf, 1e9])
def test_absurd_constants_are_refused_by_name(field: str, value: float) -> None:
    """Proves that no profile with a negative, infinite, undefined or absurd constant can exist."""
    with pytest.raises(ValueError, match=f"{field} must be"):
        replaced(field, value)


@pytest.mark.parametrize("field", ["a", "b", "tpot_objective_ms"])
def test_free_work_is_refused(field: str) -> None:
    """Proves that a profile cannot make prompts or answers free."""
    with pytest.raises(ValueError, match="above 0"):
        replaced(field, 0.0)


def test_id_must_say_what_the_profile_is() -> None:
    """Proves that an id which contradicts the profile's own fields is refused."""
    with pytest.raises(ValueError, match="model/hardware/version"):
        dataclasses.replace(H100, hardware="a100")
