"""Steady counting of wants."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capacity.core.columns import column
from capacity.core.wants import HOLD_NS, SteadyWants, round_up
from common.clock import NS_PER_S, MonotonicNs


def count(steady: SteadyWants, seconds: float, *wants: int) -> list[int]:
    tenants = tuple(f"t{n}" for n in range(len(wants)))
    counted: list[int] = steady.count(tenants, column(wants), MonotonicNs(round(seconds * NS_PER_S))).tolist()
    return counted


@given(st.lists(st.integers(0, 10**12) | st.integers(0, 10**25), max_size=5))
def test_rounded_up_by_at_most_a_sixteenth(wants: list[int]) -> None:
    """Proves that nobody is counted for less than it wants, nor for more than 1/16 above, at any size."""
    for want, counted in zip(wants, round_up(column(wants)).tolist(), strict=True):
        assert want <= counted <= want + want // 16
    assert round_up(column(wants)).tolist() == round_up(column(wants).astype(object)).tolist()


def test_rises_count_at_once() -> None:
    """Proves that an owner that comes back is counted in the very round that hears of it."""
    steady = SteadyWants()
    assert count(steady, 0, 0) == [0]
    assert count(steady, 0.2, 1_000) == [1_024]
    assert count(steady, 0.4, 5_000) == [5_120]


def test_noise_counts_as_its_height() -> None:
    """Proves that wants that move by 5 % to both sides are counted as one number for a minute on end."""
    steady = SteadyWants()
    noise = (1.0, 0.95, 1.05, 0.97, 1.03, 0.96, 1.01, 1.04)
    seen = [count(steady, second, round(10_000 * noise[second % 8]))[0] for second in range(80)]
    assert set(seen[20:]) == {10_752}


def test_a_fall_counts_when_it_lasts() -> None:
    """Proves that wants which stay lower are counted lower after the hold, and not before."""
    steady = SteadyWants()
    count(steady, 0, 10_000)
    assert count(steady, 1, 7_000) == [10_240]
    count(steady, 11, 7_000)
    assert count(steady, 21, 7_000) == [7_680]


def test_a_collapse_counts_at_once() -> None:
    """Proves that a tenant that stops holds nothing it could lend."""
    steady = SteadyWants()
    count(steady, 0, 10_000)
    assert count(steady, 1, 100) == [100]


def test_time_alone_makes_a_fall_due() -> None:
    """Proves that a fall is not forgotten when nothing else happens any more."""
    steady = SteadyWants()
    count(steady, 0, 10_000)
    count(steady, 1, 7_000)
    assert not steady.is_due(MonotonicNs(HOLD_NS - 1))
    assert steady.is_due(MonotonicNs(HOLD_NS))
    count(steady, 10, 7_000)
    assert steady.is_due(MonotonicNs(2 * HOLD_NS))
    assert count(steady, 20, 7_000) == [7_680]
    assert not steady.is_due(MonotonicNs(3 * HOLD_NS))


def test_tenants_come_and_go() -> None:
    """Proves that what is counted stays with its tenant when others are added or removed."""
    steady, now = SteadyWants(), MonotonicNs(0)
    steady.count(("a", "c"), column([1_000, 2_000]), now)
    assert steady.count(("a", "b", "c"), column([990, 10, 1_990]), now).tolist() == [1_024, 10, 2_048]
    assert steady.count(("c",), column([1_980]), now).tolist() == [2_048]
