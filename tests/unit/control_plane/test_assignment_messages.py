"""Placements as assignments and back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import FakeClock
from common.shard_map import GENERATION_MAX, KEYS, NUMBER_CONTINUED_MAX, Generation, ShardMap
from control_plane.assignment_messages import MOVES_MAX, from_bytes, from_message, to_message
from control_plane.assignment_recovery import renewed
from control_plane.core.sharding.values import Cause, Move, Placement, Slice
from data_plane.router.assignments import Assignments
from fairlead.sharding.v1 import sharding_pb2

WALL_NS = 1_700_000_000_123_456_789
REPLICAS = tuple(f"replica-{number}" for number in range(6))
TENANTS = st.sampled_from(["", "acme", "globex"])
AMOUNTS = st.integers(0, 2**40)
TIMES_MS = st.sampled_from([0, 1, 1_700_000_000_123])


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    firsts = sorted({0, *draw(st.lists(st.integers(1, KEYS - 1), max_size=6))})
    subset = st.sets(st.sampled_from(REPLICAS), min_size=1).map(lambda names: tuple(sorted(names)))
    slices = tuple(
        Slice(first, draw(subset), draw(TENANTS), draw(AMOUNTS), draw(TIMES_MS), draw(TIMES_MS)) for first in firsts
    )
    members = sorted({replica_id for each in slices for replica_id in each.replica_ids})
    name = st.sampled_from(["", *REPLICAS])
    move = st.builds(Move, st.sampled_from(firsts), TENANTS, name, name, st.sampled_from(Cause), AMOUNTS, AMOUNTS)
    return Placement(
        generation=Generation(draw(st.integers(1, GENERATION_MAX - 1)), draw(st.integers(0, GENERATION_MAX))),
        slices=slices,
        seats={replica_id: draw(st.sampled_from([replica_id, f"seat-{replica_id}"])) for replica_id in members},
        reason=draw(st.text(st.characters(codec="utf-8"), max_size=20)),
        moves=tuple(draw(st.lists(move, max_size=MOVES_MAX))),
        moved=draw(AMOUNTS),
    )


@given(placements())
def test_a_placement_survives_the_way_through_the_store(placement: Placement) -> None:
    """Proves the round trip exact, through bytes, and that routers can read every message that is written."""
    message = from_bytes(to_message("m", placement, WALL_NS).SerializeToString())
    assert from_message(message) == placement
    assert message.compute_time.ToNanoseconds() == WALL_NS
    shard_map = ShardMap(message)
    assert [shard_map.subset(each.first_key) for each in placement.slices] == [s.replica_ids for s in placement.slices]


def whole() -> sharding_pb2.Assignment:
    slices = (Slice(0, ("a", "b")), Slice(100, ("b", "c"), "acme", 5))
    return to_message("m", Placement(Generation(1, 2), slices, {"a": "a", "b": "s", "c": "c"}), WALL_NS)


def test_only_the_largest_moves_are_told() -> None:
    """Proves that an assignment stays small however much it moved."""
    move = Move(0, "", "a", "b", Cause.BALANCE, 1, 0)
    placement = Placement(Generation(1, 2), (Slice(0, ("a",)),), {"a": "a"}, moves=(move,) * (MOVES_MAX + 1))
    assert len(to_message("m", placement, 0).moves) == MOVES_MAX


DAMAGE: dict[str, Callable[[sharding_pb2.Assignment], object]] = {
    "old form": lambda m: m.ClearField("slices"),
    "gap at the beginning": lambda m: m.slices.pop(0),
    "out of order": lambda m: m.slices.reverse(),
    "unknown replica": lambda m: m.slices[1].replicas.append(7),
    "no replicas": lambda m: m.slices[1].ClearField("replicas"),
    "no generation": lambda m: m.ClearField("generation"),
    "no room for successors": lambda m: setattr(m.generation, "number", 2**64 - 1),
    "no incarnation after it": lambda m: m.generation.MergeFrom(Generation(GENERATION_MAX, GENERATION_MAX).message()),
    "frozen for ever": lambda m: setattr(m.slices[1].frozen_until, "seconds", 1 << 61),
    "shrinkable never": lambda m: setattr(m.slices[1].shrinkable_since, "seconds", 253_402_300_800),
    "replica twice": lambda m: m.replica_ids.__setitem__(1, "a"),
    "nameless replica": lambda m: m.replica_ids.__setitem__(1, ""),
    "seats missing": lambda m: m.seats.pop(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_assignments_read_as_none(damage: Callable[[sharding_pb2.Assignment], object]) -> None:
    """Proves that no damaged assignment becomes a placement, and that it takes the damage."""
    message = whole()
    assert from_message(message) is not None
    damage(message)
    assert from_message(message) is None


@given(
    st.integers(1, GENERATION_MAX - 1),
    st.one_of(st.integers(0, GENERATION_MAX), st.sampled_from([NUMBER_CONTINUED_MAX, GENERATION_MAX])),
    st.integers(0, 2**42),
)
def test_what_is_taken_has_a_successor_that_is_taken(incarnation: int, number: int, now_ms: int) -> None:
    """Proves that whatever generation is read, what is written after it is newer, and holders and the sharder take it;
    also at the end of time of a slice."""
    message = whole()
    message.generation.MergeFrom(Generation(incarnation, number).message())
    message.slices[1].frozen_until.seconds = 253_402_300_799
    message.slices[1].frozen_until.nanos = 2**31 - 1
    placement = from_message(message)
    assert placement is not None
    after = from_bytes(to_message("m", renewed(placement, now_ms), WALL_NS).SerializeToString())
    assert Generation.of(after.generation) > placement.generation
    assert from_message(after) is not None
    book = Assignments(FakeClock())
    assert book.take(message, "store")
    assert book.take(after, "store")


def test_unreadable_bytes_are_no_assignment() -> None:
    """Proves that bytes which are no message at all read as none."""
    assert from_message(from_bytes(b"\xff\xff\xff")) is None


def test_nonsense_for_people_does_not_cost_the_placement() -> None:
    """Proves that negative amounts read as none, and moves of unknown causes are left out."""
    message = whole()
    message.moved_milli_mu_per_minute = message.slices[1].load_milli_mu_per_minute = -5
    message.slices[1].frozen_until.seconds = -(2**40)
    message.moves.add(first_key=0, to_replica_id="a")
    message.moves.add(first_key=0, cause=99)
    placement = from_message(message)
    assert placement is not None
    assert (placement.moved, placement.slices[1].load, placement.slices[1].frozen_until_ms) == (0, 0, 0)
    assert placement.moves == ()
