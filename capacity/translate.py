"""Stored and sent records <-> the core's values."""

from __future__ import annotations

from collections.abc import Iterable

from capacity.core.fair_share import WEIGHT_MAX
from capacity.core.live import ModelDemand
from capacity.core.values import (
    Demand,
    FailureDomain,
    Headroom,
    Model,
    ModelLedger,
    Replica,
    Reservation,
    TenantQuota,
    utilization_ppm,
)
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.quota.v1 import quota_pb2
from model_units.units import MilliModelUnitsPerMinute as Rate

# What 0 means in admin.Reservation.
DEFAULT_TIER = 5
DEFAULT_WEIGHT = 1
TIER_MAX = 9
# The most of any rate, as the admin API has it: sums over a million tenants stay in 64 bits.
RATE_MAX_MILLI_MU_PER_MINUTE = 10**12
POLICIES = {admin_pb2.Headroom.ValueType(policy.value): policy for policy in Headroom}


def replica_from(record: engine_pb2.Replica) -> Replica:
    """A replica's record; anything but READY is no capacity."""
    ready = record.state == engine_pb2.REPLICA_STATE_READY
    capacity = rate_from(record.capacity_milli_mu_per_minute)
    return Replica(record.replica_id, record.model_id, capacity, ready, record.host, record.rack)


def rate_from(value: int) -> Rate:
    """A rate that somebody sent or stored, brought into range."""
    return Rate(min(max(0, value), RATE_MAX_MILLI_MU_PER_MINUTE))


def model_from(record: admin_pb2.Model) -> Model:
    """A model's record."""
    return Model(record.model_id, utilization_ppm(record.target_utilization), headroom_from(record.headroom))


def headroom_from(value: admin_pb2.Headroom.ValueType) -> Headroom:
    """A headroom policy; unset, or set by a newer release to something unknown, is none."""
    return POLICIES.get(value, Headroom.NONE)


def headroom_to(policy: Headroom) -> admin_pb2.Headroom.ValueType:
    """A headroom policy as it is sent."""
    return admin_pb2.Headroom.ValueType(policy.value)


def reservation_from(record: admin_pb2.Reservation) -> Reservation:
    """A reservation's record; what no administrator could have set is brought into range."""
    return Reservation(
        tenant_id=record.tenant_id,
        model_id=record.model_id,
        reserved=rate_from(record.reserved_milli_mu_per_minute),
        ceiling=rate_from(record.burst_ceiling_milli_mu_per_minute),
        tier=min(max(1, record.tier), TIER_MAX) if record.tier else DEFAULT_TIER,
        weight=min(max(1, record.weight), WEIGHT_MAX) if record.weight else DEFAULT_WEIGHT,
    )


def demand_from(wants: Iterable[quota_pb2.Want]) -> ModelDemand:
    """The limiter's report, by model and tenant; rates are brought into range."""
    demand: dict[str, dict[str, Demand]] = {}
    for want in wants:
        row = Demand(rate_from(want.wants_milli_mu_per_minute), rate_from(want.used_milli_mu_per_minute))
        demand.setdefault(want.model_id, {})[want.tenant_id] = row
    return demand


def quota_to(model_id: str, quota: TenantQuota) -> capacity_pb2.Quota:
    """One row."""
    return capacity_pb2.Quota(
        tenant_id=quota.tenant_id,
        model_id=model_id,
        reserved_milli_mu_per_minute=quota.reserved,
        guaranteed_milli_mu_per_minute=quota.guaranteed,
        granted_milli_mu_per_minute=quota.granted,
        burst_ceiling_milli_mu_per_minute=quota.ceiling,
        wants_milli_mu_per_minute=quota.wants,
        used_milli_mu_per_minute=quota.used,
    )


def domain_to(domain: FailureDomain | None) -> capacity_pb2.FailureDomain | None:
    """A failure domain; None stays unset."""
    if domain is None:
        return None
    return capacity_pb2.FailureDomain(
        kind=headroom_to(domain.kind),
        name=domain.name,
        replicas=domain.replicas,
        capacity_milli_mu_per_minute=domain.capacity,
    )


def capacity_to(ledger: ModelLedger, *, with_quotas: bool = True) -> capacity_pb2.ModelCapacity:
    """One model of the ledger."""
    return capacity_pb2.ModelCapacity(
        model_id=ledger.model_id,
        replicas_ready=ledger.replicas_ready,
        have_milli_mu_per_minute=ledger.have,
        sold_milli_mu_per_minute=ledger.sold,
        used_milli_mu_per_minute=ledger.used,
        shortfall_milli_mu_per_minute=ledger.shortfall,
        quotas=[quota_to(ledger.model_id, quota) for quota in ledger.quotas] if with_quotas else (),
        headroom=headroom_to(ledger.headroom),
        largest_domain=domain_to(ledger.largest_domain),
        sellable_milli_mu_per_minute=ledger.sellable,
        uncovered_after_loss_milli_mu_per_minute=ledger.uncovered_after_loss,
    )
