"""The first sharder."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from control_plane.core.assign import Candidate, Placement, StormWait, assign, subset_size
from model_units.units import MilliModelUnitsPerMinute as Rate


def fleet(count: int, capacity: int = 100_000) -> list[Candidate]:
    return [Candidate(f"r{i:02}", f"seat-{i}", Rate(capacity)) for i in range(count)]


def place(candidates: list[Candidate], workloads: dict[str, int], previous: Placement | None = None) -> Placement:
    rates = {tenant: Rate(rate) for tenant, rate in workloads.items()}
    placement = assign("m", candidates, rates, previous, incarnation=5, now_ms=1_000)
    assert placement is not None
    return placement


def test_subset_size_is_the_reservation_over_half_a_replica_within_bounds() -> None:
    """Proves clamp(ceil(MU / (0.5 C)), 3, all): the worked example, the lower bound and the upper one."""
    assert subset_size(Rate(300_000), fleet(16)) == 6
    assert subset_size(Rate(300_001), fleet(16)) == 7
    assert subset_size(Rate(1), fleet(16)) == 3
    assert subset_size(Rate(10**9), fleet(16)) == 16
    assert subset_size(Rate(0), fleet(2)) == 2
    assert subset_size(Rate(100_000), fleet(16, capacity=0)) == 3


def test_first_placement() -> None:
    """Proves shape: sorted members, everything as the default, the epoch as incarnation and the time as number."""
    placement = place(fleet(8), {"a": 50_000, "b": 200_000})
    assert placement.default == tuple(f"r{i:02}" for i in range(8))
    assert {tenant: len(members) for tenant, members in placement.subsets.items()} == {"a": 3, "b": 4}
    assert all(list(members) == sorted(set(members)) for members in placement.subsets.values())
    assert (placement.incarnation, placement.number) == (5, 1_000)


def test_nothing_changes_nothing_is_written() -> None:
    """Proves that an unchanged fleet gives no new generation, in whatever order it is seen."""
    candidates, workloads = fleet(8), {"a": Rate(50_000)}
    first = place(candidates, {"a": 50_000})
    assert assign("m", candidates[::-1], workloads, first, incarnation=9, now_ms=2_000) is None


def test_an_empty_view_keeps_the_last_placement() -> None:
    """Proves that zero READY replicas are not read as "everyone is dead"."""
    first = place(fleet(4), {"a": 1})
    assert assign("m", [], {"a": Rate(1)}, first, incarnation=9, now_ms=2_000) is None


def test_numbers_grow_even_when_the_clock_goes_back() -> None:
    """Proves max(now, previous + 1) and that the incarnation stays while there is a predecessor."""
    first = place(fleet(4), {"a": 1})
    later = assign("m", fleet(5), {"a": Rate(1)}, first, incarnation=9, now_ms=10)
    assert later is not None
    assert (later.incarnation, later.number) == (5, 1_001)
    assert later.reason == "1 replica came"


def test_a_replacement_on_the_same_seat_takes_the_same_workloads() -> None:
    """Proves stickiness over a restart: new replica id, same seat, same subsets."""
    candidates = fleet(16)
    workloads = {f"t{i}": 50_000 for i in range(40)}
    before = place(candidates, workloads)
    restarted = [replace(c, replica_id="new") if c.replica_id == "r03" else c for c in candidates]
    after = place(restarted, workloads, before)
    for tenant, members in before.subsets.items():
        assert {"new" if member == "r03" else member for member in members} == set(after.subsets[tenant])


def test_workloads_spread_over_the_fleet() -> None:
    """Proves balance: of 400 equal workloads on 16 replicas, none serves more than twice its share."""
    placement = place(fleet(16), {f"t{i}": 50_000 for i in range(400)})
    counts = [sum(f"r{i:02}" in members for members in placement.subsets.values()) for i in range(16)]
    assert max(counts) <= 2 * 400 * 3 / 16
    assert min(counts) >= 400 * 3 / 16 / 2


@given(st.integers(2, 24), st.integers(0, 23), st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_a_replica_that_leaves_moves_only_its_own_workloads(count: int, gone: int, rates: list[int]) -> None:
    """Proves minimal movement: every workload keeps all of its members that are still there."""
    candidates = fleet(count)
    left = [candidate for candidate in candidates if candidate.replica_id != f"r{gone % count:02}"]
    workloads = {f"t{i}": rate for i, rate in enumerate(rates)}
    before, after = place(candidates, workloads), place(left, workloads)
    for tenant, members in before.subsets.items():
        kept = set(members) - {f"r{gone % count:02}"}
        assert kept <= set(after.subsets[tenant])


@given(st.integers(3, 24), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_larger_reservation_keeps_the_smaller_one_s_replicas(count: int, small: int, more: int) -> None:
    """Proves that growing keeps warm caches: the larger subset contains the smaller."""
    before = place(fleet(count), {"a": small})
    after = place(fleet(count), {"a": small + more})
    assert set(before.subsets["a"]) <= set(after.subsets["a"])


def test_removals_are_collected_for_a_moment() -> None:
    """Proves the storm wait: removals wait from the first one on, additions do not wait at all."""
    storm = StormWait(1_000)
    assert storm.remaining_ns(False, 0) == 0
    assert storm.remaining_ns(True, 100) == 1_000
    assert storm.remaining_ns(True, 700) == 400
    assert storm.remaining_ns(True, 1_100) == 0
    assert storm.remaining_ns(True, 5_000) == 1_000, "the next storm"
    assert storm.remaining_ns(False, 5_500) == 0, "they came back"
    assert storm.remaining_ns(True, 9_000) == 1_000
