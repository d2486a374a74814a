"""The prices of the hot path, to the last milli-MU those of the plain form they are documented in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.router.core import pricing
from data_plane.router.core.pricing import Pricing
from model_units.cost import TOKENS_MAX, CostForm, CostProfile, cost
from model_units.length import OutputLengthEstimator, next_covered_tokens
from model_units.profiles import built_in_profiles
from model_units.text import BytesPerToken
from tests.unit.model_units.strategies import profiles as any_profiles

SHIPPED = [built_in_profiles().get(profile_id) for profile_id in built_in_profiles().ids]
PROFILES = st.sampled_from(SHIPPED) | any_profiles()
COUNTS = st.integers(-10, TOKENS_MAX + 10) | st.integers(0, 8_000)


def plain_milli_mu(replica_s: float) -> int:
    return math.ceil(replica_s * (100_000 / 60.0) - 1e-9)


def plain_cost(profile: CostProfile, read: int, made: int, cached: int) -> tuple[int, int]:
    """The module docstring of model_units.cost, with its exact difference of squares."""
    prefill_s = profile.a * (read - cached) + profile.d * ((read - cached) * (read + cached))
    contexts = 2 * read + (0 if profile.form is CostForm.PRODUCT else made)
    decode_s = profile.b * made + profile.g * (made * contexts) / 2
    return plain_milli_mu(prefill_s), plain_milli_mu(decode_s)


def plain_settled(profile: CostProfile, read: int, made: int, cached: int) -> tuple[int, int]:
    read = min(max(0, read), TOKENS_MAX)
    return plain_cost(profile, read, min(max(0, made), TOKENS_MAX), min(max(0, cached), read))


def plain_shape(profile: CostProfile, read: int) -> tuple[float, float]:
    ratio = min(profile.g / profile.b, 1e9)
    return 1.0 + ratio * read, 0.0 if profile.form is CostForm.PRODUCT else ratio / 2


@dataclass
class PlainMeans:
    """Running means as the estimator documents them."""

    values: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    unlearned: float = 1.0
    observations: int = 4

    def learn(self, weight: float, length: float) -> None:
        self.observations += 1
        step = max(0.02, 1.0 / self.observations)
        for index, value in enumerate((weight, weight * length, length * length)):
            self.values[index] += step * (value - self.values[index])
        self.unlearned *= 1.0 - step


class PlainPricing:
    """What Pricing says it does, with nothing worked out beforehand and nothing in place."""

    def __init__(self, keys_max: int) -> None:
        self.keys_max = keys_max
        self.pairs: dict[tuple[str, str], PlainMeans] = {}
        self.models: dict[str, PlainMeans] = {}
        self.ratios: dict[str, tuple[float, float, int]] = {}

    def ratio(self, model_id: str, start: float) -> float:
        means = self.ratios.get(model_id)
        ratio = start if means is None else means[0] / means[1]
        return min(100.0, max(0.1, ratio)) if math.isfinite(ratio) else 4.0

    def length(self, pair: tuple[str, str], shape: tuple[float, float], max_tokens: int) -> int:
        linear, square = shape
        model, own = self.models.get(pair[1]), self.pairs.get(pair)
        if model is None:
            length, mean_square = 256.0, 2.0 * 256.0 * 256.0
        elif own is None:
            length, mean_square = model.values[1] / model.values[0], model.values[2]
        else:
            rest = own.unlearned
            weight, weighted, squares = (
                mine + rest * all_ for mine, all_ in zip(own.values, model.values, strict=True)
            )
            length, mean_square = weighted / weight, squares
        if square > 0.0:
            price = linear * length + square * mean_square
            length = 2.0 * price / (linear + math.sqrt(linear * linear + 4.0 * square * price))
        return max(1, min(max_tokens, round(length)))

    def estimate(
        self, profile: CostProfile, pair: tuple[str, str], size: int, messages: int, limit: int, start: float
    ) -> tuple[int, int, tuple[int, int]]:
        prompt = max(1, math.ceil(size / self.ratio(pair[1], start)))
        read = min(TOKENS_MAX, prompt + 4 * messages)
        made = self.length(pair, plain_shape(profile, read), limit)
        return read, made, plain_settled(profile, read, made, 0)

    def observe(
        self,
        profile: CostProfile,
        pair: tuple[str, str],
        size: int,
        messages: int,
        counts: tuple[int, int],
        start: float,
    ) -> None:
        read, made = counts
        if size > 0 and read - 4 * messages > 0:
            counted = read - 4 * messages
            tokens = max(256.0, float(counted))
            known = self.ratios.get(pair[1]) or (self.ratio(pair[1], start) * tokens, tokens, 4)
            weight = max(0.02, 1.0 / (known[2] + 1))
            self.ratios[pair[1]] = (
                known[0] + weight * (size - known[0]),
                known[1] + weight * (counted - known[1]),
                known[2] + 1,
            )
        linear, _ = plain_shape(profile, min(max(0, read), TOKENS_MAX))
        model = self.models.pop(pair[1], None)
        if model is None:
            model = PlainMeans([linear, linear * 256.0, 2.0 * 256.0 * 256.0], 0.0)
        own = self.pairs.pop(pair, None) or PlainMeans()
        for means in (model, own):
            means.learn(linear, float(min(max(0, made), TOKENS_MAX)))
        self.models[pair[1]], self.pairs[pair] = model, own
        if len(self.pairs) > self.keys_max:
            del self.pairs[next(iter(self.pairs))]
        if len(self.models) > self.keys_max:
            del self.models[next(iter(self.models))]


@given(PROFILES, COUNTS, COUNTS, COUNTS)
def test_the_price_is_the_plain_one_to_the_last_milli_mu(
    profile: CostProfile, read: int, made: int, cached: int
) -> None:
    """Any counts, nonsense included, cost what the formula says; the total is the sum of the parts."""
    settled = pricing.settled(profile, read, made, cached)
    assert settled[:2] == plain_settled(profile, read, made, cached)
    assert settled.total_milli_mu == settled.prefill_milli_mu + settled.decode_milli_mu
    if 0 <= cached <= read <= TOKENS_MAX and 0 <= made <= TOKENS_MAX:
        asked = cost(profile, input_tokens=read, output_tokens=made, cached_input_tokens=cached)
        assert asked[:2] == plain_cost(profile, read, made, cached)


_steps = st.tuples(
    st.sampled_from([("a", "m"), ("b", "m"), ("a", "n"), ("c", "n")]),
    st.integers(0, 60_000) | st.integers(0, 10**8),  # bytes
    st.integers(0, 20),  # messages
    st.integers(1, 40_000),  # max_tokens
    st.tuples(COUNTS, COUNTS),
    st.sampled_from([4.0, 0.0, 3.1, 1e9, math.inf, -math.inf, math.nan]),
    st.integers(0, 70),  # times it is learned from
)


@settings(max_examples=80, deadline=None)
@given(PROFILES, PROFILES, st.sampled_from([2, 100]), st.lists(_steps, max_size=12))
def test_estimates_are_the_plain_ones_after_any_history(
    profile: CostProfile,
    newer: CostProfile,
    keys_max: int,
    steps: list[tuple[tuple[str, str], int, int, int, tuple[int, int], float, int]],
) -> None:
    """Whatever was learned, and with a new profile from one request to the next, the estimate is the documented one."""
    prices = Pricing(OutputLengthEstimator(keys_max=keys_max), BytesPerToken())
    plain = PlainPricing(keys_max)
    for number, (pair, size, messages, limit, counts, start, times) in enumerate(steps):
        used = newer if number % 3 == 2 else profile
        price = prices.estimate(
            used,
            tenant_id=pair[0],
            model_id=pair[1],
            prompt_bytes=size,
            messages=messages,
            max_tokens=limit,
            runs_to_max=False,
            bytes_per_token_start=start,
        )
        assert (price.input_tokens, price.output_tokens, price.cost[:2]) == plain.estimate(
            used, pair, size, messages, limit, start
        )
        for _ in range(times):
            prices.observe(
                used,
                tenant_id=pair[0],
                model_id=pair[1],
                prompt_bytes=size,
                messages=messages,
                input_tokens=counts[0],
                output_tokens=counts[1],
                runs_to_max=False,
                bytes_per_token_start=start,
            )
            plain.observe(used, pair, size, messages, counts, start)


@given(st.integers(0, 10**7), st.integers(1, 10**7))
def test_extensions_are_the_plain_ones(delivered: int, limit: int) -> None:
    """Half more or 32 tokens, whichever is more, within the limit, never less than what was delivered."""
    covered = next_covered_tokens(delivered, limit)
    assert covered == max(delivered, min(limit, delivered + max(32, delivered // 2)))


def test_a_price_knows_its_profile_only() -> None:
    """A profile that comes into force changes the very next price: nothing of an older one is kept."""
    prices = Pricing(OutputLengthEstimator(), BytesPerToken())
    seen = []
    for profile in (SHIPPED[0], SHIPPED[1], SHIPPED[0]):
        price = prices.estimate(
            profile,
            tenant_id="a",
            model_id="m",
            prompt_bytes=4_000,
            messages=0,
            max_tokens=100,
            runs_to_max=True,
            bytes_per_token_start=4.0,
        )
        assert price.cost[:2] == plain_cost(profile, 1_000, 100, 0)
        seen.append(price.cost)
    assert seen[0] == seen[2] != seen[1]


@pytest.mark.parametrize("counts", [(-1, 0, 0), (TOKENS_MAX + 1, 0, 0), (5, -1, 0), (5, 0, 6), (5, TOKENS_MAX + 1, 0)])
def test_the_cost_function_refuses_what_a_price_clamps(counts: tuple[int, int, int]) -> None:
    """Only counts from outside are clamped; the cost function itself takes no nonsense."""
    read, made, cached = counts
    with pytest.raises(ValueError, match="must be 0 to"):
        cost(SHIPPED[0], input_tokens=read, output_tokens=made, cached_input_tokens=cached)
