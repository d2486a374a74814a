"""Columns of whole numbers: 64-bit while every product that fairness needs fits, Python integers beyond, never floats.

The same expressions work on both, so huge values are slower and exact, not wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Column: TypeAlias = npt.NDArray[Any]

# Values below this stay inside 64 bits when up to a million are added or when they are shifted by 20 bits: far above
# any rate that can be stored (10^12).
SMALL_MAX = 1 << 43


def column(values: Sequence[int]) -> Column:
    """Whole numbers as a column.

    Args:
        values: Of any size, 0 or more.
    """
    small = not values or max(values) < SMALL_MAX
    return np.array(values, dtype=np.int64 if small else object)
