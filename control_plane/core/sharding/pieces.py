"""How a round begins: its slices, what is asked of them, and who has served their keys so far."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from common.shard_map import KEYS, tenant_keys
from control_plane.core.sharding.cuts import Cut
from control_plane.core.sharding.deaths import FROZEN_S
from control_plane.core.sharding.demand import Demand
from control_plane.core.sharding.draft import Draft, Piece
from control_plane.core.sharding.values import Slice, View


def pieces_of(view: View, demand: Demand, cuts: Sequence[Cut], before: Sequence[Slice], now_ms: int) -> list[Piece]:
    """The slices of this round, nobody serving them yet."""
    firsts = [each.first_key for each in cuts]
    loads = demand.loads(firsts)
    old_firsts = [each.first_key for each in before]
    warm: dict[int, dict[int, int]] = {}
    places = {server.replica_id: at for at, server in enumerate(sorted(view.servers, key=lambda s: s.replica_id))}
    for (place, replica_id), tokens in demand.warm_by_slice(firsts).items():
        warm.setdefault(place, {})[places[replica_id]] = tokens
    by_key = sorted((tenant_keys(tenant_id)[0], rate) for tenant_id, rate in view.reserved.items())
    owners, sold = [key for key, _ in by_key], [rate for _, rate in by_key]
    ends = [*firsts[1:], KEYS]
    counts: dict[str, int] = {}
    for each in cuts:
        counts[each.tenant_id] = counts.get(each.tenant_id, 0) + 1
    reserved_total, total = sum(view.reserved.values()), sum(loads)
    # What idle tenants may be expected to want, judged by how much of what is reserved is used.
    expected = min(1.0, total / reserved_total) if reserved_total and total else 1.0
    pieces = []
    for at, each in enumerate(cuts):
        old = before[bisect_right(old_firsts, each.first_key) - 1] if before else None
        same = old is not None and (old.first_key == each.first_key or old.tenant_id == each.tenant_id != "")
        if each.tenant_id:
            reserved = view.reserved.get(each.tenant_id, 0) / counts[each.tenant_id]
        else:
            reserved = float(sum(sold[bisect_left(owners, each.first_key) : bisect_left(owners, ends[at])]))
        pieces.append(
            Piece(
                at,
                each.first_key,
                each.tenant_id,
                loads[at],
                reserved,
                max(loads[at], reserved * expected),
                warm.get(at, {}),
                min(old.frozen_until_ms, now_ms + round(FROZEN_S * 1_000)) if old is not None and same else 0,
            )
        )
    return pieces


def seed(draft: Draft, before: Sequence[Slice]) -> list[list[str]]:
    """Gives every slice what its keys had and what is still there: where slices are joined, what any of them had.

    Returns:
        The replicas that are gone or leave, by slice.
    """
    places = {server.replica_id: at for at, server in enumerate(draft.servers)}
    old_firsts = [each.first_key for each in before]
    lost: list[list[str]] = []
    ends = [*(piece.first_key for piece in draft.pieces[1:]), KEYS]
    for piece, end in zip(draft.pieces, ends, strict=True):
        low = bisect_right(old_firsts, piece.first_key) - 1
        had = before[low : bisect_left(old_firsts, end)] if before else ()
        missing: set[str] = set()
        members: set[int] = set()
        # A tenant whose keys lay in somebody else's slice so far is placed from nothing: it must not share its fate.
        fresh = bool(had) and had[0].tenant_id != piece.tenant_id and piece.tenant_id != ""
        for replica_id in sorted({replica_id for each in had for replica_id in each.replica_ids} if not fresh else ()):
            at = places.get(replica_id)
            if at is None or not draft.takes_more(at):
                missing.add(replica_id)
            else:
                members.add(at)
        draft.seed(piece, members)
        lost.append(sorted(missing))
    return lost
