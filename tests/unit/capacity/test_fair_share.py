"""Weighted max-min sharing in whole units."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capacity.core.fair_share import WEIGHT_MAX, Claim, fair_share

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


def pour(amount: int, claims: list[Claim]) -> list[int]:
    """The naive model: one unit at a time to whoever has least per weight and room."""
    shares = [0] * len(claims)
    for _ in range(amount):
        open_claims = [i for i, claim in enumerate(claims) if shares[i] < claim.limit]
        if not open_claims:
            break
        shares[min(open_claims, key=lambda i: (shares[i] / claims[i].weight, i))] += 1
    return shares


@given(
    st.integers(0, 60),
    st.lists(st.builds(Claim, st.integers(0, 20), st.integers(1, 4)), max_size=6),
)
def test_agrees_with_pouring_unit_by_unit(amount: int, claims: list[Claim]) -> None:
    """Proves agreement with the naive model, up to the unit that rounding may place differently."""
    exact, naive = fair_share(amount, claims), pour(amount, claims)
    assert sum(exact) == sum(naive)
    assert all(abs(a - b) <= 1 for a, b in zip(exact, naive, strict=True))
