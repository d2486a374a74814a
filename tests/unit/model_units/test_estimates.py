from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_units.cost import TOKENS_MAX, CostProfile, cost, decode_shape
from model_units.length import OutputLengthEstimator, next_covered_tokens
from model_units.profiles import built_in_profiles
from model_units.text import BytesPerToken
from model_units.units import (
    MilliModelUnits,
    MilliModelUnitsPerMinute,
    from_model_units,
    from_replica_seconds,
    seconds_to_serve,
    served_in,
    to_model_units,
    to_replica_seconds,
)
from tests.unit.model_units.strategies import profiles as any_profiles


def test_one_replica_minute_is_a_hundred_model_units() -> None:
    """Proves the definition of the unit, both ways, and that a whole price is not rounded up by float noise."""
    assert from_replica_seconds(60.0) == 100_000
    assert from_replica_seconds(0.0) == 0
    assert from_replica_seconds(1e-9) == 1
    assert to_replica_seconds(MilliModelUnits(100_000)) == pytest.approx(60.0)
    assert from_replica_seconds(0.0006 * 3) == 3


def test_conversions_for_people() -> None:
    """Proves that MU typed by people become whole mMU and back, and that nonsense is refused."""
    assert from_model_units(1.2345) == 1_234
    assert to_model_units(MilliModelUnits(1_500)) == 1.5
    with pytest.raises(ValueError, match="finite"):
        from_model_units(math.nan)


def test_rates() -> None:
    """Proves that flow over time and time to serve are each other's inverse, and that a zero rate never serves."""
    rate = MilliModelUnitsPerMinute(30_000)
    assert served_in(rate, 2.0) == 1_000
    assert seconds_to_serve(MilliModelUnits(1_000), rate) == 2.0
    assert seconds_to_serve(MilliModelUnits(1), MilliModelUnitsPerMinute(0)) == math.inf
    assert seconds_to_serve(MilliModelUnits(0), MilliModelUnitsPerMinute(0)) == 0.0


def test_length_starts_at_the_prior_and_learns_the_mean() -> None:
    """Proves that the estimate moves from the prior to the true mean of one (tenant, model) and of no other model."""
    estimator = OutputLengthEstimator(prior_tokens=256)
    assert estimator.estimate("a", "m", max_tokens=4_096) == 256
    for index in range(600):
        estimator.observe("a", "m", 900 if index % 2 else 1_100)
    assert estimator.estimate("a", "m", max_tokens=4_096) == pytest.approx(1_000, rel=0.02)
    assert estimator.estimate("a", "n", max_tokens=4_096) == 256


def test_a_new_tenant_begins_at_what_others_ask_of_the_model_and_leaves_it_soon() -> None:
    """Proves that a tenant nobody has seen is taken for the model's usual one, and that fifty requests end that."""
    estimator = OutputLengthEstimator(prior_tokens=256)
    for _ in range(600):
        estimator.observe("a", "m", 1_000)
    assert estimator.estimate("b", "m", max_tokens=4_096) == pytest.approx(1_000, rel=0.01)
    for _ in range(50):
        estimator.observe("b", "m", 20)
    assert estimator.estimate("b", "m", max_tokens=4_096) < 120
    for _ in range(150):
        estimator.observe("b", "m", 20)
    assert estimator.estimate("b", "m", max_tokens=4_096) < 25
    assert estimator.estimate("a", "m", max_tokens=4_096) == pytest.approx(1_000, rel=0.01)


def test_estimated_prices_add_up_to_the_true_ones_where_plain_means_do_not() -> None:
    """Proves the point of the shape: with heavy tails that go with long prompts the estimated prices add up to the true
    ones within 3 %, where the mean length falls short by more than a tenth."""
    noise, profile = np.random.default_rng(11), built_in_profiles().get("llama-3.1-8b/h100/1")
    shaped, plain = OutputLengthEstimator(), OutputLengthEstimator()
    sums = {"true": 0, "shaped": 0, "plain": 0}
    for number in range(20_000):
        inputs = int(noise.lognormal(6.5, 1.0)) + 1
        outputs = min(8_000, int(noise.lognormal(4.5, 0.8) * (inputs / 700) ** 0.3) + 1)
        shape = decode_shape(profile, inputs)
        guesses = {
            "true": outputs,
            "shaped": shaped.estimate("a", "m", max_tokens=10_000, shape=shape),
            "plain": plain.estimate("a", "m", max_tokens=10_000),
        }
        for name, guess in guesses.items():
            if number >= 1_000:
                sums[name] += cost(profile, input_tokens=inputs, output_tokens=guess).decode_milli_mu
        shaped.observe("a", "m", outputs, linear=shape[0])
        plain.observe("a", "m", outputs)
    assert sums["shaped"] == pytest.approx(sums["true"], rel=0.03)
    assert sums["plain"] < 0.9 * sums["true"]


@given(any_profiles(), st.integers(0, TOKENS_MAX), st.integers(0, TOKENS_MAX))
def test_shape_is_that_of_the_price(profile: CostProfile, input_tokens: int, output_tokens: int) -> None:
    """Proves that the shape of a profile says how its prices grow, unless a decode step costs next to nothing."""
    linear, square = decode_shape(profile, input_tokens)
    assert linear >= 1.0
    assert square >= 0.0
    if profile.g / profile.b < 1e9:
        price = cost(profile, input_tokens=input_tokens, output_tokens=output_tokens).decode_milli_mu
        shaped = profile.b * (linear * output_tokens + square * output_tokens**2) * 100_000 / 60
        assert price == pytest.approx(shaped, rel=1e-9, abs=1.01)


def test_length_follows_a_change_of_traffic() -> None:
    """Proves that two hundred requests of a new kind outweigh a long past."""
    estimator = OutputLengthEstimator()
    for _ in range(10_000):
        estimator.observe("a", "m", 1_000)
    for _ in range(200):
        estimator.observe("a", "m", 100)
    assert estimator.estimate("a", "m", max_tokens=4_096) < 120


@given(
    st.lists(st.tuples(st.integers(-5, 10**9), st.integers(0, TOKENS_MAX)), max_size=50),
    st.integers(1, TOKENS_MAX),
    any_profiles(),
    st.sampled_from("ab"),
)
def test_length_stays_within_the_request(
    observed: list[tuple[int, int]], max_tokens: int, profile: CostProfile, tenant: str
) -> None:
    """Proves that no history and no profile makes an estimate below 1 or above the request's own limit."""
    estimator = OutputLengthEstimator()
    for output_tokens, input_tokens in observed:
        estimator.observe("a", "m", output_tokens, linear=decode_shape(profile, input_tokens)[0])
    shape = decode_shape(profile, max_tokens)
    assert 1 <= estimator.estimate(tenant, "m", max_tokens=max_tokens, shape=shape) <= max_tokens


def test_length_remembers_a_bounded_number_of_keys() -> None:
    """Proves that memory is bounded and that the pair and the model observed longest ago are those forgotten."""
    estimator = OutputLengthEstimator(prior_tokens=1, keys_max=2)
    for tenant, model in (("a", "m"), ("b", "m"), ("a", "m"), ("c", "n")):
        for _ in range(400):
            estimator.observe(tenant, model, 500 if tenant == "a" else 50)
    assert len(estimator) == 2
    assert estimator.estimate("a", "m", max_tokens=1_000) == 500
    assert estimator.estimate("c", "n", max_tokens=1_000) == 50
    assert estimator.estimate("b", "m", max_tokens=1_000) == 500  # forgotten: a stranger of this model
    for _ in range(10):
        estimator.observe("d", "o", 7)
    assert estimator.estimate("b", "m", max_tokens=1_000) == 1  # nobody of this model is remembered


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_extensions_cover_what_was_delivered_and_never_exceed_the_limit(delivered: int, limit: int) -> None:
    """Proves that an extension covers at least what is there, within the limit unless the engine itself overshot it."""
    covered = next_covered_tokens(delivered, limit)
    assert covered >= delivered
    assert covered <= max(delivered, limit)


def test_bytes_per_token_starts_at_the_models_value_and_learns() -> None:
    """Proves that the ratio starts as configured and moves to what engines report, per model."""
    text = BytesPerToken()
    assert text.estimate_tokens("m", 4_000, start=4.0) == 1_000
    for _ in range(400):
        text.observe("m", prompt_bytes=3_000, input_tokens=1_000, start=4.0)
    assert text.ratio("m", start=4.0) == pytest.approx(3.0, rel=0.01)
    assert text.ratio("n", start=4.0) == 4.0


def test_long_prompts_count_most() -> None:
    """Proves that many tiny prompts, whose ratio is template overhead, do not spoil the ratio of the long ones."""
    text = BytesPerToken()
    for index in range(1_000):
        if index % 2:
            text.observe("m", prompt_bytes=10, input_tokens=20, start=4.0)
        else:
            text.observe("m", prompt_bytes=40_000, input_tokens=10_000, start=4.0)
    assert text.ratio("m", start=4.0) == pytest.approx(4.0, rel=0.02)


@given(st.integers(0, 10**9), st.floats())
def test_estimate_is_always_a_usable_count(prompt_bytes: int, start: float) -> None:
    """Proves that no start value, not even NaN or infinity, makes an estimate below one token or an exception."""
    assert BytesPerToken().estimate_tokens("m", prompt_bytes, start=start) >= 1


def test_bytes_per_token_is_bounded_and_ignores_empty_usage() -> None:
    """Proves that usage without counts teaches nothing and that the number of models is bounded."""
    text = BytesPerToken(models_max=1)
    text.observe("m", prompt_bytes=0, input_tokens=10, start=4.0)
    text.observe("m", prompt_bytes=10, input_tokens=0, start=4.0)
    assert text.ratio("m", start=4.0) == 4.0
    text.observe("m", prompt_bytes=100, input_tokens=100, start=4.0)
    text.observe("n", prompt_bytes=100, input_tokens=100, start=4.0)
    assert text.ratio("m", start=4.0) == 4.0
    assert text.ratio("n", start=4.0) < 4.0


def test_a_first_tiny_prompt_does_not_overturn_the_start_ratio() -> None:
    """Three prompts of one token and five bytes leave the estimate of a long prompt where it was, within 5 %."""
    ratios = BytesPerToken()
    for _ in range(3):
        ratios.observe("m", prompt_bytes=5, input_tokens=1, start=1.2)
    assert ratios.ratio("m", start=1.2) == pytest.approx(1.2, rel=0.05)
