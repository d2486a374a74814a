"""Which replica joins a slice: one that has room, and that the slice shares with as few others as possible.

Two slices with the same subset have one fate: when one of them surges or kills replicas, the other has nowhere to go.
So of the replicas whose utilisation stays low enough, at most CANDIDATES of them by rendezvous hashing, the one wins
that leaves the slice with the least in common with any other one. With 16 replicas and subsets of 3, two random subsets
are identical with 0.18 %; chosen so, none are until every combination is used.

Source: shuffle sharding; rendezvous hashing is Thaler and Ravishankar, "Using name-based mappings to increase hit
rates" (1998).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from control_plane.core.sharding.draft import Draft, Piece

CANDIDATES: Final = 16
"""Replicas that are compared. Source: the upper end of the 8 to 16 candidate subsets that were found to be enough."""

FEASIBLE_MIN: Final = 4
"""So many of the coldest are compared even where they are above the mean."""

_MASK: Final = (1 << 64) - 1


def newcomer(draft: Draft, piece: Piece) -> int | None:
    """The replica that should join a slice; None where all that take more are in it.

    Args:
        draft: The placement so far.
        piece: The slice.
    """
    outside = draft.outside(piece)
    if len(outside) <= 1:
        return int(outside[0]) if len(outside) else None
    capacities, planned = draft.capacities[outside], draft.planned[outside]
    inside = sum(draft.capacities[member] for member in piece.members)
    after = planned / capacities + piece.planned / (inside + capacities)
    place = min(FEASIBLE_MIN, len(outside)) - 1
    border = max(draft.mean_planned, np.partition(after, place)[place])
    feasible = np.flatnonzero(after <= border)
    ranks = _ranks(piece.first_key, draft.seat_hashes[outside[feasible]])
    if len(feasible) > CANDIDATES:
        chosen = np.argsort(ranks, kind="stable")[:CANDIDATES]
        feasible, ranks = feasible[chosen], ranks[chosen]
    shared = _shared(draft, piece)
    compared = [
        (*_overlap(draft, piece, shared, at), round(level, 9), rank, at)
        for at, level, rank in zip(outside[feasible].tolist(), after[feasible].tolist(), ranks.tolist(), strict=True)
    ]
    return int(min(compared)[-1])


def enclosed(draft: Draft, piece: Piece) -> bool:
    """Whether another slice serves from every replica of this one, though there are replicas to keep them apart."""
    if 2 * len(piece.members) > len(draft.open):
        return False
    size = len(piece.members)
    return any(
        count >= min(size, len(draft.pieces[other].members)) and 2 * len(draft.pieces[other].members) <= len(draft.open)
        for other, count in _shared(draft, piece).items()
    )


def overlap_without(draft: Draft, piece: Piece, gone: int) -> int | None:
    """The replica that should take the place of one of a slice's for its sake; None where nobody is better.

    Args:
        draft: The placement so far.
        piece: The slice.
        gone: Place of the replica that would leave.
    """
    shared = _shared(draft, piece)
    for other in draft.on[gone]:
        if other != piece.at:
            shared[other] -= 1
    outside = draft.outside(piece)
    coldest = outside[np.argsort(draft.planned[outside] / draft.capacities[outside], kind="stable")][:CANDIDATES]
    best = min(coldest.tolist(), key=lambda at: (*_overlap(draft, piece, shared, at), at), default=None)
    if best is None:
        return None
    return best if _overlap(draft, piece, shared, best) < _overlap(draft, piece, shared, gone) else None


def _shared(draft: Draft, piece: Piece) -> dict[int, int]:
    """How many replicas every other slice has in common with this one, where it has any."""
    shared: dict[int, int] = {}
    for member in piece.members:
        for other in draft.on[member]:
            shared[other] = shared.get(other, 0) + 1
    shared.pop(piece.at, None)
    return shared


def _overlap(draft: Draft, piece: Piece, shared: dict[int, int], at: int) -> tuple[float, int]:
    """How bad it is to have a replica as well: the largest part of a subset in common, and how much is in all."""
    worst, total = 0.0, 0
    size = len(piece.members) + (at not in piece.members)
    for other in draft.on[at]:
        if other == piece.at:
            continue
        count = shared.get(other, 0) + 1
        worst = max(worst, count / min(size, len(draft.pieces[other].members)))
        total += 2 * count - 1
    # What one replica in common means depends on the size; below a half nobody is hurt by it.
    return (worst if worst > 0.5 else 0.0), total


def _ranks(first_key: int, seat_hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Rendezvous: uniform, the same on every machine; lower is better."""
    mixed = np.uint64((first_key | 1) * 0x9E3779B97F4A7C15 & _MASK) ^ seat_hashes
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
