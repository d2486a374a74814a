"""Sums over all routers, and when a change is told before its turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.demand import DemandBook
from ratelimiter.core.values import Want, Workload

W, V = Workload("m", "a"), Workload("m", "b")


def want(rate: int) -> Want:
    return Want(Rate(rate), Rate(rate // 2), MilliModelUnits(rate // 4))


@pytest.mark.parametrize(
    ("before", "after", "notable"),
    [
        (80_000, 80_000, False),
        (80_000, 88_000, False),
        (80_000, 92_000, True),
        (80_000, 60_000, True),
        (0, 5_000, True),
        (5_000, 0, True),
        (1, 900, False),
    ],
)
def test_a_notable_change_is_an_eighth_and_a_hundredth_of_a_replica(before: int, after: int, notable: bool) -> None:
    """Proves what is told before its turn, against what was told last and not against the last report."""
    book = DemandBook()
    book.replace({}, {W: want(before), V: want(1_000)})
    book.tell()
    middle = {W: want((before + after) // 2), V: want(1_000)}
    book.replace({W: want(before), V: want(1_000)}, middle)
    book.replace(middle, {W: want(after), V: want(1_000)})
    assert book.notable == notable
    book.tell()
    assert not book.notable


reports = st.dictionaries(st.sampled_from([W, V]), st.integers(0, 10**12).map(want))


@given(st.lists(st.tuples(st.integers(0, 2), reports), max_size=20))
def test_sums_are_those_of_the_newest_reports(history: list[tuple[int, dict[Workload, Want]]]) -> None:
    """Proves that moving sums by differences never drifts from adding up."""
    book, newest = DemandBook(), dict[int, dict[Workload, Want]]()
    for router, wants in history:
        book.replace(newest.get(router, {}), wants)
        newest[router] = wants
    naive: dict[Workload, tuple[int, ...]] = {}
    for wants in newest.values():
        for workload, each in wants.items():
            before = naive.get(workload, (0, 0, 0))
            naive[workload] = tuple(a + b for a, b in zip(before, (each.wants, each.used, each.held), strict=True))
    sums = {workload: (each.wants, each.used, each.held) for workload, each in book.sums().items()}
    assert sums == {workload: amounts for workload, amounts in naive.items() if any(amounts)}
