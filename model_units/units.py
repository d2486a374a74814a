"""The units every price, quota and load is counted in, and the conversions between them.

A model unit (MU) is a share of one replica's time: a replica is *defined* to serve 100 MU per minute at its latency
objective, so work that takes `c` replica-seconds at full, objective-respecting load costs `c * 100 / 60` MU. Amounts
are whole milli-MU (mMU): integers add without drift, and sums over millions of requests stay exact.
"""

from __future__ import annotations

import math
from typing import Final, NewType

MilliModelUnits = NewType("MilliModelUnits", int)
"""An amount of work, thousandths of a model unit."""

MilliModelUnitsPerMinute = NewType("MilliModelUnitsPerMinute", int)
"""A rate of work, thousandths of a model unit per minute."""

Tokens = NewType("Tokens", int)
"""A number of tokens of one model's vocabulary."""

MILLI_PER_MODEL_UNIT: Final = 1_000

REPLICA_CAPACITY: Final = MilliModelUnitsPerMinute(100_000)
"""What one replica serves at its latency objective: 100 MU per minute. Source: the definition of the unit."""

_SECONDS_PER_MINUTE: Final = 60.0

MILLI_PER_REPLICA_SECOND: Final = REPLICA_CAPACITY / _SECONDS_PER_MINUTE
"""What one second of a replica is worth, mMU, before rounding."""

ROUNDING_NOISE: Final = 1e-9
"""Taken off before rounding up, mMU: a product of floats that should be a whole number may end a few units in the last
place above it, and rounding that up would charge a unit for noise. Far below one mMU, far above the noise."""


def from_replica_seconds(replica_s: float) -> MilliModelUnits:
    """Prices replica time, rounding up to whole mMU so that no work is free.

    Args:
        replica_s: Replica-seconds, 0 or more and finite.

    Returns:
        The price; 0 only for 0 seconds (or less than 1e-12 of them).
    """
    return MilliModelUnits(math.ceil(replica_s * MILLI_PER_REPLICA_SECOND - ROUNDING_NOISE))


def to_replica_seconds(amount: MilliModelUnits) -> float:
    """Replica-seconds that `amount` stands for, at full load of one replica that is not derated."""
    return amount / MILLI_PER_REPLICA_SECOND


def from_model_units(model_units: float) -> MilliModelUnits:
    """Whole mMU of an amount a person wrote in MU, rounded to the nearest.

    Raises:
        ValueError: Not a finite number.
    """
    if not math.isfinite(model_units):
        raise ValueError(f"model units must be a finite number, not {model_units}")
    return MilliModelUnits(round(model_units * MILLI_PER_MODEL_UNIT))


def to_model_units(amount: MilliModelUnits) -> float:
    """An amount in MU, for people."""
    return amount / MILLI_PER_MODEL_UNIT


def served_in(rate: MilliModelUnitsPerMinute, seconds: float) -> float:
    """The mMU that flow at `rate` in `seconds`, as a float: callers decide how to round.

    Args:
        rate: mMU per minute.
        seconds: A duration, 0 or more.
    """
    return rate * seconds / _SECONDS_PER_MINUTE


def seconds_to_serve(amount: MilliModelUnits, rate: MilliModelUnitsPerMinute) -> float:
    """How long `rate` takes to serve `amount`; infinite when the rate is 0 and the amount is not.

    Args:
        amount: mMU, 0 or more.
        rate: mMU per minute, 0 or more.
    """
    if amount <= 0:
        return 0.0
    return math.inf if rate <= 0 else amount * _SECONDS_PER_MINUTE / rate
