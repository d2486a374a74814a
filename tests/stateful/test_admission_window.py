"""The promise of one window: under a steady lease, what is admitted and settled stays below rate x window + burst."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.router.core.holds import BucketKey, Hold, Holds, LeaseTerms

SECOND = 1_000_000_000
KEY: BucketKey = ("a", "m")

traffic = st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(1, 2_000)), min_size=1, max_size=150)


@settings(max_examples=100, deadline=None)
@given(traffic=traffic, rate=st.integers(600, 120_000), burst=st.integers(500, 20_000))
def test_admitted_in_any_window_is_at_most_rate_times_window_plus_burst(
    traffic: list[tuple[int, int]], rate: int, burst: int
) -> None:
    """Every request settles at its estimate; every window between two admissions keeps the bound, exactly."""
    holds = Holds()
    holds.apply({KEY: LeaseTerms(rate, burst, rate)}, expires_ns=10**15, now_ns=0)
    now_ns, admitted = 0, []
    for pause_ns, amount in traffic:
        now_ns += pause_ns
        answer = holds.hold(KEY, amount, now_ns)
        if isinstance(answer, Hold):
            admitted.append((now_ns, amount))
            holds.settle(answer, amount, now_ns)
    for start, (from_ns, _) in enumerate(admitted):
        total = 0
        for until_ns, amount in admitted[start:]:
            total += amount
            assert total * 60 * SECOND <= rate * (until_ns - from_ns) + burst * 60 * SECOND
