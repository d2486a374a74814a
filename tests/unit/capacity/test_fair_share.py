"""Weighted max-min sharing in whole units."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from capacity.core.columns import column
from capacity.core.fair_share import WEIGHT_MAX, Claim, fair_share, fair_shares

CLAIMS = st.lists(st.builds(Claim, st.integers(0, 10**12), st.integers(1, WEIGHT_MAX)), max_size=12)


def test_worked_example() -> None:
    """Proves the example of the module's docstring."""
    assert fair_share(100, [Claim(10), Claim(200), Claim(200, 2)]) == [10, 30, 60]


def test_nobody_and_nothing() -> None:
    """Proves that no claims, no amount and a negative amount are ordinary inputs."""
    assert fair_share(5, []) == []
    assert fair_share(0, [Claim(3)]) == [0]
    assert fair_share(-7, [Claim(3)]) == [0]


def test_rounding_goes_to_the_earlier_of_equals() -> None:
    """Proves that the last unit is neither lost nor given at random."""
    assert fair_share(5, [Claim(10), Claim(10), Claim(10)]) == [2, 2, 1]


@given(st.integers(0, 10**13), CLAIMS)
def test_sum_and_limits_are_exact(amount: int, claims: list[Claim]) -> None:
    """Proves that everything that can be given is given, and no claim is overfilled."""
    shares = fair_share(amount, claims)
    assert sum(shares) == min(amount, sum(claim.limit for claim in claims))
    assert all(0 <= share <= claim.limit for share, claim in zip(shares, claims, strict=True))


@given(st.integers(0, 10**6), CLAIMS)
def test_no_unsatisfied_claim_is_behind_another(amount: int, claims: list[Claim]) -> None:
    """Proves max-min fairness: whoever wants more has, per weight, no less than anyone, up to one unit of rounding."""
    shares = fair_share(amount, claims)
    for mine, claim in zip(shares, claims, strict=True):
        if mine == claim.limit:
            continue
        for other, rival in zip(shares, claims, strict=True):
            assert (other - 1) * claim.weight < (mine + 1) * rival.weight


def fluid(amount: int, claims: list[Claim]) -> list[Fraction]:
    """The naive model: water rises in all open vessels alike, in fractions, until the next one is full."""
    shares = [Fraction(0)] * len(claims)
    left = Fraction(max(0, amount))
    while left > 0 and (rising := [i for i, claim in enumerate(claims) if shares[i] < claim.limit]):
        width = sum(claims[i].weight for i in rising)
        rise = min(left / width, *((claims[i].limit - shares[i]) / claims[i].weight for i in rising))
        for i in rising:
            shares[i] += rise * claims[i].weight
        left -= rise * width
    return shares


@given(st.integers(0, 10**13), CLAIMS)
def test_agrees_with_water_to_the_unit(amount: int, claims: list[Claim]) -> None:
    """Proves that every share is the exact one, rounded to a whole unit up or down."""
    for share, exact in zip(fair_share(amount, claims), fluid(amount, claims), strict=True):
        assert abs(share - exact) < 1


@given(st.integers(-5, 10**13), CLAIMS)
def test_columns_give_the_same_shares(amount: int, claims: list[Claim]) -> None:
    """Proves that the fast version is the same function as the readable one."""
    assert columns(amount, claims) == fair_share(amount, claims)


@given(
    st.integers(0, 10**24), st.lists(st.builds(Claim, st.integers(0, 10**21), st.integers(1, WEIGHT_MAX)), max_size=8)
)
def test_columns_are_exact_beyond_64_bits(amount: int, claims: list[Claim]) -> None:
    """Proves that huge values are shared exactly, not modulo a machine word."""
    assert columns(amount, claims) == fair_share(amount, claims)


def test_columns_are_exact_for_many_heavy_claims() -> None:
    """Proves that sums and products of thousands of the largest storable rates do not overflow."""
    claims = [Claim(10**12 - n, WEIGHT_MAX - n % 3) for n in range(12_000)]
    amount = sum(claim.limit for claim in claims) - 1
    assert columns(amount, claims) == fair_share(amount, claims)


def columns(amount: int, claims: list[Claim]) -> list[int]:
    limits, weights = column([claim.limit for claim in claims]), column([claim.weight for claim in claims])
    shares: list[int] = fair_shares(amount, limits, weights).tolist()
    return shares
