"""Weighted max-min fairness in whole units.

Water is poured into vessels as wide as their weights: the level rises for all alike, a vessel that is full drops out,
and the rest share what is left. Nobody can get more without taking it from somebody who has less per weight.

Example: 100 units over (limit 10, weight 1), (limit 200, weight 1), (limit 200, weight 2) gives 10, 30 and 60.

Source: Bertsekas and Gallager, "Data Networks", section 6.5.2 (progressive filling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from capacity.core.columns import Column

# Ratios limit / weight of weights up to WEIGHT_MAX differ by at least 1 / WEIGHT_MAX^2, so that many fractional bits
# order them exactly, in plain integers.
WEIGHT_MAX = 1_000
_RATIO_BITS = 20
_INT64_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Claim:
    """What one party can use at most.

    Attributes:
        limit: Most it takes, whole units, 0 or more.
        weight: Its share among equals, 1 to WEIGHT_MAX.
    """

    limit: int
    weight: int = 1


def fair_share(amount: int, claims: Sequence[Claim]) -> list[int]:
    """Shares `amount` by weighted max-min fairness; nothing is lost to rounding.

    Args:
        amount: Whole units to share; less than 0 counts as 0.
        claims: Who takes part. Ties in rounding go to the earlier claim.

    Returns:
        One share per claim, in order. Their sum is min(amount, sum of limits); none is above its limit.
    """
    shares = [0] * len(claims)
    left = max(0, amount)
    order = sorted(
        range(len(claims)), key=lambda index: ((claims[index].limit << _RATIO_BITS) // claims[index].weight, index)
    )
    weight_left = sum(claim.weight for claim in claims)
    for position, index in enumerate(order):
        claim = claims[index]
        if claim.limit * weight_left > left * claim.weight:
            _split_evenly(left, weight_left, order[position:], claims, shares)
            return shares
        shares[index] = claim.limit
        left -= claim.limit
        weight_left -= claim.weight
    return shares


def _split_evenly(amount: int, weight: int, indexes: Sequence[int], claims: Sequence[Claim], shares: list[int]) -> None:
    """Splits by weight among claims that all want more than their part; leftover units go to the largest remainders."""
    remainders = []
    left = amount
    for index in indexes:
        shares[index], remainder = divmod(amount * claims[index].weight, weight)
        left -= shares[index]
        remainders.append((-remainder, index))
    # A claim with a remainder has room for one more: its limit is above the exact part, which is not whole.
    for _, index in sorted(remainders)[:left]:
        shares[index] += 1


def fair_shares(amount: int, limits: Column, weights: Column) -> Column:
    """`fair_share` of columns: the same shares to the unit, for thousands of claims in about a millisecond.

    Args:
        amount: Whole units to share; less than 0 counts as 0.
        limits: Most each takes, 0 or more.
        weights: 1 to WEIGHT_MAX each.

    Returns:
        One share per claim, in order.
    """
    wanted = int(limits.sum())
    if wanted <= amount:
        return limits
    if amount <= 0:
        return np.zeros_like(limits)
    weight = int(weights.sum())
    if max(int(limits.max()) * weight, wanted * int(weights.max())) > _INT64_MAX:
        limits, weights = limits.astype(object), weights.astype(object)
    order = np.argsort((limits << _RATIO_BITS) // weights, kind="stable")
    filled, width = limits[order], weights[order]
    left = amount - (np.cumsum(filled) - filled)
    weight_left = weight - (np.cumsum(width) - width)
    # Not everybody is filled, so somebody is the first whose limit is above its part of what is left.
    first = int(np.argmax(filled * weight_left > left * width))
    open_claims = np.sort(order[first:])
    shares = limits.copy()
    parts = int(left[first]) * weights[open_claims]
    shares[open_claims] = parts // int(weight_left[first])
    over = int(left[first]) - int(shares[open_claims].sum())
    remainders = parts % int(weight_left[first])
    shares[open_claims[np.argsort(-remainders, kind="stable")[:over]]] += 1
    return shares
