"""When a change of demand is worth telling at once instead of with the next regular report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ratelimiter.core.values import Want, Workload

# A change by an eighth of the larger value is notable: an owner that comes back must not wait for its turn.
_NOTABLE_PART: Final = 8


def differs_notably(told: Mapping[Workload, Want], demand: Mapping[Workload, Want]) -> bool:
    """Whether any workload's wanted rate moved notably.

    Args:
        told: What was reported last.
        demand: What is wanted now.
    """
    for workload in demand.keys() | told.keys():
        before, after = _rate(told.get(workload)), _rate(demand.get(workload))
        if abs(after - before) * _NOTABLE_PART > max(before, after):
            return True
    return False


def _rate(want: Want | None) -> int:
    return want.wants if want else 0
