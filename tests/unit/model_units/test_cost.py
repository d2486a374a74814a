from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_units.cost import IMAGES_MAX, TOKENS_MAX, CostForm, CostProfile, Evidence, cost, image_cpu_seconds
from model_units.profiles import built_in_profiles
from tests.unit.model_units.strategies import profiles as any_profiles

PROFILES = [built_in_profiles().get(profile_id) for profile_id in built_in_profiles().ids]
H100 = built_in_profiles().get("llama-3.1-8b/h100/1")
PRODUCT = dataclasses.replace(H100, form=CostForm.PRODUCT, d=0.0, image_s=0.012, image_cpu_s=0.03)

profiles = st.sampled_from([*PROFILES, PRODUCT]) | any_profiles()
token_counts = st.integers(0, TOKENS_MAX)
image_counts = st.integers(0, IMAGES_MAX)


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


def test_product_form_by_hand() -> None:
    """Proves the second form: no attention term in prefill, and output times input in decode."""
    price = cost(PRODUCT, input_tokens=4_000, output_tokens=200, cached_input_tokens=1_000, images=2)
    assert price.prefill_milli_mu == math.ceil((1.934e-5 * 3_000 + 0.012 * 2) * 100_000 / 60)
    assert price.decode_milli_mu == math.ceil((2.764e-5 * 200 + 4.532e-8 * 200 * 4_000) * 100_000 / 60)


@given(profiles, token_counts, token_counts, image_counts, st.data())
def test_price_is_the_formula_rounded_up(
    profile: CostProfile, input_tokens: int, output_tokens: int, images: int, data: st.DataObject
) -> None:
    """Proves both parts against the formula in exact fractions: whole mMU, never under it and under one mMU over it."""
    cached = data.draw(st.integers(0, input_tokens))
    price = cost(
        profile, input_tokens=input_tokens, output_tokens=output_tokens, cached_input_tokens=cached, images=images
    )
    a, b, d, g, image_s = (Fraction(value) for value in (profile.a, profile.b, profile.d, profile.g, profile.image_s))
    prefill_s = a * (input_tokens - cached) + d * (input_tokens**2 - cached**2) + image_s * images
    half = Fraction(0) if profile.form is CostForm.PRODUCT else Fraction(output_tokens, 2)
    decode_s = b * output_tokens + g * output_tokens * (input_tokens + half)
    for charged, exact in ((price.prefill_milli_mu, prefill_s), (price.decode_milli_mu, decode_s)):
        milli_mu = exact * 100_000 / 60
        noise = milli_mu * Fraction(1, 2**48) + Fraction(1, 10**8)
        assert type(charged) is int
        assert milli_mu - noise <= charged < milli_mu + 1 + noise


@given(profiles, token_counts, token_counts, image_counts, token_counts, image_counts)
def test_never_falls_when_a_count_grows(
    profile: CostProfile, input_tokens: int, output_tokens: int, images: int, more: int, more_images: int
) -> None:
    """Proves monotony: a longer prompt, a longer answer or another image never costs less, in either part."""
    small = cost(profile, input_tokens=input_tokens, output_tokens=output_tokens, images=images)
    longer_prompt = cost(
        profile, input_tokens=max(input_tokens, more), output_tokens=output_tokens, images=max(images, more_images)
    )
    longer_answer = cost(profile, input_tokens=input_tokens, output_tokens=max(output_tokens, more), images=images)
    assert longer_prompt.prefill_milli_mu >= small.prefill_milli_mu
    assert longer_prompt.decode_milli_mu >= small.decode_milli_mu
    assert longer_answer.prefill_milli_mu == small.prefill_milli_mu
    assert longer_answer.decode_milli_mu >= small.decode_milli_mu


@given(profiles, token_counts, st.integers(0, 50), st.data())
def test_images_add_their_own_price_to_prefill(
    profile: CostProfile, input_tokens: int, images: int, data: st.DataObject
) -> None:
    """Proves that images cost the encoder's time each, cached or not, up to the rounding, and no decode."""
    cached = data.draw(st.integers(0, input_tokens))
    without = cost(profile, input_tokens=input_tokens, output_tokens=7, cached_input_tokens=cached)
    withal = cost(profile, input_tokens=input_tokens, output_tokens=7, cached_input_tokens=cached, images=images)
    added = withal.prefill_milli_mu - without.prefill_milli_mu
    assert added == pytest.approx(profile.image_s * images * 100_000 / 60, rel=1e-9, abs=1.01)
    assert withal.decode_milli_mu == without.decode_milli_mu


def test_image_preprocessing_is_a_resource_of_its_own() -> None:
    """Proves that CPU time of images is counted per image and is no part of the price."""
    assert image_cpu_seconds(PRODUCT, 5) == pytest.approx(0.15)
    assert image_cpu_seconds(H100, 5) == 0.0
    free_cpu = dataclasses.replace(PRODUCT, image_cpu_s=0.0)
    assert cost(free_cpu, input_tokens=9, output_tokens=9, images=5) == cost(
        PRODUCT, input_tokens=9, output_tokens=9, images=5
    )
    with pytest.raises(ValueError, match="images"):
        image_cpu_seconds(PRODUCT, -1)


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


@given(
    profiles.filter(lambda profile: profile.form is CostForm.ATTENTION),
    st.integers(0, 200_000),
    st.lists(st.integers(0, 5_000), min_size=1, max_size=20),
)
def test_rounding_of_a_split_output_is_bounded(profile: CostProfile, input_tokens: int, pieces: list[int]) -> None:
    """Proves that an answer continued on other replicas costs at most one mMU per piece more than in one go."""
    whole = cost(profile, input_tokens=input_tokens, output_tokens=sum(pieces)).decode_milli_mu
    split, context = 0, input_tokens
    for piece in pieces:
        split += cost(profile, input_tokens=context, output_tokens=piece).decode_milli_mu
        context += piece
    noise = whole * 1e-12  # of the floats, where prices reach billions of mMU
    assert whole - 1 - noise <= split <= whole + len(pieces) + noise


@given(st.sampled_from([*PROFILES, PRODUCT]), st.integers(1, TOKENS_MAX), st.integers(1, TOKENS_MAX))
def test_no_work_is_free(profile: CostProfile, input_tokens: int, output_tokens: int) -> None:
    """Proves that rounding never makes a prompt or an answer free."""
    price = cost(profile, input_tokens=input_tokens, output_tokens=output_tokens)
    assert price.prefill_milli_mu >= 1
    assert price.decode_milli_mu >= 1


@pytest.mark.parametrize(
    ("counts", "named"),
    [
        ((-1, 0, 0, 0), "input_tokens must be 0 to 10000000, not -1"),
        ((TOKENS_MAX + 1, 0, 0, 0), "input_tokens"),
        ((0, -1, 0, 0), "output_tokens"),
        ((0, TOKENS_MAX + 1, 0, 0), "output_tokens"),
        ((5, 0, 6, 0), "cached_input_tokens must be 0 to input_tokens"),
        ((5, 0, -1, 0), "cached_input_tokens"),
        ((5, 0, 0, -1), "images"),
        ((5, 0, 0, IMAGES_MAX + 1), "images"),
    ],
)
def test_counts_out_of_range_are_refused_by_name(counts: tuple[int, int, int, int], named: str) -> None:
    """Proves that an impossible count is refused and named instead of priced."""
    input_tokens, output_tokens, cached, images = counts
    with pytest.raises(ValueError, match=f"^{named}"):
        cost(H100, input_tokens=input_tokens, output_tokens=output_tokens, cached_input_tokens=cached, images=images)


@pytest.mark.parametrize(
    "field", ["a", "b", "d", "g", "tpot_objective_ms", "ttft_objective_ms", "image_s", "image_cpu_s"]
)
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


def test_product_form_has_no_quadratic_term() -> None:
    """Proves that a profile cannot carry a coefficient that its form would silently ignore."""
    with pytest.raises(ValueError, match="d must be 0"):
        dataclasses.replace(H100, form=CostForm.PRODUCT)


def test_a_profile_can_be_a_key() -> None:
    """Proves that profiles hash whatever their evidence holds, so that caches may be keyed by them."""
    evidence = Evidence(intervals={"a": (1e-5, 2e-5)}, class_errors={"chat": -0.04}, hold_out_error=0.02)
    known = dataclasses.replace(H100, evidence=evidence)
    assert hash(known) == hash(dataclasses.replace(known))
    assert evidence.stated_error == 0.04
