"""Failure domains, what may be sold, and what the autoscaler should hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capacity.core.allocate import allocate
from capacity.core.domains import domain_of
from capacity.core.values import PPM, FailureDomain, Headroom, Model, ModelLedger, Replica, Reservation
from model_units.units import REPLICA_CAPACITY
from model_units.units import MilliModelUnitsPerMinute as Rate

PLACES = {"r1": ("h1", "k1"), "r2": ("h1", "k1"), "r3": ("h2", "k1"), "r4": ("h3", ""), "r5": ("", "")}
FLEET = [Replica(name, "m", Rate(100), True, host, rack) for name, (host, rack) in PLACES.items()]


def ledger_of(fleet: list[Replica], model: Model, *reserved: int) -> ModelLedger:
    sold = [Reservation(f"t{n}", "m", Rate(rate), Rate(rate)) for n, rate in enumerate(reserved)]
    (ledger,) = allocate(fleet, [model], sold, {})
    return ledger


@pytest.mark.parametrize(
    ("policy", "domain"),
    [
        (Headroom.NONE, None),
        (Headroom.REPLICA, FailureDomain(Headroom.REPLICA, "r1", 1, Rate(100), Rate(80))),
        (Headroom.HOST, FailureDomain(Headroom.HOST, "h1", 2, Rate(200), Rate(160))),
        (Headroom.RACK, FailureDomain(Headroom.RACK, "k1", 3, Rate(300), Rate(240))),
    ],
)
def test_largest_domain_of_each_kind(policy: Headroom, domain: FailureDomain | None) -> None:
    """Proves what each policy is about, and that its part of have is what may not be sold."""
    ledger = ledger_of(FLEET, Model("m", 800_000, policy), 350)
    assert (ledger.have, ledger.largest_domain) == (400, domain)
    lost = domain.capacity if domain else 0
    assert ledger.sellable == 400 - lost
    assert ledger.uncovered_after_loss == max(0, 350 - ledger.sellable)
    assert ledger.shortfall == 0


def test_a_replica_counts_by_the_smallest_place_that_is_known() -> None:
    """Proves: without a rack by host, without a host alone."""
    kinds = [domain_of(replica, Headroom.RACK) for replica in FLEET[2:]]
    assert kinds == [(Headroom.RACK, "k1"), (Headroom.HOST, "h3"), (Headroom.REPLICA, "r5")]


def test_headroom_is_lent_but_not_sold() -> None:
    """Proves that what is held back from sale serves whoever has a ceiling for it."""
    fleet = [Replica(f"r{n}", "m", Rate(100), True, f"h{n}") for n in range(2)]
    (ledger,) = allocate(fleet, [Model("m", PPM, Headroom.HOST)], [Reservation("a", "m", Rate(90), Rate(500))], {})
    assert (ledger.sellable, ledger.covered, ledger.quotas[0].granted) == (100, True, 200)


def test_target_holds_reservations_and_what_may_be_lost() -> None:
    """Proves the floor: what reservations need plus the largest domain; a whole replica where nothing runs yet."""
    spread = [Replica(f"r{n}", "m", Rate(100_000), True, f"h{n}") for n in range(4)]
    model = Model("m", 800_000, Headroom.HOST)
    assert ledger_of(spread, model, 160_000).floor == 200_000 + 100_000
    assert ledger_of([], model, 160_000).floor == 200_000 + REPLICA_CAPACITY
    assert ledger_of([], model).floor == 0, "nothing sold, nothing to protect"
    assert ledger_of(spread, Model("m", 800_000), 160_000).floor == 200_000, "no policy"


def test_target_does_not_chase_a_fleet_on_one_host() -> None:
    """Proves that the target stands still where every new replica lands in the domain that is largest already."""
    model, fleet = Model("m", PPM, Headroom.HOST), [Replica("r0", "m", Rate(100), True, "h")]
    for _ in range(50):
        ledger = ledger_of(fleet, model, 200)
        if ledger.target <= 100 * len(fleet):
            break
        fleet.append(Replica(f"r{len(fleet)}", "m", Rate(100), True, "h"))
    assert len(fleet) == 6
    assert not ledger.covered, "and the ledger says that the policy is not kept"


FLEETS = st.lists(
    st.builds(
        Replica,
        st.uuids().map(str),
        st.just("m"),
        st.integers(0, 10**6) | st.integers(0, 10**13),
        st.booleans(),
        st.sampled_from(["", "h1", "h2", "h3"]),
        st.sampled_from(["", "k1", "k2"]),
    ),
    max_size=8,
    unique_by=lambda replica: replica.replica_id,
)


@given(FLEETS, st.sampled_from(Headroom), st.integers(1, PPM), st.integers(0, 10**7))
def test_sellable_is_what_is_left_after_the_worst_loss(
    fleet: list[Replica], policy: Headroom, ppm: int, reserved: int
) -> None:
    """Proves sellable and uncovered by losing every single domain in turn and computing the ledger again."""
    model = Model("m", ppm, policy)
    ledger = ledger_of(fleet, model, reserved)
    after = [ledger]
    if policy != Headroom.NONE:
        domains = {domain_of(replica, policy) for replica in fleet if replica.ready}
        after = [ledger_of([r for r in fleet if domain_of(r, policy) != lost], model, reserved) for lost in domains]
    assert ledger.sellable == min((one.have for one in after), default=0)
    assert ledger.uncovered_after_loss == max((one.shortfall for one in after), default=reserved)
