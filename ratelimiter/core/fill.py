"""How one quota is split over the routers: water-filling over wants, then the rest in equal parts."""

from __future__ import annotations

from collections.abc import Sequence

# A router that wants nothing now still gets 1/50 of its equal part, so that the first requests of a tenant that moves
# to it are not all refused while the leases follow. It costs a tenant on one single router at most 2 % of its quota.
IDLE_PART = 50


def split_quota(quota: int, wants: Sequence[int]) -> list[int]:
    """Splits a quota over routers.

    Everyone gets what it wants while that fits; otherwise the level rises for all alike until the quota is used up
    (max-min fairness). What nobody wants is split equally, so that rising demand meets a lease that is there already.

    Args:
        quota: Milli-MU per minute, 0 or more.
        wants: One rate per router, in a stable order, which decides who gets what rounding leaves.

    Returns:
        One rate per router; the sum is exactly `quota` unless there are no routers.
    """
    if not wants:
        return []
    idle = quota // (IDLE_PART * len(wants))
    wanted = [want if want > idle else idle for want in wants]
    shares, left = wanted, quota - sum(wanted)
    if left < 0:
        shares, left = _level(quota, wanted)
    each, extra = divmod(left, len(wants))
    return [share + each + (1 if index < extra else 0) for index, share in enumerate(shares)]


def _level(quota: int, wanted: Sequence[int]) -> tuple[list[int], int]:
    """Raises the level for all alike until the quota is used up; returns the shares and what rounding leaves."""
    shares = [0] * len(wanted)
    left, open_count = quota, len(wanted)
    for index in sorted(range(len(wanted)), key=wanted.__getitem__):
        shares[index] = min(wanted[index], left // open_count)
        left -= shares[index]
        open_count -= 1
    return shares, left
