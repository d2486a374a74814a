from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_units.length import OutputLengthEstimator
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
    """Proves that the estimate moves from the prior to the true mean of one (tenant, model) and of no other."""
    estimator = OutputLengthEstimator(prior_tokens=256)
    assert estimator.estimate("a", "m", max_tokens=4_096) == 256
    for index in range(600):
        estimator.observe("a", "m", 900 if index % 2 else 1_100)
    assert estimator.estimate("a", "m", max_tokens=4_096) == pytest.approx(1_000, rel=0.02)
    assert estimator.estimate("b", "m", max_tokens=4_096) == 256
    assert estimator.estimate("a", "n", max_tokens=4_096) == 256


def test_length_follows_a_change_of_traffic() -> None:
    """Proves that two hundred requests of a new kind outweigh a long past."""
    estimator = OutputLengthEstimator()
    for _ in range(10_000):
        estimator.observe("a", "m", 1_000)
    for _ in range(200):
        estimator.observe("a", "m", 100)
    assert estimator.estimate("a", "m", max_tokens=4_096) < 120


@given(st.lists(st.integers(0, 10_000_000), max_size=50), st.integers(1, 10_000_000))
def test_length_stays_within_the_request(observed: list[int], max_tokens: int) -> None:
    """Proves that no history makes an estimate below 1 or above the request's own limit."""
    estimator = OutputLengthEstimator()
    for length in observed:
        estimator.observe("a", "m", length)
    assert 1 <= estimator.estimate("a", "m", max_tokens=max_tokens) <= max_tokens


def test_length_remembers_a_bounded_number_of_keys() -> None:
    """Proves that memory is bounded and that the pair observed longest ago is the one forgotten."""
    estimator = OutputLengthEstimator(prior_tokens=1, keys_max=2)
    for tenant in ("a", "b", "a", "c"):
        for _ in range(100):
            estimator.observe(tenant, "m", 500)
    assert len(estimator) == 2
    assert estimator.estimate("a", "m", max_tokens=1_000) > 1
    assert estimator.estimate("b", "m", max_tokens=1_000) == 1


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
