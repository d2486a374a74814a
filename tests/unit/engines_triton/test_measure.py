"""The fit of the cost function to measured points."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.triton.measure import Point, fit, weighted_error

LENGTHS = [(16, 16), (16, 512), (256, 128), (1024, 16), (1024, 512), (3072, 256)]


def points_of(coefficients: tuple[float, ...]) -> list[Point]:
    points = [Point(i, o, 1.0) for i, o in LENGTHS]
    return [
        Point(p.input_tokens, p.output_tokens, sum(x * c for x, c in zip(p.features, coefficients, strict=True)))
        for p in points
    ]


@settings(max_examples=50)
@given(st.tuples(*[st.floats(low, high) for low, high in ((1e-6, 1e-3), (1e-6, 1e-2), (0, 1e-7), (0, 1e-6))]))
def test_recovers_the_coefficients_points_were_made_of(coefficients: tuple[float, ...]) -> None:
    """Proves that exact points give an exact fit."""
    points = points_of(coefficients)
    found = fit(points)
    assert min(found) >= 0
    assert weighted_error(points, found) < 1e-6


def test_a_coefficient_that_wants_to_be_negative_becomes_zero() -> None:
    """Shows the constraint: a price never falls with a longer prompt, whatever the noise says."""
    points = points_of((1e-4, 1e-3, -1e-8, 1e-7))
    a, b, d, _ = fit(points)
    assert d == 0
    assert (a, b) == pytest.approx((1e-4, 1e-3), rel=0.5)
