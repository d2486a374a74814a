from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_units.cost import Evidence
from model_units.latency import fit_latency_curve, healthy_tpot_ms

CURVE = ((2.0, 10.0), (10.0, 20.0), (20.0, 50.0))


@pytest.mark.parametrize(
    ("intensity_ms", "tpot_ms"),
    [(0.0, 10.0), (2.0, 10.0), (6.0, 15.0), (10.0, 20.0), (15.0, 35.0), (20.0, 50.0), (30.0, 80.0)],
)
def test_between_before_and_beyond_the_points(intensity_ms: float, tpot_ms: float) -> None:
    """Proves that the curve is flat before its first point, linear between, and goes on with its last slope."""
    assert healthy_tpot_ms(CURVE, intensity_ms) == pytest.approx(tpot_ms)


def test_one_point_is_flat_and_none_is_refused() -> None:
    """Proves the edges: a single point says the same everywhere, and no point says nothing."""
    assert healthy_tpot_ms([(5.0, 12.0)], 500.0) == 12.0
    with pytest.raises(ValueError, match="at least one point"):
        healthy_tpot_ms([], 1.0)


_points = st.lists(st.tuples(st.floats(0.0, 1e4), st.floats(1e-2, 1e4)), min_size=1, max_size=40)


@given(_points, st.integers(2, 8))
def test_any_measurements_give_a_valid_curve(points: list[tuple[float, float]], knots: int) -> None:
    """Proves that whatever was measured becomes a curve that evidence accepts: short, ascending, never below what was
    seen, and not falling anywhere."""
    curve, spread = fit_latency_curve(points, knots)
    assert Evidence(latency_curve=curve).latency_curve == curve
    assert len(curve) <= knots
    assert math.isfinite(spread)
    assert spread >= 0.0
    assert curve[0][0] == pytest.approx(min(point[0] for point in points), abs=1e-9)
    assert curve[-1][0] == pytest.approx(max(point[0] for point in points), abs=1e-9)
    assert curve[0][1] >= min(point[1] for point in points)
    asked = [curve[0][0] / 2, *(point[0] for point in curve), curve[-1][0] * 2]
    answers = [healthy_tpot_ms(curve, intensity) for intensity in sorted(asked)]
    assert all(late >= early * (1 - 1e-12) for early, late in pairwise(answers))


def test_finds_the_curve_under_noise() -> None:
    """Proves that a curve measured with 3 % noise is found within 3 % everywhere, and that its spread says 3 %."""
    noise = np.random.default_rng(5)
    points = []
    for intensity in np.linspace(0.5, 30.0, 60).tolist():
        true = 8.0 + 0.3 * intensity + 0.02 * intensity**2
        points.append((intensity, true * (1.0 + 0.03 * float(noise.standard_normal()))))
    curve, spread = fit_latency_curve(points)
    assert spread == pytest.approx(0.03, abs=0.01)
    for intensity in (0.5, 5.0, 12.0, 20.0, 28.0):
        true = 8.0 + 0.3 * intensity + 0.02 * intensity**2
        assert healthy_tpot_ms(curve, intensity) == pytest.approx(true, rel=0.03)


def test_order_does_not_matter_and_falling_stretches_become_flat() -> None:
    """Proves that a dip is noise: measurements that fall with load are pooled into a level stretch."""
    points = [(1.0, 10.0), (2.0, 12.0), (3.0, 11.0), (4.0, 11.5), (5.0, 14.0), (6.0, 16.0)]
    curve, spread = fit_latency_curve(points, knots=3)
    assert fit_latency_curve(points[::-1], knots=3) == (curve, spread)
    flat, _ = fit_latency_curve([(1.0, 12.0), (2.0, 11.0), (3.0, 11.0), (4.0, 10.0)], knots=2)
    assert flat[0][1] == flat[1][1] == pytest.approx(11.0, rel=0.02)


@pytest.mark.parametrize(
    ("points", "knots", "named"),
    [
        ([], 8, "at least one measurement"),
        ([(1.0, 0.0)], 8, "no measurement"),
        ([(-1.0, 5.0)], 8, "no measurement"),
        ([(1.0, math.nan)], 8, "no measurement"),
        ([(math.inf, 5.0)], 8, "no measurement"),
        ([(1.0, 5.0)], 1, "knots must be 2 to 12"),
        ([(1.0, 5.0)], 13, "knots must be 2 to 12"),
    ],
)
def test_impossible_measurements_are_refused(points: list[tuple[float, float]], knots: int, named: str) -> None:
    """Proves that nonsense is refused instead of becoming part of a curve that replicas are judged by."""
    with pytest.raises(ValueError, match=named):
        fit_latency_curve(points, knots)
