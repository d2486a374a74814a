"""Least squares with coefficients that must not be negative, exactly."""

from __future__ import annotations

from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COLUMNS_MAX: Final = 12
"""Most coefficients; every subset of them is tried, so time doubles with each one."""


def non_negative(matrix: Floats, target: Floats) -> Floats:
    """The `x` of least |matrix @ x - target| with no entry below 0.

    The optimum is the plain least-squares solution on the columns that end above 0. Which those are is found by trying
    every subset: exact, without iterations that could stall, and quick for so few columns.

    Args:
        matrix: One row per equation, 1 to 12 columns, each with an entry that is not 0.
        target: One number per row.

    Returns:
        One number per column.

    Raises:
        ValueError: Too many columns.
    """
    columns = matrix.shape[1]
    if columns > COLUMNS_MAX:
        raise ValueError(f"non_negative takes at most {COLUMNS_MAX} columns, not {columns}")
    scale = np.linalg.norm(matrix, axis=0)  # columns of units as far apart as tokens and their squares
    scaled = matrix / scale
    best: Floats = np.zeros(columns)
    best_residual = float(np.dot(target, target))
    for size in range(columns, 0, -1):
        for chosen in map(list, combinations(range(columns), size)):
            part = np.linalg.lstsq(scaled[:, chosen], target, rcond=None)[0]
            if part.min() < 0.0:
                continue
            residual = float(np.sum((scaled[:, chosen] @ part - target) ** 2))
            if residual < best_residual:
                best, best_residual = np.zeros(columns), residual
                best[chosen] = part / scale[chosen]
            if size == columns:
                return best  # nothing is bound, so no subset is better
    return best
