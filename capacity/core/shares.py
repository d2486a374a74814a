"""Shares live capacity among the tenants of one model, and keeps every number of the computation."""

from __future__ import annotations

import numpy as np

from capacity.core.columns import Column
from capacity.core.fair_share import fair_shares
from capacity.core.values import Shares, Sold

# An idle owner keeps one part in this many of its guarantee, so that its first requests after a pause meet no refusal;
# the rest is back within about a second. Half: a compromise between lending and readiness.
KEEP_DIVISOR = 2
# An owner in use keeps its wants with this headroom: wants are averages over the last seconds, so an owner that comes
# back is seen at a fraction of what it really wants, and must be back at its whole reservation within two seconds.
KEEP_WANTS_FACTOR = 2


def share_out(have: int, sold: Sold, counted: Column) -> Shares:
    """Shares what a model has.

    Args:
        have: Milli-MU per minute to promise and use.
        sold: Its reservations.
        counted: What each tenant wants, as it is to be counted; above the ceiling counts as the ceiling.

    Returns:
        The shares: their sum is at most `have`, nobody is above its ceiling, and nobody below what it wants of its
        guarantee.
    """
    guaranteed = guarantees(have, sold)
    wanted = np.minimum(counted, sold.ceiling)
    unsold = have - int(guaranteed.sum())

    kept = np.minimum(guaranteed, np.maximum(-(-guaranteed // KEEP_DIVISOR), wanted * KEEP_WANTS_FACTOR))
    unused = guaranteed - kept
    missing = np.maximum(wanted - guaranteed, 0)
    borrowed = fair_shares(unsold + int(unused.sum()), missing, sold.weight)
    given_up = max(0, int(borrowed.sum()) - unsold)
    lent = fair_shares(given_up, unused, np.ones_like(sold.weight))

    # Idle capacity exists only when nobody had to give anything up, so no owner is below its guarantee here.
    granted = guaranteed - lent + borrowed
    idle = fair_shares(have - int(granted.sum()), sold.ceiling - granted, sold.weight)
    return Shares(guaranteed, wanted, kept, lent, borrowed, idle)


def guarantees(have: int, sold: Sold) -> Column:
    """The part of each reservation that `have` covers: by tier, then weighted max-min.

    Args:
        have: Milli-MU per minute to promise.
        sold: All reservations of one model.

    Returns:
        One amount per reservation, in order, none above what was reserved.
    """
    if sold.total <= have:
        return sold.reserved
    covered = np.zeros_like(sold.reserved)
    left = have
    for tier in sorted(set(sold.tier.tolist())):
        mine = np.flatnonzero(sold.tier == tier)
        covered[mine] = fair_shares(left, sold.reserved[mine], sold.weight[mine])
        left -= int(covered[mine].sum())
    return covered
