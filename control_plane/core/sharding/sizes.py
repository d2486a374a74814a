"""How many replicas a slice gets.

    size = clamp(ceil(load / (FILL x mean capacity)), SIZE_MIN, all)

where the load is what is measured or what was reserved, whichever is more. It grows at once. It shrinks when fewer
would have done for SHRINK_AFTER_S without a break, also with a load SLACK times as high, and then half of the way.

Example: replicas of 100 MU/min and a load of 300 MU/min: ceil(300 / 50) = 6 replicas.
"""

from __future__ import annotations

import math
from typing import Final

FILL: Final = 0.5
"""A slice at its load fills this part of its subset: one replica of three may be lost, and bursts have room. Source:
measured in simulation, 16 replicas and 64 tenants."""

SIZE_MIN: Final = 3
"""With three replicas the loss of one leaves a choice."""

SHRINK_AFTER_S: Final = 300.0
"""Caches are warm in all of a subset: giving one up for a lull of minutes costs more than keeping it."""

SLACK: Final = 1.25
"""A size is only given up if it would not be wanted back by 25 % more load: twice the usual noise of a minute."""


def size(load: float, mean_capacity: float, replicas: int) -> int:
    """Replicas that a slice needs.

    Args:
        load: mMU per minute, 0 or more.
        mean_capacity: Of the replicas that take more, mMU per minute, above 0.
        replicas: How many those are, 1 or more.
    """
    return min(replicas, max(SIZE_MIN, math.ceil(load / (FILL * mean_capacity) - 1e-9)))


def shrunk(now: int, load: float, mean_capacity: float, replicas: int) -> int:
    """The size a slice of `now` replicas may shrink to; `now` where it may not. Arguments as in `size`."""
    enough = size(load * SLACK, mean_capacity, replicas)
    return now if enough >= now else now - -(-(now - enough) // 2)
