from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_units.cost import COEFFICIENTS, CostForm
from model_units.fit import LINEAR_FLOOR_S, Fit, Row, fit, leave_one_out, student_t, weighted_error
from model_units.least_squares import non_negative

H100 = (1.934e-5, 2.764e-5, 4.017e-10, 4.532e-8)
LENGTHS = [
    (inputs, outputs)
    for inputs, outputs in [
        (128, 1024), (512, 512), (1024, 64), (1024, 256), (2048, 1024), (4096, 32), (4096, 512), (8192, 128),
        (16384, 16), (16384, 256), (256, 64), (32768, 64),
    ]
]  # fmt: skip


def row_of(lengths: tuple[int, int], coefficients: tuple[float, ...], form: CostForm, factor: float = 1.0) -> Row:
    a, b, d, g = coefficients
    inputs, outputs = lengths
    context = outputs * inputs if form is CostForm.PRODUCT else outputs * (inputs + outputs / 2)
    return Row.of_request(inputs, outputs, (a * inputs + b * outputs + d * inputs**2 + g * context) * factor)


def noisy_rows(seed: int, noise: float, coefficients: tuple[float, ...] = H100) -> list[Row]:
    factors = 1.0 + noise * np.random.default_rng(seed).standard_normal(len(LENGTHS))
    return [
        row_of(lengths, coefficients, CostForm.ATTENTION, factor)
        for lengths, factor in zip(LENGTHS, factors.tolist(), strict=True)
    ]


_linear = st.floats(1e-6, 1e-2)


@given(_linear, _linear, st.floats(1e-11, 1e-6), st.floats(1e-10, 1e-6), st.sampled_from(CostForm))
def test_recovers_exact_coefficients(a: float, b: float, d: float, g: float, form: CostForm) -> None:
    """Proves that rows which obey the cost function give its very coefficients, in both forms."""
    truth = (a, b, 0.0 if form is CostForm.PRODUCT else d, g)
    rows = [row_of(lengths, truth, form) for lengths in LENGTHS]
    found = fit(rows, form)
    for row in rows:
        assert found.predict(row) == pytest.approx(row.replica_s, rel=1e-9)
    # A term that is a billionth of every row is lost in the floats; others must be found.
    for index, (got, true) in enumerate(zip(found.coefficients, truth, strict=True)):
        largest = max(terms(row, form)[index] * true / row.replica_s for row in rows)
        assert got == pytest.approx(true, rel=1e-8 / max(largest, 1e-8), abs=LINEAR_FLOOR_S)


def terms(row: Row, form: CostForm) -> tuple[float, float, float, float]:
    if form is CostForm.PRODUCT:
        return (row.input_tokens, row.output_tokens, 0.0, row.product_tokens)
    return (row.input_tokens, row.output_tokens, row.input_squares, row.context_tokens)


_measured = st.lists(
    st.tuples(st.integers(1, 10_000), st.integers(1, 10_000), st.floats(1e-4, 1e3)),
    min_size=6,
    max_size=12,
    unique=True,
)


@given(_measured, st.sampled_from(CostForm))
def test_never_negative(measured: list[tuple[int, int, float]], form: CostForm) -> None:
    """Proves on arbitrary nonsense that no coefficient is negative, and that neither prompts nor answers are free."""
    rows = [Row.of_request(*values) for values in measured]
    try:
        found = fit(rows, form)
    except ValueError:
        return  # lengths that tell nothing apart
    assert min(found.coefficients) >= 0.0
    assert min(found.coefficients[:2]) >= LINEAR_FLOOR_S


@given(
    st.lists(st.lists(st.integers(-9, 9), min_size=4, max_size=4), min_size=4, max_size=10),
    st.lists(st.integers(-9, 9), min_size=10, max_size=10),
)
def test_no_non_negative_solution_is_better(lines: list[list[int]], targets: list[int]) -> None:
    """Proves the optimum by its own condition: the error has no slope where a coefficient is above 0, and does not fall
    where one is 0."""
    matrix, target = np.array(lines, dtype=float), np.array(targets[: len(lines)], dtype=float)
    if not np.abs(matrix).sum(axis=0).all():
        return
    found = non_negative(matrix, target)
    slope = matrix.T @ (matrix @ found - target)
    assert found.min() >= 0.0
    assert slope.min() >= -1e-6
    assert np.abs(slope[found > 1e-9]).max(initial=0.0) <= 1e-6


def test_intervals_cover_the_truth() -> None:
    """Proves that over 400 noisy experiments each coefficient's 95 % interval holds the truth in 92 to 98 %."""
    held = dict.fromkeys(COEFFICIENTS, 0)
    for seed in range(400):
        found = fit(noisy_rows(seed, 0.02))
        for name, true in zip(COEFFICIENTS, H100, strict=True):
            low, high = found.interval(name)
            held[name] += low <= true <= high
    for name, count in held.items():
        assert 0.92 <= count / 400 <= 0.98, (name, count)


def test_uncertainty_of_a_prediction_is_its_scatter() -> None:
    """Proves that the stated uncertainty is how much predictions really scatter when the measurement is repeated."""
    asked = Row.of_request(6_000, 300, 1.0)
    fits = [fit(noisy_rows(seed, 0.02)) for seed in range(400)]
    predictions = np.array([found.predict(asked) for found in fits])
    stated = float(np.mean([found.relative_uncertainty(asked) for found in fits]))
    assert stated == pytest.approx(float(predictions.std() / predictions.mean()), rel=0.15)


def test_a_coefficient_at_zero_is_not_claimed_to_be_certain() -> None:
    """Proves that where the attention term vanishes in noise, its interval still reaches above 0."""
    truth = (2e-5, 3e-5, 0.0, 4e-8)
    fits = [fit(noisy_rows(seed, 0.02, truth)) for seed in range(60)]
    bound = [found for found in fits if found.coefficients[2] == 0.0]
    assert len(bound) >= 10  # half of them, if noise is fair
    for found in bound:
        low, high = found.interval("d")
        assert low == 0.0
        assert 0.0 < high < 1e-8


@given(st.floats(1e-3, 1e3), st.integers(0, 50))
def test_unit_of_time_does_not_matter(factor: float, seed: int) -> None:
    """Proves scale invariance: a machine so many times slower has coefficients so many times larger, same quality."""
    rows = noisy_rows(seed, 0.03)
    slower = [dataclasses.replace(row, replica_s=row.replica_s * factor) for row in rows]
    one, other = fit(rows), fit(slower)
    assert other.coefficients == pytest.approx([value * factor for value in one.coefficients], rel=1e-6)
    assert other.relative_uncertainty(rows[0]) == pytest.approx(one.relative_uncertainty(rows[0]), rel=1e-6)
    assert leave_one_out(slower) == pytest.approx(leave_one_out(rows), abs=1e-9)


def test_weight_counts_like_repetition() -> None:
    """Proves that a row of weight 3 moves the coefficients as three equal rows do."""
    rows = noisy_rows(7, 0.05)
    heavy = fit([dataclasses.replace(rows[0], weight=3.0), *rows[1:]])
    repeated = fit([rows[0], rows[0], *rows])
    assert heavy.coefficients == pytest.approx(repeated.coefficients, rel=1e-9)


def test_leave_one_out_shows_the_row_that_lies() -> None:
    """Proves that a row measured 30 % too slow stands out with about its error, and honest ones stay near 0."""
    rows = noisy_rows(3, 0.001)
    rows[4] = dataclasses.replace(rows[4], replica_s=rows[4].replica_s * 1.3)
    errors = leave_one_out(rows)
    assert errors[4] == pytest.approx(1 / 1.3 - 1, abs=0.05)
    assert max(range(len(rows)), key=lambda index: abs(errors[index])) == 4
    assert max(map(abs, leave_one_out(noisy_rows(3, 0.0)))) < 1e-9


def test_weighted_error_counts_by_cost() -> None:
    """Proves that an error on a dear row weighs as much as the row does."""
    rows = [Row.of_request(1, 1, 1.0), Row.of_request(1, 2, 9.0)]
    assert weighted_error(rows, lambda row: 1.0 if row.output_tokens == 1 else 8.1) == pytest.approx(0.09)
    assert weighted_error(rows, lambda row: row.replica_s) == 0.0


def test_tokens_are_never_free() -> None:
    """Proves that rows which leave nothing for a or b still give a profile both, too little to show anywhere."""
    rows = [Row.of_request(i, o, 4e-8 * o * (i + o / 2) + 1e-9 * i * i) for i, o in LENGTHS]
    found = fit(rows)
    assert found.coefficients[:2] == pytest.approx((LINEAR_FLOOR_S, LINEAR_FLOOR_S), rel=1e-3)
    for row in rows:
        assert found.predict(row) == pytest.approx(row.replica_s, rel=1e-2)


def test_as_many_rows_as_coefficients_say_nothing_about_their_error() -> None:
    """Proves that a fit which went through every row admits that it knows nothing about its quality."""
    found = fit([row_of(lengths, H100, CostForm.ATTENTION) for lengths in LENGTHS[:4]])
    assert found.degrees_of_freedom == 0
    assert found.interval("a") == (0.0, math.inf)
    assert found.relative_uncertainty(Row.of_request(10, 10, 1.0)) == math.inf


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([], "4 coefficients need at least 4 rows, not 0"),
        ([Row.of_request(i, o, 1.0) for i, o in LENGTHS[:3]], "need at least 4 rows, not 3"),
        ([Row.of_request(100, 100, 1.0)] * 8, "do not tell the coefficients apart"),
        ([Row.of_request(i, 0, 1.0) for i, _ in LENGTHS], "answers of more than no tokens"),
    ],
)
def test_rows_that_say_too_little_are_refused(rows: list[Row], named: str) -> None:
    """Proves that too few or too similar rows are refused instead of fitted to something."""
    with pytest.raises(ValueError, match=named):
        fit(rows)


@pytest.mark.parametrize("name", ["input_tokens", "input_squares", "output_tokens", "context_tokens", "product_tokens"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_work_is_refused_by_name(name: str, value: float) -> None:
    """Proves that a row with a negative, undefined or infinite sum is refused and named."""
    rows = noisy_rows(1, 0.0)
    rows[2] = dataclasses.replace(rows[2], **{name: value})
    with pytest.raises(ValueError, match=rf"rows\[2\]\.{name} must be"):
        fit(rows)


@pytest.mark.parametrize("name", ["replica_s", "weight"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_measurements_are_refused_by_name(name: str, value: float) -> None:
    """Proves that a measurement of no, negative or undefined time is refused and named."""
    rows = noisy_rows(1, 0.0)
    rows[5] = dataclasses.replace(rows[5], **{name: value})
    with pytest.raises(ValueError, match=rf"rows\[5\]\.{name} must be .*above 0"):
        fit(rows)


def test_unknown_coefficients_have_no_interval() -> None:
    """Proves that a wrong name is an error, not somebody else's interval."""
    found = Fit(CostForm.ATTENTION, H100, ((0.0,) * 4,) * 4, 5)
    with pytest.raises(ValueError, match="'c'"):
        found.interval("c")


@pytest.mark.parametrize(("degrees", "quantile"), [(1, 12.706), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)])
def test_quantiles_of_student_t(degrees: int, quantile: float) -> None:
    """Proves the quantiles against the printed table, at the seam between table and formula too."""
    assert student_t(degrees) == pytest.approx(quantile, abs=6e-4)


def test_more_columns_than_can_be_tried_are_refused() -> None:
    """Proves that the exhaustive search refuses what would take it for ever."""
    with pytest.raises(ValueError, match="at most 12 columns"):
        non_negative(np.ones((20, 13)), np.ones(20))
