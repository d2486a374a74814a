"""How many replicas a slice gets.

    size = clamp(ceil(load / (FILL x mean capacity)), SIZE_MIN, all)

where the load is what is measured or what was reserved, whichever is more. It grows at once, beyond what was reserved
only into what the others leave (`limit`): a surge past the fleet's capacity must not take all of it. It shrinks when
fewer would have done for SHRINK_AFTER_S without a break, also with a load SLACK times as high, and then half of the
way.

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

SHARE: Final = 0.2
"""A tenant may always grow to this part of the fleet: what a median tenant may touch at most."""

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


def limit(reserved: float, others: float, mean_capacity: float, replicas: int) -> int:
    """Most replicas that a tenant's load may claim.

    Args:
        reserved: What it has reserved, mMU per minute, 0 or more.
        others: Load of all other tenants, mMU per minute, 0 or more.
        mean_capacity: As in `size`.
        replicas: As in `size`.
    """
    left = math.floor(replicas - others / (FILL * mean_capacity) + 1e-9)
    return min(replicas, max(size(reserved, mean_capacity, replicas), math.ceil(SHARE * replicas), left))


def shrunk(now: int, load: float, mean_capacity: float, replicas: int) -> int:
    """The size a slice of `now` replicas may shrink to; `now` where it may not. Arguments as in `size`."""
    enough = size(load * SLACK, mean_capacity, replicas)
    return now if enough >= now else now - -(-(now - enough) // 2)
