"""From measured capacities to the coefficients of the cost function, and how well they are known.

Rows are divided by what was measured, so that the relative error counts: a request that takes a second must not drown
a hundred that take ten milliseconds. Coefficients cannot be negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from model_units.cost import COEFFICIENTS, CostForm
from model_units.least_squares import Floats, non_negative

LINEAR_FLOOR_S: Final = 1e-9
"""Least `a` and `b`, replica-seconds per token. Where the measurements leave nothing for one of them (noise, or lengths
that hardly tell it from the others) it becomes this instead of 0: a profile may not make tokens free, since free work
never meets a quota. Ten thousand times below the fastest engine measured, so no prediction notices."""

# Columns, scaled to length 1, that are closer to each other than this cannot be told apart by any measurement.
_SINGULAR_MIN: Final = 1e-9

# 97.5 % quantiles of Student's t for 1 to 9 degrees of freedom. Source: Abramowitz & Stegun, table 26.10.
_STUDENT_T: Final = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
_NORMAL: Final = 1.959964  # the same quantile of the normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Work and the replica time it took: one request, or the sums over several.

    Attributes:
        input_tokens: Sum of I, 0 or more.
        input_squares: Sum of I^2.
        output_tokens: Sum of O.
        context_tokens: Sum of O * (I + O / 2), the last term of the form ATTENTION.
        product_tokens: Sum of O * I, the last term of the form PRODUCT.
        replica_s: Replica-seconds measured, above 0.
        weight: How much the row counts, above 0; 2 counts like the same row twice.
    """

    input_tokens: float
    input_squares: float
    output_tokens: float
    context_tokens: float
    product_tokens: float
    replica_s: float
    weight: float = 1.0

    @classmethod
    def of_request(cls, input_tokens: float, output_tokens: float, replica_s: float, weight: float = 1.0) -> Row:
        """The row of one request.

        Args:
            input_tokens: Prompt, tokens.
            output_tokens: Answer, tokens.
            replica_s: Replica-seconds it takes at full load: 1 / the highest rate that keeps the objective.
            weight: As in the class.
        """
        return cls(
            input_tokens=input_tokens,
            input_squares=input_tokens * input_tokens,
            output_tokens=output_tokens,
            context_tokens=output_tokens * (input_tokens + output_tokens / 2),
            product_tokens=output_tokens * input_tokens,
            replica_s=replica_s,
            weight=weight,
        )


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted coefficients.

    Attributes:
        form: Which terms there are.
        coefficients: a, b, d, g; d is 0 in the form PRODUCT.
        covariance: Of their errors, 4 x 4 in the same order, with every coefficient of the form free: one that ended at
            0 is no better known than the others. All 0 without degrees of freedom.
        degrees_of_freedom: Rows beyond the number of coefficients; with 0 nothing is known about the error.
    """

    form: CostForm
    coefficients: tuple[float, float, float, float]
    covariance: tuple[tuple[float, ...], ...]
    degrees_of_freedom: int

    def predict(self, row: Row) -> float:
        """Replica-seconds of the row's work; what was measured is not looked at."""
        return math.fsum(value * term for value, term in zip(self.coefficients, _terms(row, self.form), strict=True))

    def relative_uncertainty(self, row: Row) -> float:
        """Standard error of the prediction over the prediction, from the coefficients' errors alone.

        Args:
            row: Some work, with at least one token.

        Returns:
            0 or more; infinite without degrees of freedom.
        """
        if self.degrees_of_freedom == 0:
            return math.inf
        terms = np.array(_terms(row, self.form))
        variance = float(terms @ np.array(self.covariance) @ terms)
        return math.sqrt(max(0.0, variance)) / self.predict(row)

    def interval(self, name: str) -> tuple[float, float]:
        """95 % confidence interval of a coefficient, with Student's t, clipped at 0.

        Args:
            name: "a", "b", "d" or "g".

        Returns:
            (low, high); (0, infinity) without degrees of freedom.

        Raises:
            ValueError: No such coefficient.
        """
        if name not in COEFFICIENTS:
            raise ValueError(f"there is no coefficient {name!r}, only {', '.join(COEFFICIENTS)}")
        index = COEFFICIENTS.index(name)
        if self.degrees_of_freedom == 0:
            return (0.0, math.inf)
        value = self.coefficients[index]
        reach = student_t(self.degrees_of_freedom) * math.sqrt(self.covariance[index][index])
        return (max(0.0, value - reach), value + reach)


def fit(rows: Sequence[Row], form: CostForm = CostForm.ATTENTION) -> Fit:
    """Finds the coefficients of least squared relative error.

    Args:
        rows: Measurements of at least as many different lengths as there are coefficients (4, or 3 for PRODUCT).
        form: Which terms there are.

    Returns:
        The fit; no coefficient is negative, a and b are above 0.

    Raises:
        ValueError: Too few rows, a row with an impossible number, or lengths that do not tell the coefficients apart;
            the message says which.
    """
    free = _free(form)
    if len(rows) < len(free):
        raise ValueError(f"{len(free)} coefficients need at least {len(free)} rows, not {len(rows)}")
    for number, row in enumerate(rows):
        _check(number, row)
    matrix, target = _relative(rows, form)
    inverse = _inverse(matrix)
    found = non_negative(matrix, target)
    freedom = len(rows) - len(free)
    variance = float(np.sum((matrix @ found - target) ** 2)) / freedom if freedom else 0.0
    coefficients, covariance = np.zeros(len(COEFFICIENTS)), np.zeros((len(COEFFICIENTS), len(COEFFICIENTS)))
    coefficients[free] = found
    covariance[np.ix_(free, free)] = variance * inverse
    a, b, d, g = coefficients.tolist()
    return Fit(
        form=form,
        coefficients=(max(a, LINEAR_FLOOR_S), max(b, LINEAR_FLOOR_S), d, g),
        covariance=tuple(tuple(line) for line in covariance.tolist()),
        degrees_of_freedom=freedom,
    )


def leave_one_out(rows: Sequence[Row], form: CostForm = CostForm.ATTENTION) -> tuple[float, ...]:
    """How far each row is from what the others say about it.

    Args:
        rows: At least one more than there are coefficients.
        form: Which terms there are.

    Returns:
        Predicted over measured minus 1, row by row: 0.02 is 2 % too dear.

    Raises:
        ValueError: As in `fit`, for the rows without one of them.
    """
    errors = []
    for index, row in enumerate(rows):
        others = [*rows[:index], *rows[index + 1 :]]
        errors.append(fit(others, form).predict(row) / row.replica_s - 1.0)
    return tuple(errors)


def weighted_error(rows: Sequence[Row], predict: Callable[[Row], float]) -> float:
    """Mean relative error weighted by cost: sum of |predicted - measured| over the sum of what was measured.

    Args:
        rows: Measurements, at least one.
        predict: Gives the replica-seconds of a row's work.
    """
    return math.fsum(abs(predict(row) - row.replica_s) for row in rows) / math.fsum(row.replica_s for row in rows)


def student_t(degrees_of_freedom: int) -> float:
    """97.5 % quantile of Student's t: a two-sided 95 % interval reaches this many standard errors each way.

    Args:
        degrees_of_freedom: 1 or more.
    """
    if degrees_of_freedom <= len(_STUDENT_T):
        return _STUDENT_T[degrees_of_freedom - 1]
    # Abramowitz & Stegun 26.7.5, good to 5 decimals from 10 degrees on.
    n, z = degrees_of_freedom, _NORMAL
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def _free(form: CostForm) -> list[int]:
    """Places of the coefficients that a form has."""
    return [0, 1, 3] if form is CostForm.PRODUCT else [0, 1, 2, 3]


def _terms(row: Row, form: CostForm) -> tuple[float, float, float, float]:
    """What a, b, d and g are multiplied with."""
    if form is CostForm.PRODUCT:
        return (row.input_tokens, row.output_tokens, 0.0, row.product_tokens)
    return (row.input_tokens, row.output_tokens, row.input_squares, row.context_tokens)


def _check(number: int, row: Row) -> None:
    for field in fields(row):
        value = getattr(row, field.name)
        above_0 = field.name in ("replica_s", "weight")
        if not math.isfinite(value) or value < 0.0 or (above_0 and value == 0.0):
            least = "above 0" if above_0 else "0 or more"
            raise ValueError(f"rows[{number}].{field.name} must be a finite number, {least}, not {value}")


def _relative(rows: Sequence[Row], form: CostForm) -> tuple[Floats, Floats]:
    """The equations `matrix @ coefficients = target`, each divided by what was measured."""
    weights = np.sqrt(np.array([row.weight for row in rows]))
    terms = np.array([_terms(row, form) for row in rows])[:, _free(form)]
    measured = np.array([row.replica_s for row in rows])
    return terms * (weights / measured)[:, None], weights


def _inverse(matrix: Floats) -> Floats:
    """(matrix^T matrix)^-1, or ValueError where the columns cannot be told apart."""
    scale = np.linalg.norm(matrix, axis=0)
    if not np.all(scale > 0.0):
        raise ValueError("the rows need prompts and answers of more than no tokens")
    _, singular, rotation = np.linalg.svd(matrix / scale, full_matrices=False)
    if singular[-1] < _SINGULAR_MIN * singular[0]:
        raise ValueError("the rows do not tell the coefficients apart; measure more different lengths")
    half = rotation.T / singular
    inverse: Floats = (half @ half.T) / np.outer(scale, scale)
    return inverse
