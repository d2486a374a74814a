"""Which lengths are measured next, and what each of them weighs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_units.calibration.analysis import prior_cost
from model_units.calibration.design import Lengths, cloud, in_time, next_lengths, weights
from model_units.calibration.traffic import CLASSES

lengths = st.builds(Lengths, st.integers(1, 100_000), st.integers(1, 10_000))


@given(lengths, lengths, lengths)
def test_distances_are_distances(first: Lengths, second: Lengths, third: Lengths) -> None:
    """Proves that distances are alike in both directions, nothing to oneself, and never shorter by a detour."""
    assert first.distance(second) == pytest.approx(second.distance(first))
    assert first.distance(first) == 0.0
    assert first.distance(third) <= first.distance(second) + second.distance(third) + 1e-9


def test_distance_is_a_ratio() -> None:
    """Proves that 100 to 200 tokens is as far as 1,000 to 2,000, and that prompt and answer add up."""
    assert Lengths(100, 5).distance(Lengths(200, 5)) == pytest.approx(math.log(2))
    assert Lengths(1_000, 5).distance(Lengths(2_000, 10)) == pytest.approx(math.log(4))


@pytest.mark.parametrize("context_tokens", [2, 512, 16_384, 131_072])
def test_every_class_counts_alike(context_tokens: int) -> None:
    """Proves that the masses are shares of cost which add up to one per class, in any context."""
    masses = cloud(context_tokens, prior_cost)
    assert math.fsum(masses.values()) == pytest.approx(len(CLASSES))
    assert all(mass > 0 for mass in masses.values())
    assert all(pair.input_tokens + pair.output_tokens <= context_tokens for pair in masses)


def test_prompts_that_take_too_long_alone_are_no_part_of_the_cloud() -> None:
    """Proves that pairs whose prompt alone takes longer than the objective for the first token are left out, that what
    stays counts as much as before, and that an objective nothing keeps leaves out nothing."""
    masses = cloud(131_072, prior_cost, 500.0)
    assert all(1.2 * prior_cost(pair.input_tokens, 1) <= 0.5 for pair in masses)
    assert math.fsum(masses.values()) == pytest.approx(len(CLASSES))
    assert len(masses) < len(cloud(131_072, prior_cost))
    assert cloud(131_072, prior_cost, 1e-6) == cloud(131_072, prior_cost)
    assert in_time([(10, 5), (100_000, 5)], prior_cost, 500.0) == ((10, 5),)
    assert in_time([(10, 5), (100_000, 5)], prior_cost, 0.0) == ((10, 5), (100_000, 5))


def nearest_first(masses: dict[Lengths, float], measured: list[Lengths]) -> Lengths | None:
    return next_lengths(masses, measured, uncertainty=lambda _: 1.0, replica_s=lambda _: 1.0)


def test_mass_that_nothing_near_was_measured_of_goes_first() -> None:
    """Proves that the next lengths are where the most mass is far from any measurement."""
    heavy, near_heavy, light = Lengths(100, 100), Lengths(110, 100), Lengths(10_000, 10)
    masses = {heavy: 5.0, near_heavy: 1.0, light: 1.0}
    assert nearest_first(masses, []) == heavy
    assert nearest_first(masses, [heavy]) == light
    assert nearest_first(masses, [heavy, light]) == near_heavy
    assert nearest_first(masses, [heavy, light, near_heavy]) is None


def test_doubt_and_cheapness_go_first() -> None:
    """Proves that of equal masses the less certain is measured first, then the cheaper, and never an impossible one."""
    first, second = Lengths(100, 100), Lengths(10_000, 1)
    masses = {first: 1.0, second: 1.0}
    doubtful = next_lengths(masses, [], uncertainty=lambda at: 1.0 + (at == second), replica_s=lambda _: 1.0)
    assert doubtful == second
    cheap = next_lengths(masses, [], uncertainty=lambda _: 1.0, replica_s=lambda at: 4.0 if at == first else 1.0)
    assert cheap == second
    possible = next_lengths(
        masses, [], uncertainty=lambda at: 1.0 + (at == second), replica_s=lambda at: math.inf if at == second else 1.0
    )
    assert possible == first
    assert next_lengths(masses, [], uncertainty=lambda _: 1.0, replica_s=lambda _: math.inf) is None


def test_certainty_everywhere_still_chooses() -> None:
    """Proves that a fit without any error left does not end the choice, nor is it a division by nothing."""
    masses = {Lengths(100, 100): 1.0, Lengths(200, 5): 2.0}
    assert next_lengths(masses, [], uncertainty=lambda _: 0.0, replica_s=lambda _: 1.0) in masses


@given(st.dictionaries(lengths, st.floats(1e-6, 10.0), min_size=1, max_size=20), st.data())
def test_weights_are_one_on_average(masses: dict[Lengths, float], data: st.DataObject) -> None:
    """Proves that a point weighs what is nearer to it than to any other, on average 1, and never nothing."""
    points = data.draw(st.lists(lengths, min_size=1, max_size=8, unique=True))
    found = weights(masses, points)
    assert len(found) == len(points)
    assert all(weight >= 0.01 for weight in found)
    assert len(points) <= math.fsum(found) + 1e-9 <= len(points) * 1.01 + 1e-6


def test_weights_of_a_worked_example() -> None:
    """Proves the weights on two points of which one stands for three quarters of the mass."""
    masses = {Lengths(100, 100): 1.0, Lengths(90, 100): 2.0, Lengths(9_000, 5): 1.0}
    assert weights(masses, [Lengths(95, 100), Lengths(8_000, 5)]) == pytest.approx([1.5, 0.5])
