"""How one quota is split over the routers: water-filling over wants, then the rest in equal parts."""

from __future__ import annotations

from collections.abc import Sequence

# A router that wants nothing now still gets 1/50 of its equal part, so that the first requests of a tenant that moves
# to it are not all refused while the leases follow. It costs a tenant on one single router at most 2 % of its quota.
IDLE_PART = 50

# A split stands while every router has its wants and 1/8 more, or is within 1/128 of the quota of what it would get,
# and no more than 1/64 of the quota is left over: a lease that moves with every breath of its tenant is rewritten,
# pushed and acknowledged each time, and buys nothing.
_ROOM_PART = 8
_CLOSE_PART = 128
_LEFT_PART = 64
# Nobody stays with less than a quarter of what a new split gives, as a router that has just come would.
_BEHIND_TIMES = 4


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


def resplit_quota(quota: int, wants: Sequence[int], has: Sequence[int]) -> list[int]:
    """Splits a quota anew where the present split does not serve any more.

    Args:
        quota: Milli-MU per minute, 0 or more.
        wants: One rate per router.
        has: What each router has now, in the same order.

    Returns:
        `has` while that is good enough, else `split_quota`. The sum never exceeds `quota`.
    """
    fresh = split_quota(quota, wants)
    left = quota - sum(has)
    idle = quota // (IDLE_PART * max(1, len(wants)))
    if left < 0 or left * _LEFT_PART > quota or any(rate < idle for rate in has):
        return fresh
    if all(
        rate >= want + want // _ROOM_PART and rate * _BEHIND_TIMES >= new
        for want, rate, new in zip(wants, has, fresh, strict=True)
    ):
        return list(has)
    close = all(abs(rate - new) * _CLOSE_PART <= quota for rate, new in zip(has, fresh, strict=True))
    return list(has) if close else fresh


def _level(quota: int, wanted: Sequence[int]) -> tuple[list[int], int]:
    """Raises the level for all alike until the quota is used up; returns the shares and what rounding leaves."""
    shares = [0] * len(wanted)
    left, open_count = quota, len(wanted)
    for index in sorted(range(len(wanted)), key=wanted.__getitem__):
        shares[index] = min(wanted[index], left // open_count)
        left -= shares[index]
        open_count -= 1
    return shares, left
