"""What-ifs and sales with failure domains; what they refuse."""

from __future__ import annotations

import pytest

from capacity.core.plan import plan_reservation
from capacity.core.values import PPM, Demand, Headroom, Model, Replica, Reservation
from capacity.core.what_if import Change, Prospect, what_if
from capacity.requests import change_from, wanted_from
from capacity.translate import RATE_MAX_MILLI_MU_PER_MINUTE
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.errors import InvalidArgumentError, NotFoundError, Reason
from model_units.units import MilliModelUnitsPerMinute as Rate

MODEL = Model("m", PPM, Headroom.HOST)
FLEET = [
    Replica("r1", "m", Rate(100_000), True, "h1", "k1"),
    Replica("r2", "m", Rate(100_000), True, "h1", "k1"),
    Replica("r3", "m", Rate(100_000), True, "h2", "k1"),
    Replica("r4", "m", Rate(100_000), True, "h3", "k2"),
    Replica("other", "n", Rate(100_000), True, "h9", "k9"),
]
SOLD = [
    Reservation("a", "m", Rate(120_000), Rate(120_000), tier=1),
    Reservation("b", "m", Rate(80_000), Rate(400_000), tier=9),
]
DEMAND = {"a": Demand(Rate(120_000), Rate(0)), "b": Demand(Rate(250_000), Rate(0))}


def ask(change: Change) -> Prospect:
    return what_if(MODEL, FLEET, SOLD, DEMAND, change)


def test_nothing_changed_answers_the_ledger_as_it_is() -> None:
    """Proves that an empty what-if is the ledger, with its findings."""
    prospect = ask(Change())
    assert prospect.before == prospect.after
    assert prospect.findings == (
        "Capacity stays 400 MU/min: 4 ready replicas at 100 % target utilisation.",
        "Reservations of 200 MU/min are covered; 0 MU/min can still be sold.",
        "Reservations would outlive the loss of host h1 (2 replicas, 200 MU/min).",
    )


def test_loss_of_a_rack_names_who_loses() -> None:
    """Proves that a loss is computed at the demand of now, by tier, with everybody who loses by name."""
    prospect = ask(Change(without_racks=frozenset({"k1"})))
    assert (prospect.after.have, prospect.after.shortfall, prospect.after.covered) == (100_000, 100_000, False)
    assert prospect.findings == (
        "Capacity goes from 400 MU/min to 100 MU/min: 1 ready replica at 100 % target utilisation.",
        "Reservations of 200 MU/min are not covered: 100 MU/min are missing.",
        "After the loss of host h3 (1 replica, 100 MU/min), 200 MU/min of reservations would not be covered.",
        "b (tier 9) would be guaranteed 0 MU/min instead of 80 MU/min.",
        "a (tier 1) would be guaranteed 100 MU/min instead of 120 MU/min.",
        "2 tenants would be granted less than now and less than wanted.",
    )


def test_changes_add_up() -> None:
    """Proves that reservations, losses, additions, utilisation and policy can be planned together."""
    change = Change(
        reservations=(Reservation("c", "m", Rate(50_000), Rate(50_000)),),
        without_tenants=frozenset({"b"}),
        without_replicas=frozenset({"r1"}),
        without_hosts=frozenset({"h3"}),
        add_replicas=3,
        target_utilization_ppm=500_000,
        headroom=Headroom.REPLICA,
    )
    prospect = ask(change)
    after = prospect.after
    assert (after.replicas_ready, after.have, after.sold, after.sellable) == (5, 250_000, 170_000, 200_000)
    assert "c has no reservation now; it would be new." in prospect.findings
    assert [quota.tenant_id for quota in after.quotas] == ["a", "c"]


def test_added_replicas_are_as_large_as_the_largest() -> None:
    """Proves the size of what is added where none is given, also where nothing runs, and that each stands alone."""
    assert ask(Change(add_replicas=1, add_capacity=Rate(7_000))).after.have == 407_000
    empty = what_if(MODEL, [], [], {}, Change(add_replicas=2)).after
    assert (empty.have, empty.sellable) == (200_000, 100_000)


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        (Change(without_replicas=frozenset({"r1", "r9"})), "without_replica_ids", Reason.UNKNOWN_REPLICA),
        (Change(without_replicas=frozenset({"other"})), "without_replica_ids", Reason.UNKNOWN_REPLICA),
        (Change(without_hosts=frozenset({"h9"})), "without_hosts", Reason.NOT_FOUND),
        (Change(without_racks=frozenset({"k3"})), "without_racks", Reason.NOT_FOUND),
        (Change(without_tenants=frozenset({"z"})), "without_tenant_ids", Reason.UNKNOWN_TENANT),
    ],
)
def test_unknown_names_are_refused(change: Change, field: str, reason: Reason) -> None:
    """Proves that a what-if about something the model does not have is refused by name, not answered."""
    with pytest.raises(NotFoundError) as refused:
        ask(change)
    assert (refused.value.field, refused.value.reason) == (field, reason)


def reservation(**fields: object) -> admin_pb2.Reservation:
    return admin_pb2.Reservation(tenant_id="a", **fields)  # type: ignore[arg-type]  # any field of a reservation


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("model_id", {"model_id": ""}),
        ("add_replicas", {"add_replicas": -1}),
        ("add_replicas", {"add_replicas": 10_001}),
        ("add_replica_capacity_milli_mu_per_minute", {"add_replica_capacity_milli_mu_per_minute": -1}),
        ("add_replica_capacity_milli_mu_per_minute", {"add_replica_capacity_milli_mu_per_minute": 2**63 - 1}),
        ("target_utilization", {"target_utilization": float("nan")}),
        ("target_utilization", {"target_utilization": float("inf")}),
        ("target_utilization", {"target_utilization": -0.5}),
        ("target_utilization", {"target_utilization": 1.1}),
        ("headroom", {"headroom": 17}),
        ("without_hosts", {"without_hosts": [""]}),
        ("without_hosts", {"without_hosts": ["h1", "h1"]}),
        ("without_racks", {"without_racks": ["a\nb"]}),
        ("without_tenant_ids", {"without_tenant_ids": ["x" * 256]}),
        ("without_tenant_ids", {"reservations": [reservation(reserved_milli_mu_per_minute=1)],
                                "without_tenant_ids": ["a"]}),
        ("reservations.tenant_id", {"reservations": [reservation(reserved_milli_mu_per_minute=1)] * 2}),
        ("reservations.tenant_id", {"reservations": [admin_pb2.Reservation(reserved_milli_mu_per_minute=1)]}),
        ("reservations.model_id", {"reservations": [reservation(model_id="n", reserved_milli_mu_per_minute=1)]}),
        ("reservations.reserved_milli_mu_per_minute", {"reservations": [reservation()]}),
        ("reservations.reserved_milli_mu_per_minute",
         {"reservations": [reservation(reserved_milli_mu_per_minute=-5)]}),
        ("reservations.reserved_milli_mu_per_minute",
         {"reservations": [reservation(reserved_milli_mu_per_minute=10**12 + 1)]}),
        ("reservations.burst_ceiling_milli_mu_per_minute",
         {"reservations": [reservation(reserved_milli_mu_per_minute=5, burst_ceiling_milli_mu_per_minute=4)]}),
        ("reservations.tier", {"reservations": [reservation(reserved_milli_mu_per_minute=5, tier=10)]}),
        ("reservations.weight", {"reservations": [reservation(reserved_milli_mu_per_minute=5, weight=-1)]}),
    ],
)  # fmt: skip
def test_bad_numbers_and_names_are_refused(field: str, wrong: dict[str, object]) -> None:
    """Proves that a what-if out of range is refused with the field to blame."""
    request = capacity_pb2.PlanCapacityRequest(**({"model_id": "m"} | wrong))  # type: ignore[arg-type]  # any field
    with pytest.raises(InvalidArgumentError) as refused:
        change_from(request)
    assert refused.value.field == field


def test_a_request_becomes_a_change() -> None:
    """Proves the translation, defaults of a reservation included."""
    request = capacity_pb2.PlanCapacityRequest(
        model_id="m",
        reservations=[reservation(reserved_milli_mu_per_minute=5)],
        without_racks=["k1"],
        target_utilization=0.7,
        headroom=admin_pb2.HEADROOM_RACK,
    )
    assert change_from(request) == Change(
        reservations=(Reservation("a", "m", Rate(5), Rate(0)),),
        without_racks=frozenset({"k1"}),
        target_utilization_ppm=700_000,
        headroom=Headroom.RACK,
    )


@pytest.mark.parametrize("rate", [0, -1, RATE_MAX_MILLI_MU_PER_MINUTE + 1])
def test_sales_of_bad_rates_are_refused(rate: int) -> None:
    """Proves that a sales question needs a rate that could be sold."""
    request = capacity_pb2.PlanReservationRequest(model_id="m", tenant_id="a", reserved_milli_mu_per_minute=rate)
    with pytest.raises(InvalidArgumentError) as refused:
        wanted_from(request)
    assert refused.value.field == "reserved_milli_mu_per_minute"


def test_sale_leaves_the_largest_domain_unsold() -> None:
    """Proves the sales answer under a policy: yes, covered but not after a loss, and not covered at all."""
    fits = plan_reservation(FLEET, MODEL, SOLD, Reservation("b", "m", Rate(70_000), Rate(70_000)))
    assert (fits.sellable, fits.headroom, fits.reservable) == (True, 10_000, 80_000)
    assert "cover it even without host h1 (2 replicas, 200 MU/min), and leave 10 MU/min unsold." in fits.explanation
    risky = plan_reservation(FLEET, MODEL, SOLD, Reservation("c", "m", Rate(30_000), Rate(30_000)))
    assert (risky.sellable, risky.headroom, risky.reservable) == (False, -30_000, 0)
    assert "cover it, but without host h1 (2 replicas, 200 MU/min) they would be 30 MU/min short" in risky.explanation
    short = plan_reservation(FLEET, MODEL, SOLD, Reservation("c", "m", Rate(300_000), Rate(300_000)))
    assert "are 100 MU/min short, and 300 MU/min without host h1" in short.explanation
