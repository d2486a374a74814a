"""What must hold after every round of the sharder, whatever the fleet went through."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from common.shard_map import KEYS, tenant_keys
from control_plane.core.sharding.balance import BUDGET, SAVED_ROUNDS_MAX
from control_plane.core.sharding.sizes import limit
from control_plane.core.sharding.values import Cause, Life, Placement, Round, Slice, View
from model_units.units import REPLICA_CAPACITY
from tests.support.sharder_world import slice_at

SUBSET_MIN: Final = 3
PAID: Final = (Cause.BALANCE, Cause.OVERLAP)
"""What is moved because it would be better, not because it must be."""


def parts(old: Placement, new: Placement) -> Iterator[tuple[int, Slice, Slice]]:
    """Every range of keys that neither placement cuts: its first key, and its slice in both."""
    for key in sorted({each.first_key for each in (*old.slices, *new.slices)}):
        yield key, slice_at(old, key), slice_at(new, key)


def wrong_with_placement(placement: Placement, view: View, now_ms: int) -> Iterator[str]:
    """What is wrong with a placement by itself, in words.

    Args:
        placement: In force after a round.
        view: What the round saw; it lists replicas.
        now_ms: When.
    """
    firsts = [each.first_key for each in placement.slices]
    if not firsts or firsts[0] != 0 or firsts[-1] >= KEYS or any(a >= b for a, b in itertools.pairwise(firsts)):
        yield f"slices do not cover the key space in order: {firsts[:5]}"
    known = {server.replica_id: server for server in view.servers}
    open_ = {server.replica_id for server in view.servers if server.life is Life.OPEN}
    for each in placement.slices:
        mine = set(each.replica_ids)
        where = f"slice {each.first_key:#x} {each.replica_ids}"
        if not mine or len(mine) < len(each.replica_ids) or list(each.replica_ids) != sorted(mine):
            yield f"{where}: empty, or not sorted"
        if mine - known.keys():
            yield f"{where}: names replicas that are gone"
        if open_ and mine - open_:
            yield f"{where}: names replicas that leave while others stay"
        if len(mine) < min(SUBSET_MIN, len(open_)) and each.frozen_until_ms <= now_ms:
            yield f"{where}: too few of {len(open_)} replicas"
    missing = placement.members() ^ placement.seats.keys()
    if missing or any(known[each].seat != seat for each, seat in placement.seats.items() if each in known):
        yield f"seats differ from those of the replicas: {sorted(missing)}"


def inherited(old: Placement, new: Placement) -> Iterator[set[str]]:
    """The replicas that each new slice's keys had, slice by slice."""
    firsts = [each.first_key for each in old.slices]
    for each, end in zip(new.slices, [*(each.first_key for each in new.slices[1:]), KEYS], strict=True):
        overlapped = old.slices[bisect_right(firsts, each.first_key) - 1 : bisect_left(firsts, end)]
        yield {replica_id for part in overlapped for replica_id in part.replica_ids}


def wrong_with_sizes(old: Placement, new: Placement, view: View, loads: Mapping[int, int]) -> Iterator[str]:
    """Slices that grew beyond their part of what their tenant may claim, in words.

    Args:
        old: The placement before a regular round.
        new: The one after.
        view: What the round saw.
        loads: Load of each new slice, mMU per minute, by first key.
    """
    servers = [server for server in view.servers if server.life is Life.OPEN] or view.servers
    capacities = [server.capacity if server.capacity > 0 else REPLICA_CAPACITY for server in servers]
    mean = sum(capacities) / len(servers)
    tenants = Counter(each.tenant_id for each in new.slices if each.tenant_id)
    sold = [(tenant_keys(tenant_id)[0], rate) for tenant_id, rate in view.reserved.items()]
    ends = [*(each.first_key for each in new.slices[1:]), KEYS]
    for each, end, had in zip(new.slices, ends, inherited(old, new), strict=True):
        if each.tenant_id:
            mine = sum(loads[other.first_key] for other in new.slices if other.tenant_id == each.tenant_id)
            reserved, slices = view.reserved.get(each.tenant_id, 0), tenants[each.tenant_id]
        else:
            mine, slices = loads[each.first_key], 1
            reserved = sum(rate for key, rate in sold if each.first_key <= key < end)
        # Loads are told in whole milli-MU: what others leave may be a hair more than it looks.
        others = max(0, sum(loads.values()) - mine - len(loads))
        most = -(-limit(reserved, others, mean, len(servers)) // slices)
        if len(each.replica_ids) > max(len(had), most, min(SUBSET_MIN, len(servers))):
            where = f"slice {each.first_key:#x} of {each.tenant_id!r}"
            yield f"{where}: grew from {len(had)} to {len(each.replica_ids)} replicas, above its limit of {most}"


def wrong_with_change(old: Placement, new: Placement, view: View, now_ms: int, *, balance: bool) -> Iterator[str]:
    """What is wrong with how one placement followed another, in words.

    Args:
        old: The one before.
        new: The one after.
        view: What the round saw.
        now_ms: When.
        balance: Whether the round was a regular one.
    """
    if new.generation <= old.generation:
        yield f"generation {new.generation} does not follow {old.generation}"
    if new.generation.number != max(now_ms, old.generation.number + 1):
        yield f"number {new.generation.number} at {now_ms} ms after {old.generation.number}"
    seats = {server.replica_id: server.seat for server in view.servers}
    usable = {server.replica_id for server in view.servers if server.life is Life.OPEN} or seats.keys()
    named = {move.first_key for move in new.moves}
    loaded = sorted(load.first_key for told in view.loads.values() for load in told if load.rate > 0)
    cuts = [*sorted({each.first_key for each in (*old.slices, *new.slices)}), KEYS]
    had = {each.first_key: mine for each, mine in zip(new.slices, inherited(old, new), strict=True)}
    for key, before, after in parts(old, new):
        # Slices that are joined share what any of them had; beyond that every change needs its move.
        came, left = set(after.replica_ids) - had[after.first_key], set(before.replica_ids) - set(after.replica_ids)
        where = f"keys from {key:#x}, {before.replica_ids} to {after.replica_ids}"
        end = cuts[bisect_right(cuts, key)]
        busy = bisect_left(loaded, key) < bisect_left(loaded, end)
        if (came or left) and busy and after.first_key not in named:
            yield f"{where}: no move says why"
        if not balance and left & usable:
            yield f"{where}: a health round took {sorted(left & usable)} away"
        if not balance and len(came) > max(len(left), SUBSET_MIN - len(set(before.replica_ids) - left)):
            yield f"{where}: a health round added more than was lost"
    if not balance and any(move.cause in (*PAID, Cause.SHRINK) for move in new.moves):
        yield f"a health round moved for {sorted({move.cause.value for move in new.moves})}"


class Seats:
    """Remembers which seats frozen slices may have: those they had, and new ones only when none of these is left."""

    def __init__(self) -> None:
        self._allowed: dict[int, set[str]] = {}

    def wrong(self, old: Placement | None, new: Placement, view: View, now_ms: int) -> Iterator[str]:
        """Frozen slices with seats that they never had, in words; arguments as above."""
        allowed: dict[int, set[str]] = {}
        open_ = {server.seat for server in view.servers if server.life is Life.OPEN}
        unions = inherited(old, new) if old is not None else itertools.repeat(set[str]())
        for each, union in zip(new.slices, unions, strict=False):
            if each.frozen_until_ms <= now_ms:
                continue
            mine = {new.seats[replica_id] for replica_id in each.replica_ids}
            had = set(self._allowed.get(each.first_key, ()))
            if old is not None:
                before = slice_at(old, each.first_key)
                # Slices may be joined in the round that freezes them, not afterwards.
                members = before.replica_ids if before.frozen_until_ms else union
                held = {old.seats[replica_id] for replica_id in members}
                had |= self._allowed.get(before.first_key, set()) | held
                newcomer = each.tenant_id != "" and each.tenant_id != before.tenant_id  # placed from nothing
                if mine - had and held & open_ and not newcomer:
                    yield f"slice {each.first_key:#x}: frozen, and got {sorted(mine - had)} beside {sorted(had)}"
            allowed[each.first_key] = had | mine
        self._allowed = allowed


class Purse:
    """What may be spent on balance: a part of the load per round, and what was not spent is kept for a few.

    Attributes:
        saved: Left, mMU per minute.
    """

    def __init__(self) -> None:
        self.saved = 0.0

    def wrong(self, done: Round, view: View) -> Iterator[str]:
        """Says by how much a regular round moved more for balance than it may, in words.

        What replicas cannot serve is moved away at any price.
        """
        income = BUDGET * sum(done.slice_loads.values())
        self.saved = min(self.saved + income, SAVED_ROUNDS_MAX * income)
        spent = 0
        if done.placement is not None:
            free = drowning(done.placement, view, done.slice_loads)
            paid = [each for each in done.placement.moves if each.cause in PAID]
            spent = sum(
                each.load for each in paid if each.cause is not Cause.BALANCE or each.from_replica_id not in free
            )
        # Loads of slices and moves are rounded to whole milli-MU.
        rounding = 1e-9 * income + len(done.slice_loads) + (len(done.placement.moves) if done.placement else 0)
        if spent > self.saved + rounding:
            yield f"moved {spent} for balance, more than {self.saved:.0f}"
        self.saved = max(0.0, self.saved - spent)


def drowning(placement: Placement, view: View, loads: Mapping[int, int]) -> set[str]:
    """Replicas of which more was asked than they can serve before balance took from them, while others had room.

    Args:
        placement: After the round.
        view: What it saw.
        loads: Load of each slice, mMU per minute, by first key.
    """
    capacities = {each.replica_id: each.capacity if each.capacity > 0 else REPLICA_CAPACITY for each in view.servers}
    room = [each.replica_id for each in view.servers if each.life is Life.OPEN] or list(capacities)
    if sum(loads.values()) >= sum(capacities[replica_id] for replica_id in room):
        return set()
    asked = Counter[str]()
    for each in placement.slices:
        alive = [replica_id for replica_id in each.replica_ids if replica_id in capacities]
        there = sum(capacities[replica_id] for replica_id in alive)
        for replica_id in alive:
            asked[replica_id] += math.ceil(loads.get(each.first_key, 0) * capacities[replica_id] / there)
    for move in placement.moves:
        if move.cause is Cause.BALANCE:
            asked[move.from_replica_id] += move.load
    return {replica_id for replica_id, load in asked.items() if load > 0.99 * capacities.get(replica_id, math.inf)}
