"""Splitting one quota over routers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ratelimiter.core.fill import split_quota


def test_examples() -> None:
    """Proves the rule: wants first, max-min when short, the rest in equal parts."""
    assert split_quota(100, []) == []
    assert split_quota(100, [0, 0]) == [50, 50]
    assert split_quota(100, [60, 20]) == [70, 30]
    assert split_quota(100, [500, 20]) == [80, 20]
    assert split_quota(90, [500, 500, 10]) == [40, 40, 10]
    assert split_quota(100, [1000, 0]) == [99, 1], "an idle router keeps a foot in the door"
    assert split_quota(0, [5, 5]) == [0, 0]


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**12), min_size=1, max_size=9))
def test_everything_is_given_and_wants_are_served_fairly(quota: int, wants: list[int]) -> None:
    """Proves: the sum is the quota; nobody below its want has less than another that gets more, up to rounding."""
    shares = split_quota(quota, wants)
    assert sum(shares) == quota
    assert min(shares) >= 0
    if sum(wants) <= quota:
        idle = quota // (50 * len(wants)) + len(wants)
        assert all(share >= want - idle for share, want in zip(shares, wants, strict=True))
    for share, want in zip(shares, wants, strict=True):
        if share < want:
            assert all(other <= share + len(wants) for other in shares)
