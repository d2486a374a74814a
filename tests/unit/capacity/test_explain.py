"""The explanation of a quota: numbers that add up, sentences that say them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from capacity.core.allocate import allocate
from capacity.core.explain import explain
from capacity.core.live import LiveLedgers
from capacity.core.phrases import amount
from capacity.core.values import PPM, Demand, Headroom, Model, ModelLedger, Replica, Reservation
from common.clock import NS_PER_S, MonotonicNs
from model_units.units import MilliModelUnitsPerMinute as Rate

RATES = st.integers(0, 500_000) | st.integers(0, 10**19)
NAMES = st.text("abc", min_size=1, max_size=2)
RESERVATIONS = st.lists(
    st.builds(Reservation, NAMES, st.just("m"), RATES, RATES, st.integers(1, 9), st.integers(1, 1000)),
    max_size=8,
    unique_by=lambda r: r.tenant_id,
)
DEMANDS = st.dictionaries(NAMES, st.builds(Demand, RATES, RATES), max_size=8)


def check(ledger: ModelLedger) -> None:
    """Every number is where it belongs, and they add up."""
    for quota in ledger.quotas:
        assert quota.granted == quota.guaranteed - quota.lent + quota.borrowed + quota.idle
        assert 0 <= quota.lent <= quota.guaranteed - quota.kept
        assert 0 <= quota.kept <= quota.guaranteed <= quota.reserved
        assert 0 <= quota.borrowed <= max(0, quota.counted - quota.guaranteed)
        assert 0 <= quota.idle <= quota.ceiling
        assert 0 <= quota.counted <= quota.ceiling
        steps = explain(ledger, quota)
        assert amount(quota.granted) in steps[-1]
        assert all(step.endswith(".") for step in steps)
    lent = sum(quota.lent for quota in ledger.quotas)
    borrowed = sum(quota.borrowed for quota in ledger.quotas)
    unsold = ledger.have - sum(quota.guaranteed for quota in ledger.quotas)
    assert lent == max(0, borrowed - unsold), "what is lent is what unsold capacity does not serve"


@given(st.lists(RATES, max_size=4), RESERVATIONS, DEMANDS)
def test_numbers_add_up_to_the_quota(
    capacities: list[int], reservations: list[Reservation], demand: dict[str, Demand]
) -> None:
    """Proves that the explanation is the computation: its numbers add up to what is granted, exactly."""
    fleet = [Replica(f"r{n}", "m", Rate(capacity), True) for n, capacity in enumerate(capacities)]
    (ledger,) = allocate(fleet, [Model("m", PPM)], reservations, {("m", t): d for t, d in demand.items()})
    check(ledger)


@given(RESERVATIONS, st.lists(DEMANDS, min_size=2, max_size=5))
def test_numbers_add_up_over_time(reservations: list[Reservation], demands: list[dict[str, Demand]]) -> None:
    """Proves the same where quotas of an earlier round stand."""
    live = LiveLedgers()
    live.set_model("m", Model("m", PPM))
    live.set_replica("r", Replica("r", "m", Rate(300_000), True))
    for reservation in reservations:
        live.set_reservation("m", reservation.tenant_id, reservation)
    for second, demand in enumerate(demands):
        live.set_demand({"m": demand})
        ledger = live.compute("m", MonotonicNs(second * NS_PER_S))
        assert ledger is not None
        check(ledger)


def test_every_step_has_its_sentence() -> None:
    """Proves the sentences on the worked example of the allocator: A lends, B borrows."""
    fleet = [Replica(f"r{n}", "m", Rate(100_000), True, f"h{n}") for n in range(3)]
    reservations = [Reservation("a", "m", Rate(150_000), Rate(0)), Reservation("b", "m", Rate(50_000), Rate(240_000))]
    demand = {("m", "a"): Demand(Rate(20_000), Rate(0)), ("m", "b"): Demand(Rate(200_100), Rate(0))}
    (ledger,) = allocate(fleet, [Model("m", 800_000, Headroom.HOST)], reservations, demand)
    lender, borrower = (explain(ledger, quota) for quota in ledger.quotas)
    assert lender == (
        "3 ready replicas at 80 % target utilisation make 240 MU/min.",
        "Of that 160 MU/min may be sold: host h0 (1 replica, 80 MU/min) may be lost, and is only lent.",
        "It reserved 150 MU/min, which live capacity covers.",
        "It wants 20 MU/min, counted as 20.48 MU/min (rounded up, at its height lately).",
        "Of its guarantee it keeps 75 MU/min whatever others want: twice its wants, at least half. "
        "Of the other 75 MU/min, 75 MU/min is lent, and back as soon as it is wanted.",
        "Granted: 150 MU/min guaranteed - 75 MU/min lent = 75 MU/min, of at most 150 MU/min.",
    )
    assert borrower[-2:] == (
        "Of the 154.8 MU/min it wants above its guarantee, 115 MU/min is lent to it: the rest went to others by "
        "weight (its own is 1).",
        "Granted: 50 MU/min guaranteed + 115 MU/min borrowed = 165 MU/min, of at most 240 MU/min.",
    )


def test_a_shortfall_is_explained_with_tier_and_weight() -> None:
    """Proves that a cut reservation says how much is missing, and a doubted ledger that it is doubted."""
    reservations = [Reservation("a", "m", Rate(60_000), Rate(0), 1), Reservation("b", "m", Rate(60_000), Rate(0), 5, 3)]
    (ledger,) = allocate([Replica("r", "m", Rate(100_000), True)], [Model("m", PPM)], reservations, {})
    steps = explain(ledger, ledger.quotas[1], doubted=True)
    assert (
        "It reserved 60 MU/min, of which live capacity covers 40 MU/min: 120 MU/min are sold, and 20 MU/min are "
        "missing, shared by tier (its own is 5), then by weight (its own is 3)."
    ) in steps
    assert "not believed yet" in steps[-1]
