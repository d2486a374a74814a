"""The allocator: capacity, reservations and demand become quotas."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity.core.allocate import (
    PPM,
    Demand,
    Model,
    ModelLedger,
    Replica,
    Reservation,
    allocate,
    ceiling_of,
    utilization_ppm,
)
from capacity.core.plan import plan_reservation
from model_units.units import MilliModelUnitsPerMinute as Rate

FULL = Model("m", PPM)


def fleet(*capacities: int, model_id: str = "m", ready: bool = True) -> list[Replica]:
    return [Replica(f"{model_id}-{i}-{ready}", model_id, Rate(c), ready) for i, c in enumerate(capacities)]


def reserve(tenant: str, reserved: int, ceiling: int = 0, *, tier: int = 5, weight: int = 1) -> Reservation:
    return Reservation(tenant, "m", Rate(reserved), Rate(ceiling), tier, weight)


def wants(**rates: int) -> dict[tuple[str, str], Demand]:
    return {("m", tenant): Demand(Rate(rate), Rate(rate // 2)) for tenant, rate in rates.items()}


Demands = Mapping[tuple[str, str], Demand]


def one(replicas: list[Replica], reservations: list[Reservation], demand: Demands) -> ModelLedger:
    (ledger,) = allocate(replicas, [FULL], reservations, demand)
    return ledger


def granted(ledger: ModelLedger) -> dict[str, int]:
    return {quota.tenant_id: quota.granted for quota in ledger.quotas}


def guaranteed(ledger: ModelLedger) -> dict[str, int]:
    return {quota.tenant_id: quota.guaranteed for quota in ledger.quotas}


def test_have_counts_ready_replicas_at_target_utilization() -> None:
    """Proves the definition of have: ready capacity times target utilisation, exactly."""
    replicas = [*fleet(100_000, 100_000), *fleet(100_000, ready=False), *fleet(50_000, model_id="other")]
    (ledger,) = allocate(replicas, [Model("m", 800_000)], [], {})
    assert (ledger.replicas_ready, ledger.have) == (2, 160_000)


def test_reservations_that_fit_are_guaranteed_in_full() -> None:
    """Proves that without a shortfall everyone's guarantee is the reservation."""
    ledger = one(fleet(100_000), [reserve("a", 60_000), reserve("b", 40_000)], {})
    assert guaranteed(ledger) == {"a": 60_000, "b": 40_000}
    assert ledger.shortfall == 0


def test_shortfall_is_shared_by_tier_then_weight_and_reported() -> None:
    """Proves that tier 1 is served first, the rest is shared by weight, and the gap has a number."""
    reservations = [
        reserve("first", 50_000, tier=1),
        reserve("heavy", 60_000, weight=2),
        reserve("light", 60_000),
        reserve("last", 30_000, tier=9),
    ]
    ledger = one(fleet(80_000), reservations, {})
    assert guaranteed(ledger) == {"first": 50_000, "heavy": 20_000, "light": 10_000, "last": 0}
    assert (ledger.sold, ledger.shortfall) == (200_000, 120_000)


def test_spare_goes_to_those_who_want_it_up_to_their_ceiling() -> None:
    """Proves that unsold capacity is shared by weighted max-min over wants above the guarantee."""
    reservations = [reserve("a", 20_000, 100_000), reserve("b", 20_000, 35_000)]
    reservations.append(reserve("c", 20_000, 100_000, weight=3))
    ledger = one(fleet(160_000), reservations, wants(a=160_000, b=160_000, c=160_000))
    assert granted(ledger) == {"a": 20_000 + 21_250, "b": 35_000, "c": 20_000 + 63_750}


def test_idle_spare_is_handed_out_before_anyone_asks() -> None:
    """Proves that a tenant with a ceiling can burst without a round trip when nobody else wants the capacity."""
    ledger = one(fleet(100_000), [reserve("a", 20_000, 70_000), reserve("b", 10_000)], {})
    assert granted(ledger) == {"a": 70_000, "b": 10_000}


def test_unused_guarantee_is_lent_and_comes_back() -> None:
    """Proves lending: the worked example of the module, then the owner's return in the next round."""
    reservations = [reserve("a", 150_000), reserve("b", 50_000, 240_000)]
    replicas = fleet(240_000)
    assert granted(one(replicas, reservations, wants(a=20_000, b=200_000))) == {"a": 75_000, "b": 165_000}
    assert granted(one(replicas, reservations, wants(a=150_000, b=200_000))) == {"a": 150_000, "b": 90_000}


def test_nothing_is_taken_from_an_owner_that_nobody_needs() -> None:
    """Proves that an idle guarantee stays whole while nobody wants it."""
    assert granted(one(fleet(100_000), [reserve("a", 100_000), reserve("b", 0, 50_000)], {})) == {"a": 100_000, "b": 0}


def test_tenant_without_reservation_lives_on_spare() -> None:
    """Proves best effort: nothing guaranteed, something granted while there is room."""
    ledger = one(fleet(100_000), [reserve("a", 80_000), reserve("b", 0, 90_000)], wants(a=80_000, b=90_000))
    assert guaranteed(ledger) == {"a": 80_000, "b": 0}
    assert granted(ledger) == {"a": 80_000, "b": 20_000}


def test_model_without_replicas_reports_everything_as_shortfall() -> None:
    """Proves that no live capacity means zeros and a target, not an error or a missing model."""
    ledger = one([], [reserve("a", 80_000, 90_000)], wants(a=10_000))
    assert (ledger.have, ledger.shortfall, granted(ledger)) == (0, 80_000, {"a": 0})
    assert (ledger.target, ledger.floor) == (80_000, 80_000)


def test_unknown_models_are_left_out() -> None:
    """Proves that a replica or a reservation of a deleted model changes nothing."""
    replicas = [*fleet(100_000), *fleet(100_000, model_id="gone")]
    ledgers = allocate(replicas, [FULL], [Reservation("a", "gone", Rate(5), Rate(5))], {})
    assert [(ledger.model_id, ledger.have, ledger.quotas) for ledger in ledgers] == [("m", 100_000, ())]


def test_target_covers_reservations_and_demand_at_target_utilization() -> None:
    """Proves target = max(sold, wanted up to ceilings) / utilisation rounded up, floor = sold / utilisation."""
    reservations = [reserve("a", 30_000, 50_000)]
    (idle,) = allocate(fleet(100_000), [Model("m", 700_000)], reservations, {})
    (busy,) = allocate(fleet(100_000), [Model("m", 700_000)], reservations, wants(a=900_000))
    assert (idle.target, idle.floor) == (42_858, 42_858)
    assert (busy.target, busy.floor) == (71_429, 42_858)


@pytest.mark.parametrize(("stored", "ppm"), [(0.0, 800_000), (0.699999988079071, 700_000), (1.0, PPM), (1e-9, 1)])
def test_target_utilization_is_read_exactly(stored: float, ppm: int) -> None:
    """Proves that a 32-bit float in the model's record does not cost a milli-MU."""
    assert utilization_ppm(stored) == ppm


RATES = st.integers(0, 500_000)
RESERVATIONS = st.lists(
    st.builds(Reservation, st.text("abcdefgh", min_size=1, max_size=3), st.just("m"), RATES, RATES,
              st.integers(1, 9), st.integers(1, 1000)),
    max_size=8, unique_by=lambda r: r.tenant_id,
)  # fmt: skip
DEMANDS = st.dictionaries(
    st.tuples(st.just("m"), st.text("abcdefgh", min_size=1, max_size=3)), st.builds(Demand, RATES, RATES), max_size=8
)


@given(st.lists(RATES, max_size=5), st.integers(1, PPM), RESERVATIONS, DEMANDS)
def test_invariants_hold_for_any_input(
    capacities: list[int], ppm: int, reservations: list[Reservation], demand: dict[tuple[str, str], Demand]
) -> None:
    """Proves: granted <= have; guaranteed <= reserved; granted <= ceiling; nobody below min(guaranteed, wants)."""
    (ledger,) = allocate(fleet(*capacities), [Model("m", ppm)], reservations, demand)
    assert sum(q.granted for q in ledger.quotas) <= ledger.have == sum(capacities) * ppm // PPM
    assert sum(q.guaranteed for q in ledger.quotas) == min(ledger.sold, ledger.have) == ledger.sold - ledger.shortfall
    by_tenant = {r.tenant_id: r for r in reservations}
    for quota in ledger.quotas:
        assert 0 <= quota.guaranteed <= quota.reserved
        assert min(quota.guaranteed, quota.wants) <= quota.granted <= ceiling_of(by_tenant[quota.tenant_id])
        assert quota.granted * 2 >= quota.guaranteed
    hungry = any(q.granted < q.ceiling for q in ledger.quotas)
    lending = any(q.granted < q.guaranteed for q in ledger.quotas)
    if hungry and not lending:
        assert sum(q.granted for q in ledger.quotas) == ledger.have, "capacity is idle while somebody could have it"


@given(st.lists(RATES, max_size=5), RESERVATIONS, DEMANDS)
def test_order_of_inputs_does_not_matter(
    capacities: list[int], reservations: list[Reservation], demand: dict[tuple[str, str], Demand]
) -> None:
    """Proves determinism: shuffled inputs give the same ledger, so a new leader writes nothing needlessly."""
    replicas = fleet(*capacities)
    before = allocate(replicas, [FULL], reservations, demand)
    assert before == allocate(replicas[::-1], [FULL], reservations[::-1], dict(reversed(demand.items())))


def test_plan_says_yes_with_headroom() -> None:
    """Proves the sales answer when it fits, replacing the tenant's own earlier reservation."""
    plan = plan_reservation(fleet(100_000), FULL, [reserve("a", 30_000), reserve("b", 40_000)], reserve("a", 50_000))
    assert (plan.sellable, plan.ledger.have, plan.ledger.sold, plan.headroom) == (True, 100_000, 90_000, 10_000)
    assert plan.explanation == "1 ready replica at 100 % target utilisation cover it and leave 10 MU/min unsold."


def test_plan_says_no_with_the_gap() -> None:
    """Proves the sales answer when it does not fit, and when there is nothing at all."""
    short = plan_reservation(fleet(100_000, 100_000), FULL, [], reserve("a", 200_500))
    assert (short.sellable, short.headroom) == (False, -500)
    assert "0.5 MU/min short" in short.explanation
    assert "no ready replica" in plan_reservation([], FULL, [], reserve("a", 1)).explanation
