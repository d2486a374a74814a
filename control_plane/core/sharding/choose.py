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
    weights = draft.weights[outside]
    inside = draft.inside(piece)
    after = planned / capacities + piece.planned * weights / (inside + weights) / capacities
    place = min(FEASIBLE_MIN, len(outside)) - 1
    border = max(draft.mean_planned, np.partition(after, place)[place])
    feasible = np.flatnonzero(after <= border)
    ranks = _ranks(piece.first_key, draft.seat_hashes[outside[feasible]])
    if len(feasible) > CANDIDATES:
        chosen = np.argsort(ranks, kind="stable")[:CANDIDATES]
        feasible, ranks = feasible[chosen], ranks[chosen]
    places = outside[feasible]
    worst, total = _overlap(draft, piece, _shared(draft, piece), places)
    order = np.lexsort((ranks, after[feasible].round(9), total, worst))
    return int(places[order[0]])


def enclosed(draft: Draft, piece: Piece) -> bool:
    """Whether another slice serves from every replica of this one, though there are replicas to keep them apart."""
    size, replicas = len(piece.members), len(draft.open)
    if 2 * size > replicas:
        return False
    shared = _shared(draft, piece)
    return bool(np.any((shared >= np.minimum(size, draft.sizes)) & (shared > 0) & (2 * draft.sizes <= replicas)))


def overlap_without(draft: Draft, piece: Piece, gone: int) -> int | None:
    """The replica that should take the place of one of a slice's for its sake; None where nobody is better.

    Args:
        draft: The placement so far.
        piece: The slice.
        gone: Place of the replica that would leave.
    """
    outside = draft.outside(piece)
    if not len(outside):
        return None
    coldest = outside[np.argsort(draft.planned[outside] / draft.capacities[outside], kind="stable")][:CANDIDATES]
    places = np.append(coldest, gone)
    worst, total = _overlap(draft, piece, _shared(draft, piece) - draft.serves[gone], places)
    best = int(np.lexsort((places[:-1], total[:-1], worst[:-1]))[0])
    return int(places[best]) if (worst[best], total[best]) < (worst[-1], total[-1]) else None


def _shared(draft: Draft, piece: Piece) -> NDArray[np.int64]:
    """How many replicas every other slice has in common with this one; its own place says 0."""
    shared: NDArray[np.int64] = draft.serves[sorted(piece.members)].sum(axis=0, dtype=np.int64)
    shared[piece.at] = 0
    return shared


def _overlap(
    draft: Draft, piece: Piece, shared: NDArray[np.int64], places: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How bad it is to have each of some replicas as well.

    Args:
        draft: The placement so far.
        piece: The slice.
        shared: Replicas in common with every other slice, without these.
        places: Of the replicas.

    Returns:
        For each, the largest part of a subset that would be in common, and how much would be in all.
    """
    others = draft.serves[places]
    others[:, piece.at] = False
    touched = np.flatnonzero(others.any(axis=0))
    if not len(touched):
        return np.zeros(len(places)), np.zeros(len(places), dtype=np.int64)
    others, counts = others[:, touched], shared[touched] + 1
    size = len(piece.members) + bool(places[0] not in piece.members)
    parts = counts / np.minimum(size, draft.sizes[touched])
    worst = (others * parts).max(axis=1)
    total = others @ (2 * counts - 1)
    # What one replica in common means depends on the size; below a half nobody is hurt by it.
    return np.where(worst > 0.5, worst, 0.0), total


def _ranks(first_key: int, seat_hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Rendezvous: uniform, the same on every machine; lower is better."""
    mixed = np.uint64((first_key | 1) * 0x9E3779B97F4A7C15 & _MASK) ^ seat_hashes
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
