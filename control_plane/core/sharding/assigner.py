"""The sharder's rounds: from the fleet and its load to who serves what.

    every round          what is gone or leaves is replaced; slices that are too small grow
    balancing rounds     besides: cut where tenants came or are hot, sizes, utilisation, overlap

Everything is sorted before it is decided on, so that the same fleet always gives the same placement. What does not have
to move stays.

The ideas are those of published sharders (slices of a key space, assignments by generation, churn that is paid for);
the rules and figures are in the modules beside this one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Final

from common.shard_map import Generation
from control_plane.core.sharding.balance import BUDGET, SAVED_ROUNDS_MAX, balance
from control_plane.core.sharding.choose import enclosed, newcomer, overlap_without
from control_plane.core.sharding.cuts import Cut, cut
from control_plane.core.sharding.deaths import FROZEN_S, Crash, Deaths
from control_plane.core.sharding.demand import Demand, DemandBook
from control_plane.core.sharding.draft import Draft, Piece
from control_plane.core.sharding.pieces import pieces_of, seed
from control_plane.core.sharding.pull import Pulls
from control_plane.core.sharding.sizes import SHRINK_AFTER_S, SIZE_MIN, limit, shrunk, size
from control_plane.core.sharding.values import (
    Cause,
    Happened,
    Life,
    Move,
    Placement,
    Round,
    Server,
    Slice,
    View,
)

OVERLAPS_MAX: Final = 64
"""Slices per round that are looked at for sharing all their replicas with another: where there are more tenants than
combinations, some always do."""


class Assigner:
    """Assigns one model. All it remembers from round to round may be lost: it then only decides a little later."""

    def __init__(self) -> None:
        self._book = DemandBook()
        self._deaths = Deaths()
        self._servers: dict[str, Server] = {}
        self._busy: dict[str, tuple[int, ...]] = {}
        self._shrinkable: dict[int, int] = {}
        self._frozen_seats: dict[int, frozenset[str]] = {}
        self._pulls = Pulls()
        self._took_over = False
        self._saved = 0.0

    def round(self, view: View, previous: Placement | None, *, incarnation: int, now_ms: int, balance: bool) -> Round:
        """Decides.

        Args:
            view: The fleet now.
            previous: The placement in force, or None.
            incarnation: For a model without a placement: larger than any before.
            now_ms: Wall clock.
            balance: Whether it is a balancing round; without a previous placement every round is one.
        """
        demand = self._book.read(view, now_ms)
        self._notice_crashes(view, demand, now_ms)
        if not view.servers:
            return Round(None, heat=demand.reported)
        regular = balance or previous is None
        before = _before(previous)
        cuts = self._cuts(view, demand, before, regular)
        firsts = [each.first_key for each in cuts]
        pieces = pieces_of(view, demand, cuts, before, now_ms)
        draft = Draft(view.servers, pieces, self._pulls.by_replica)
        happened = self._freeze(draft, firsts, demand, now_ms)
        lost = seed(draft, before)
        pulls = self._pulls.learn(draft, demand.reported, now_ms) if regular else self._pulls.by_replica
        sizes = self._sizes(draft, before, lost, now_ms, regular)
        self._keep_seats(draft, previous, lost)
        self._fill(draft, previous, sizes, lost)
        if regular:
            self._shrink(draft, sizes)
            if previous is not None:
                self._even_out(draft, view, demand)
        self._pulls.take(pulls, draft.touched(), now_ms)
        slice_loads = {each.first_key: round(each.load) for each in draft.pieces}
        slices = tuple(self._slice(draft, piece) for piece in draft.pieces)
        if previous is not None and _same(slices, previous.slices):
            return Round(None, tuple(happened), demand.reported, slice_loads)
        moves = draft.moves() if previous is not None else []
        generation = previous.generation.successor(now_ms) if previous else Generation(incarnation, max(0, now_ms))
        seats = {server.replica_id: server.seat for server in draft.servers}
        named = sorted({replica_id for each in slices for replica_id in each.replica_ids})
        placement = Placement(
            generation,
            slices,
            {replica_id: seats[replica_id] for replica_id in named},
            _reason(previous, len(slices), moves),
            tuple(sorted(moves, key=lambda move: (-move.load, move.first_key, move.to_replica_id))),
            sum(move.load for move in moves),
        )
        return Round(placement, tuple(happened), demand.reported, slice_loads)

    # --- crashes

    def _notice_crashes(self, view: View, demand: Demand, now_ms: int) -> None:
        present = {server.replica_id: server for server in view.servers}
        gone = [server for replica_id, server in sorted(self._servers.items()) if replica_id not in present]
        if present:  # an empty view is no proof of anything
            for server in gone:
                busy = self._busy.pop(server.replica_id, ())
                if server.replica_id in view.loads:  # what it said last, after the round before
                    last = view.loads[server.replica_id]
                    busy = tuple(sorted(each.first_key for each in last if each.in_flight > 0))
                if server.life is Life.OPEN and busy:
                    self._deaths.crashed(Crash(server.replica_id, now_ms, busy))
            self._servers = present
        self._busy.update({replica_id: tuple(parts) for replica_id, parts in demand.busy.items()})

    def _freeze(self, draft: Draft, firsts: Sequence[int], demand: Demand, now_ms: int) -> list[Happened]:
        happened = []
        for place, crashed in self._deaths.suspects(firsts, demand, now_ms).items():
            piece = draft.pieces[place]
            fresh = piece.frozen_until_ms <= now_ms
            piece.frozen_until_ms = max(piece.frozen_until_ms, now_ms + round(FROZEN_S * 1_000) if fresh else 0)
            if fresh:
                whose = f"tenant {piece.tenant_id!r}" if piece.tenant_id else "several tenants"
                happened.append(
                    Happened(
                        "KEY_OF_DEATH",
                        piece.tenant_id,
                        f"{len(crashed)} replicas crashed with requests of {whose} in flight: its requests stay on the "
                        f"replicas they have for {FROZEN_S / 60:.0f} minutes; look for a request that kills engines",
                        {"replicas": ", ".join(crashed), "first_key": f"{piece.first_key:#018x}"},
                    )
                )
        for piece in draft.pieces:
            if piece.frozen_until_ms <= now_ms:
                piece.frozen_until_ms = 0
        return happened

    def _keep_seats(self, draft: Draft, previous: Placement | None, lost: Sequence[Sequence[str]]) -> None:
        """Remembers the seats that frozen slices had when they froze."""
        seats = previous.seats if previous is not None else {}
        kept = {}
        for piece in draft.pieces:
            if piece.frozen_until_ms:
                now = {draft.servers[at].seat for at in piece.members}
                gone = {seats[replica_id] for replica_id in lost[piece.at] if replica_id in seats}
                kept[piece.first_key] = self._frozen_seats.get(piece.first_key, frozenset()) | now | gone
        self._frozen_seats = kept

    # --- sizes

    def _cuts(self, view: View, demand: Demand, before: Sequence[Slice], regular: bool) -> list[Cut]:
        so_far = [Cut(each.first_key, each.tenant_id) for each in before]
        if not regular:
            return so_far
        servers = [server for server in view.servers if server.life is Life.OPEN] or view.servers
        mean = sum(max(1, server.capacity) for server in servers) / len(servers)
        return _apart(cut(demand, view.reserved, so_far, lambda load: size(load, mean, len(servers))), before)

    def _sizes(
        self, draft: Draft, before: Sequence[Slice], lost: Sequence[Sequence[str]], now_ms: int, regular: bool
    ) -> list[int]:
        """The size each slice should have; and who could be smaller since when."""
        firsts = [each.first_key for each in before]
        mean = draft.open_capacity / len(draft.open)
        most = _limits(draft, mean)
        sizes, shrinkable = [], {}
        for piece in draft.pieces:
            there = before[bisect_right(firsts, piece.first_key) - 1] if before else None
            now = min(len(piece.members) + len(lost[piece.at]), len(draft.open))
            if not regular:
                sizes.append(max(now, min(SIZE_MIN, len(draft.open))))
                continue
            wanted = max(now, min(size(piece.wanted, mean, len(draft.open)), most[piece.at]))
            fewer = shrunk(now, piece.wanted, mean, len(draft.open))
            if fewer < now == wanted:
                known = there.shrinkable_since_ms if there is not None and there.first_key == piece.first_key else 0
                # What is stored counts for who takes over only: afterwards it may have been wanted in between.
                since = self._shrinkable.get(piece.first_key, 0 if self._took_over else known) or now_ms
                since = min(since, now_ms)
                if now_ms - since >= SHRINK_AFTER_S * 1_000:
                    wanted = fewer
                else:
                    shrinkable[piece.first_key] = since
            sizes.append(wanted)
        if regular:
            self._shrinkable, self._took_over = shrinkable, True
        return sizes

    def _fill(
        self, draft: Draft, previous: Placement | None, sizes: Sequence[int], lost: Sequence[Sequence[str]]
    ) -> None:
        """Replaces what is lost and lets grow what is too small; the heaviest slice first."""
        there = {server.replica_id for server in draft.servers}
        by_seat = {draft.servers[at].seat: at for at in draft.open}
        seats = previous.seats if previous is not None else {}
        for piece in sorted(draft.pieces, key=lambda each: (-each.planned, each.first_key)):
            before = len(piece.members) + len(lost[piece.at])
            for replica_id in lost[piece.at]:
                cause = Cause.DRAIN if replica_id in there else Cause.REMOVAL
                came = by_seat.get(seats.get(replica_id, ""))
                if came in piece.members or (came is None and len(piece.members) < sizes[piece.at]):
                    came = self._newcomer(draft, piece)
                if came is None:
                    draft.lost(piece, replica_id, piece.load / before, cause)
                else:
                    draft.join(piece, came, cause, gone_id=replica_id)
            while len(piece.members) < sizes[piece.at]:
                came = self._newcomer(draft, piece)
                if came is None:
                    break
                draft.join(piece, came, Cause.ADDITION)

    def _newcomer(self, draft: Draft, piece: Piece) -> int | None:
        """Who joins a slice. A frozen one gets its own seats back, and another only if it has nobody at all."""
        if not piece.frozen_until_ms:
            return newcomer(draft, piece)
        seats = self._frozen_seats.get(piece.first_key, frozenset())
        own = [at for at in draft.open if draft.servers[at].seat in seats and at not in piece.members]
        if own:
            return own[0]
        return None if piece.members else newcomer(draft, piece)

    def _shrink(self, draft: Draft, sizes: Sequence[int]) -> None:
        for piece in draft.pieces:
            while len(piece.members) > max(1, sizes[piece.at]):
                hottest = max(
                    piece.members,
                    key=lambda at, piece=piece: (  # type: ignore[misc]
                        -piece.warm.get(at, 0),
                        draft.planned[at] / draft.capacities[at],
                        at,
                    ),
                )
                draft.leave(piece, hottest, Cause.SHRINK)

    # --- evenness

    def _even_out(self, draft: Draft, view: View, demand: Demand) -> None:
        total = sum(demand.rates)
        self._saved = min(self._saved + BUDGET * total, SAVED_ROUNDS_MAX * BUDGET * total)
        self._saved -= balance(draft, self._saved, view.token_milli_mu, lambda piece: not piece.frozen_until_ms)
        tries = 0
        for piece in sorted(draft.pieces, key=lambda each: (each.load, each.first_key)):
            if piece.frozen_until_ms or not enclosed(draft, piece):
                continue
            tries += 1
            if tries > OVERLAPS_MAX:
                break
            gone = max(piece.members, key=lambda at: (-piece.warm.get(at, 0), draft.planned[at], at))
            load = draft.share(piece, gone, piece.load)
            came = overlap_without(draft, piece, gone) if load <= self._saved else None
            if came is not None:
                draft.swap(piece, gone, came, Cause.OVERLAP)
                self._saved -= load

    def _slice(self, draft: Draft, piece: Piece) -> Slice:
        return Slice(
            piece.first_key,
            tuple(draft.servers[at].replica_id for at in sorted(piece.members)),
            piece.tenant_id,
            round(piece.load),
            piece.frozen_until_ms,
            self._shrinkable.get(piece.first_key, 0),
        )


def _apart(cuts: Sequence[Cut], before: Sequence[Slice]) -> list[Cut]:
    """Joins no frozen slice to a neighbour: its requests would come to the neighbour's replicas."""
    by_key = {each.first_key: each for each in cuts}
    for at, each in enumerate(before):
        if each.frozen_until_ms:
            for border in before[at : at + 2]:
                by_key.setdefault(border.first_key, Cut(border.first_key, border.tenant_id))
    return [by_key[first_key] for first_key in sorted(by_key)]


def _before(previous: Placement | None) -> Sequence[Slice]:
    return previous.slices if previous is not None else ()


def _limits(draft: Draft, mean_capacity: float) -> list[int]:
    """Most replicas of every slice: its tenant's, shared among its slices."""
    owners = [piece.tenant_id or str(piece.at) for piece in draft.pieces]  # many small ones together are like one
    loads: dict[str, float] = {}
    for owner, piece in zip(owners, draft.pieces, strict=True):
        loads[owner] = loads.get(owner, 0.0) + piece.load
    slices = Counter(owners)
    total, replicas = sum(loads.values()), len(draft.open)
    limits = []
    for owner, piece in zip(owners, draft.pieces, strict=True):
        whole = limit(piece.reserved * slices[owner], total - loads[owner], mean_capacity, replicas)
        limits.append(max(SIZE_MIN, -(-whole // slices[owner])))
    return limits


def _same(slices: Sequence[Slice], before: Sequence[Slice]) -> bool:
    """Whether two placements say the same to everybody; loads are for people."""
    return len(slices) == len(before) and all(
        (a.first_key, a.replica_ids, a.tenant_id, a.frozen_until_ms)
        == (b.first_key, b.replica_ids, b.tenant_id, b.frozen_until_ms)
        for a, b in zip(slices, before, strict=True)
    )


_PHRASES: Final = {
    Cause.REMOVAL: "replicas were lost",
    Cause.DRAIN: "replicas are drained",
    Cause.ADDITION: "workloads need more replicas",
    Cause.SHRINK: "workloads need fewer replicas",
    Cause.BALANCE: "utilisation was uneven",
    Cause.OVERLAP: "workloads shared all their replicas",
}


def _reason(previous: Placement | None, slices: int, moves: Sequence[Move]) -> str:
    if previous is None:
        return f"first assignment of the model: {slices} slice{'s' if slices != 1 else ''}"
    if not moves:
        return "the key space was cut anew; nothing moved"
    causes = [cause for cause in Cause if any(move.cause is cause for move in moves)]
    return " and ".join(_PHRASES[cause] for cause in causes)
