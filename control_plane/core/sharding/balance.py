"""Evens out utilisation, as far as it is worth the caches that are given up for it.

What counts is utilisation, load over that replica's capacity, because hardware differs. Replicas within BAND of the
mean are left alone. Of one that is outside, slices are moved to the coldest replica that does not serve them (only that
one has to be tried, because penalties are convex), the move that lowers the penalties most first, until it is inside,
or what is left is not worth its price, or the round's budget is spent. A
replica of which far more is asked than it can serve is relieved whatever that costs, as long as others have room.

    penalty of too little   4 (1 + d/m)^2 d      d below the lower border m
    penalty of too much     16 (L/M)^2 (L - M)   load L above the upper border M
    price of a move         warm tokens that are lost x price of a token, over the PAYBACK_MINUTES it has to pay in

A replica without any load is fed whatever the band says: nobody starts a replica to see it idle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from control_plane.core.sharding.draft import Draft, Piece
from control_plane.core.sharding.values import Cause

BAND: Final = 0.10
"""Utilisation within this of the mean is even. Source: the band of published sharders."""

BUDGET: Final = 0.05
"""Part of the model's load that one round may move to even it out. Without one, a first rebalancing was measured to
move 17 to 29 % of the load at once."""

SAVED_ROUNDS_MAX: Final = 3
"""Rounds whose unused budget is kept, for a slice that is larger than one round's."""

PAYBACK_MINUTES: Final = 5.0
"""A move must be worth its warm tokens within this time: loads seldom stay as they are for longer."""

DROWNING: Final = 1.2
"""Of a replica more is asked than it can serve when it is this many times its capacity: averages wander by a fifth."""

IDLE_UTILISATION: Final = 0.05
"""Below this mean utilisation nobody waits for anybody, and only empty replicas are fed."""

_MOVES_MAX: Final = 2_000

# Small slices are worth no more than large ones, and there may be hundreds on a replica.
_COMPARED_MAX: Final = 64


def balance(draft: Draft, allowed: float, token_milli_mu: float, movable: Callable[[Piece], bool]) -> float:
    """Moves slices until utilisation is even.

    Args:
        draft: The placement; changed.
        allowed: Load that may be moved, mMU per minute.
        token_milli_mu: Price of computing one prompt token again, mMU.
        movable: Whether a slice may be moved.

    Returns:
        Load that was moved, mMU per minute.
    """
    moved = 0.0
    for _ in range(_MOVES_MAX):
        step = _best_step(draft, allowed - moved, token_milli_mu, movable)
        if step is None:
            break
        piece, gone, came = step
        if not _drowns(draft, gone):
            moved += draft.share(piece, gone, piece.load)
        draft.swap(piece, gone, came, Cause.BALANCE)
    return moved


def _drowns(draft: Draft, at: int) -> bool:
    """Whether more is asked of a replica than it can serve while others have room."""
    room = float(draft.measured[draft.open].sum()) < draft.open_capacity
    return room and bool(draft.measured[at] > DROWNING * draft.capacities[at])


def _best_step(
    draft: Draft, allowed: float, token_milli_mu: float, movable: Callable[[Piece], bool]
) -> tuple[Piece, int, int] | None:
    if len(draft.open) < 2:
        return None
    idle = float(draft.measured[draft.open].sum()) < IDLE_UTILISATION * draft.open_capacity
    load = draft.planned if idle else draft.measured
    mean = float(load[draft.open].sum()) / draft.open_capacity
    if mean <= 0.0:
        return None
    open_ = np.array(draft.open)
    levels = load[open_] / (mean * draft.capacities[open_])
    order = np.argsort(levels, kind="stable")
    ranked = open_[order].tolist()
    empty = not draft.serves[ranked[0]].any()
    for hot, level in zip(reversed(ranked), levels[order][::-1].tolist(), strict=True):
        if level <= 1.0 or (idle and not empty):
            return None
        if level <= 1.0 + BAND and levels[order[0]] >= 1.0 - BAND:
            return None
        best: tuple[float, Piece, int, int] | None = None
        most = math.inf if _drowns(draft, hot) else allowed
        for share, piece in _largest(draft, hot, movable):
            if share > most:
                continue
            cold = next((other for other in ranked if other not in piece.members), None)
            if cold is None or cold == hot:
                continue
            worth = _worth(draft, load, mean, piece, hot, cold, idle)
            worth -= piece.warm.get(hot, 0) * token_milli_mu / PAYBACK_MINUTES
            if worth > 0.0 and (best is None or worth > best[0]):
                best = (worth, piece, hot, cold)
        if best is not None:
            return best[1:]
    return None


def _largest(draft: Draft, hot: int, movable: Callable[[Piece], bool]) -> list[tuple[float, Piece]]:
    """The slices of a replica that bring it most, and what they bring, mMU per minute."""
    pieces = [piece for piece in map(draft.pieces.__getitem__, draft.slices_of(hot)) if movable(piece)]
    shares = [(draft.share(piece, hot, piece.load), piece) for piece in pieces]
    shares.sort(key=lambda pair: (-pair[0], pair[1].at))
    return shares[:_COMPARED_MAX]


def _worth(
    draft: Draft, load: NDArray[np.float64], mean: float, piece: Piece, hot: int, cold: int, idle: bool
) -> float:
    """By how much a move lowers the penalties, mMU per minute."""
    amount = piece.planned if idle else piece.load
    capacities = draft.capacities
    weights = draft.weights
    inside = draft.inside(piece)
    after = inside - float(weights[hot] - weights[cold])
    worth = 0.0
    for member in sorted(piece.members | {cold}):
        even, now = mean * float(capacities[member]), float(load[member])
        then = now
        if member != cold:
            then -= amount * float(weights[member]) / inside
        if member != hot:
            then += amount * float(weights[member]) / after
        worth += _penalty(now, even) - _penalty(then, even)
    return worth


def _penalty(load: float, even: float) -> float:
    low, high = (1.0 - BAND) * even, (1.0 + BAND) * even
    if load > high:
        return 16.0 * (load / high) ** 2 * (load - high)
    if load < low:
        short = low - load
        return 4.0 * (1.0 + short / low) ** 2 * short
    return 0.0
