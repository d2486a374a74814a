"""Which changes of demand are told at once."""

from __future__ import annotations

from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.notable import differs_notably
from ratelimiter.core.values import Want, Workload

ONE, TWO = Workload("m", "one"), Workload("m", "two")


def want(rate: int) -> Want:
    return Want(Rate(rate), Rate(0), MilliModelUnits(0))


def test_more_than_an_eighth_of_the_larger_value_is_notable() -> None:
    """Up and down alike; one workload of many is enough, and what came or went counts from nothing."""
    assert not differs_notably({ONE: want(800)}, {ONE: want(700)})
    assert differs_notably({ONE: want(800)}, {ONE: want(699)})
    assert differs_notably({ONE: want(699)}, {ONE: want(800)})
    assert differs_notably({ONE: want(800), TWO: want(5)}, {ONE: want(800), TWO: want(9)})
    assert differs_notably({}, {ONE: want(1)})
    assert differs_notably({ONE: want(1)}, {})
    assert not differs_notably({}, {ONE: want(0)})
