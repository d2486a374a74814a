"""The output-length estimator against one that keeps every length it was ever told."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from model_units.length import OutputLengthEstimator

_tenants = st.sampled_from(["a", "b", "c"])
_models = st.sampled_from(["m", "n"])
_MAX = 10_000_000


def recent(history: list[tuple[float, int]], prior: tuple[float, float, float]) -> tuple[float, float, float]:
    """Means of (weight, weight * length, length^2) that begin at the prior, which counts as four observations."""
    means = prior
    for number, (weight, length) in enumerate(history, start=5):
        step = max(0.02, 1 / number)
        new = (weight, weight * length, float(length * length))
        means = (
            means[0] * (1 - step) + new[0] * step,
            means[1] * (1 - step) + new[1] * step,
            means[2] * (1 - step) + new[2] * step,
        )
    return means


class LengthMachine(RuleBasedStateMachine):
    @initialize(prior=st.integers(1, 5_000))
    def begin(self, prior: int) -> None:
        self.prior = prior
        self.estimator = OutputLengthEstimator(prior_tokens=prior)
        self.models: dict[str, list[tuple[float, int]]] = {}
        self.pairs: dict[tuple[str, str], list[tuple[float, int]]] = {}

    @rule(
        tenant=_tenants,
        model=_models,
        length=st.integers(0, 30_000),
        linear=st.floats(1.0, 300.0),
        times=st.integers(1, 60),
    )
    def observe(self, tenant: str, model: str, length: int, linear: float, times: int) -> None:
        for _ in range(times):
            self.estimator.observe(tenant, model, length, linear=linear)
            self.models.setdefault(model, []).append((linear, length))
            self.pairs.setdefault((tenant, model), []).append((linear, length))

    @rule(tenant=_tenants, model=_models, linear=st.floats(1.0, 300.0), square=st.just(0.0) | st.floats(1e-6, 1.0))
    def estimate(self, tenant: str, model: str, linear: float, square: float) -> None:
        """A tenant's means begin at its model's present ones, a model's at the prior."""
        history = self.models.get(model, [])
        weight = history[0][0] if history else 1.0
        prior = recent(history, (weight, weight * self.prior, 2.0 * self.prior**2))
        weights, lengths, squares = recent(self.pairs.get((tenant, model), []), prior)
        price = linear * lengths / weights + square * squares
        wanted = (
            price / linear if square == 0.0 else (math.sqrt(linear**2 + 4 * square * price) - linear) / (2 * square)
        )
        got = self.estimator.estimate(tenant, model, max_tokens=_MAX, shape=(linear, square))
        assert got == pytest.approx(max(1.0, wanted), rel=1e-6, abs=0.51)


LengthMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestLengthMachine = LengthMachine.TestCase
