"""What the ledger of a model would be if something were different."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from capacity.core import phrases
from capacity.core.allocate import allocate
from capacity.core.values import Demand, Headroom, Model, ModelLedger, Replica, Reservation
from fairlead.errors import NotFoundError, Reason
from model_units.units import REPLICA_CAPACITY
from model_units.units import MilliModelUnitsPerMinute as Rate

# So many tenants that would lose are named one by one; a finding is read by a person.
_NAMED_MAX = 5


@dataclass(frozen=True, slots=True)
class Change:
    """What would be different; nothing of it leaves the ledger as it is.

    Attributes:
        reservations: As they would be; one of the same tenant is replaced.
        without_tenants: Whose reservation would end.
        without_replicas: Replicas that would be lost.
        without_hosts: Hosts, with every replica of the model on them.
        without_racks: Racks likewise.
        add_replicas: Replicas that would be added, each on a host and rack of its own.
        add_capacity: Of each, above 0; None means as the model's largest ready replica, or as the unit defines one.
        target_utilization_ppm: As it would be; 0 leaves it.
        headroom: As it would be; None leaves it.
    """

    reservations: tuple[Reservation, ...] = ()
    without_tenants: frozenset[str] = frozenset()
    without_replicas: frozenset[str] = frozenset()
    without_hosts: frozenset[str] = frozenset()
    without_racks: frozenset[str] = frozenset()
    add_replicas: int = 0
    add_capacity: Rate | None = None
    target_utilization_ppm: int = 0
    headroom: Headroom | None = None


@dataclass(frozen=True, slots=True)
class Prospect:
    """The ledger as it is and as it would be.

    Attributes:
        before: Now.
        after: With the changes, at the demand of now.
        findings: What it means, one sentence each.
    """

    before: ModelLedger
    after: ModelLedger
    findings: tuple[str, ...]


def what_if(
    model: Model,
    replicas: Iterable[Replica],
    reservations: Iterable[Reservation],
    demand: Mapping[str, Demand],
    change: Change,
) -> Prospect:
    """Computes the ledger of one model with and without a change.

    Args:
        model: The model.
        replicas: Every registered replica; those of other models are left out.
        reservations: Its reservations.
        demand: By tenant, of now.
        change: What would be different.

    Raises:
        NotFoundError: It names a replica, host, rack or reservation that the model does not have.
    """
    fleet = [replica for replica in replicas if replica.model_id == model.model_id]
    sold = {reservation.tenant_id: reservation for reservation in reservations}
    _check_names(model.model_id, fleet, sold, change)
    wanted = {(model.model_id, tenant): row for tenant, row in demand.items()}
    (before,) = allocate(fleet, [model], sold.values(), wanted)
    (after,) = allocate(_fleet(model, fleet, change), [_model(model, change)], _sold(sold, change), wanted)
    return Prospect(before, after, tuple(_findings(before, after)))


def _check_names(model_id: str, fleet: Sequence[Replica], sold: Mapping[str, Reservation], change: Change) -> None:
    known = (
        (change.without_replicas, {r.replica_id for r in fleet}, "without_replica_ids", "{0} has no replica {1}"),
        (change.without_hosts, {r.host for r in fleet}, "without_hosts", "no replica of {0} is on host {1}"),
        (change.without_racks, {r.rack for r in fleet}, "without_racks", "no replica of {0} is in rack {1}"),
        (change.without_tenants, sold.keys(), "without_tenant_ids", "{1} has no reservation on {0}"),
    )
    reasons = (Reason.UNKNOWN_REPLICA, Reason.NOT_FOUND, Reason.NOT_FOUND, Reason.UNKNOWN_TENANT)
    for (named, there, field, text), reason in zip(known, reasons, strict=True):
        for name in sorted(named - there):
            raise NotFoundError(text.format(repr(model_id), repr(name[:80])), reason=reason, field=field)


def _fleet(model: Model, fleet: Sequence[Replica], change: Change) -> list[Replica]:
    left = [
        replica
        for replica in fleet
        if replica.replica_id not in change.without_replicas
        and replica.host not in change.without_hosts
        and replica.rack not in change.without_racks
    ]
    largest = max((replica.capacity for replica in fleet if replica.ready), default=REPLICA_CAPACITY)
    capacity = largest if change.add_capacity is None else change.add_capacity
    # Parentheses are in no replica's, host's or rack's name.
    names = [f"(added {number})" for number in range(1, change.add_replicas + 1)]
    return left + [Replica(name, model.model_id, capacity, True, name, name) for name in names]


def _model(model: Model, change: Change) -> Model:
    return replace(
        model,
        target_utilization_ppm=change.target_utilization_ppm or model.target_utilization_ppm,
        headroom=change.headroom or model.headroom,
    )


def _sold(sold: Mapping[str, Reservation], change: Change) -> Iterable[Reservation]:
    left = {tenant: row for tenant, row in sold.items() if tenant not in change.without_tenants}
    return (left | {row.tenant_id: row for row in change.reservations}).values()


def _findings(before: ModelLedger, after: ModelLedger) -> Iterable[str]:
    yield _capacity(before, after)
    yield _promises(before, after)
    yield _loss(after)
    yield from _tenants(before, after)


def _capacity(before: ModelLedger, after: ModelLedger) -> str:
    basis = phrases.fleet(after.replicas_ready, after.target_utilization_ppm)
    if before.have == after.have:
        return f"Capacity stays {phrases.amount(after.have)}: {basis}."
    return f"Capacity goes from {phrases.amount(before.have)} to {phrases.amount(after.have)}: {basis}."


def _promises(before: ModelLedger, after: ModelLedger) -> str:
    said = f"Reservations of {phrases.amount(after.sold)}"
    if after.shortfall:
        was = f", {phrases.amount(before.shortfall)} now" if before.shortfall else ""
        return f"{said} are not covered: {phrases.amount(after.shortfall)} are missing{was}."
    unsold = after.sellable - after.sold
    if unsold >= 0:
        return f"{said} are covered; {phrases.amount(unsold)} can still be sold."
    return f"{said} are covered; nothing more can be sold."


def _loss(after: ModelLedger) -> str:
    domain = after.largest_domain
    if domain is None:
        if after.headroom == Headroom.NONE:
            return "There is no headroom policy: any further loss may cut into reservations."
        return "Nothing is ready that could be lost."
    loss = f"the loss of {phrases.domain(domain)}"
    if after.uncovered_after_loss:
        return f"After {loss}, {phrases.amount(after.uncovered_after_loss)} of reservations would not be covered."
    return f"Reservations would outlive {loss}."


def _tenants(before: ModelLedger, after: ModelLedger) -> Iterable[str]:
    now = {row.tenant_id: row for row in before.quotas}
    then = {row.tenant_id: row for row in after.quotas}
    for tenant in sorted(then.keys() - now.keys())[:_NAMED_MAX]:
        yield f"{tenant} has no reservation now; it would be new."
    losers = [
        (min(row.guaranteed, then[tenant].reserved) - then[tenant].guaranteed, tenant)
        for tenant, row in now.items()
        if tenant in then and then[tenant].guaranteed < min(row.guaranteed, then[tenant].reserved)
    ]
    for _, tenant in sorted(losers, key=lambda item: (-item[0], item[1]))[:_NAMED_MAX]:
        old, new = phrases.amount(now[tenant].guaranteed), phrases.amount(then[tenant].guaranteed)
        yield f"{tenant} (tier {then[tenant].tier}) would be guaranteed {new} instead of {old}."
    if len(losers) > _NAMED_MAX:
        yield f"{phrases.count(len(losers) - _NAMED_MAX, 'more tenant')} would be guaranteed less than now."
    squeezed = sum(
        1 for tenant, row in then.items() if tenant in now and row.granted < min(row.wants, now[tenant].granted)
    )
    if squeezed:
        yield f"{phrases.count(squeezed, 'tenant')} would be granted less than now and less than wanted."
