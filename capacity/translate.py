"""Stored records <-> the core's values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from capacity.core.allocate import Demand, Model, ModelLedger, Replica, Reservation, TenantQuota, utilization_ppm
from common import keys
from common.store import Epoch
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.quota.v1 import quota_pb2
from model_units.units import MilliModelUnitsPerMinute as Rate

# What 0 means in admin.Reservation.
DEFAULT_TIER = 5
DEFAULT_WEIGHT = 1
# Tables of one model: a change rewrites a sixteenth of its tenants.
SHARDS = 16


def replica_from(record: engine_pb2.Replica) -> Replica:
    """A replica's record; anything but READY is no capacity."""
    ready = record.state == engine_pb2.REPLICA_STATE_READY
    return Replica(record.replica_id, record.model_id, Rate(max(0, record.capacity_milli_mu_per_minute)), ready)


def model_from(record: admin_pb2.Model) -> Model:
    """A model's record."""
    return Model(record.model_id, utilization_ppm(record.target_utilization))


def reservation_from(record: admin_pb2.Reservation) -> Reservation:
    """A reservation's record."""
    return Reservation(
        tenant_id=record.tenant_id,
        model_id=record.model_id,
        reserved=Rate(record.reserved_milli_mu_per_minute),
        ceiling=Rate(record.burst_ceiling_milli_mu_per_minute),
        tier=record.tier or DEFAULT_TIER,
        weight=record.weight or DEFAULT_WEIGHT,
    )


def demand_from(wants: Iterable[quota_pb2.Want]) -> dict[tuple[str, str], Demand]:
    """The limiter's report, by (model, tenant); negative rates count as none."""
    return {
        (want.model_id, want.tenant_id): Demand(
            Rate(max(0, want.wants_milli_mu_per_minute)), Rate(max(0, want.used_milli_mu_per_minute))
        )
        for want in wants
    }


def demand_of(tables: Iterable[capacity_pb2.QuotaTable]) -> dict[tuple[str, str], Demand]:
    """The demand that stored quotas were computed from: what a new leader starts with."""
    return {
        (quota.model_id, quota.tenant_id): Demand(
            Rate(quota.wants_milli_mu_per_minute), Rate(quota.used_milli_mu_per_minute)
        )
        for table in tables
        for quota in table.quotas
    }


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


def capacity_to(ledger: ModelLedger) -> capacity_pb2.ModelCapacity:
    """One model of the ledger."""
    return capacity_pb2.ModelCapacity(
        model_id=ledger.model_id,
        replicas_ready=ledger.replicas_ready,
        have_milli_mu_per_minute=ledger.have,
        sold_milli_mu_per_minute=ledger.sold,
        used_milli_mu_per_minute=ledger.used,
        shortfall_milli_mu_per_minute=ledger.shortfall,
        quotas=[quota_to(ledger.model_id, quota) for quota in ledger.quotas],
    )


def tables_to(ledger: ModelLedger, epoch: Epoch) -> Mapping[str, capacity_pb2.QuotaTable]:
    """The quota tables of one model by key, without compute_time; shards without a tenant have none."""
    tables: dict[str, capacity_pb2.QuotaTable] = {}
    for quota in ledger.quotas:
        shard = keys.tenant_shard(quota.tenant_id, SHARDS)
        key = keys.quota(ledger.model_id, shard)
        if key not in tables:
            tables[key] = capacity_pb2.QuotaTable(model_id=ledger.model_id, shard=shard, epoch=epoch)
        tables[key].quotas.append(quota_to(ledger.model_id, quota))
    return tables


def target_to(ledger: ModelLedger, epoch: Epoch) -> capacity_pb2.CapacityTarget:
    """What the autoscaler should hold for one model."""
    return capacity_pb2.CapacityTarget(
        model_id=ledger.model_id,
        epoch=epoch,
        target_milli_mu_per_minute=ledger.target,
        floor_milli_mu_per_minute=ledger.floor,
        used_milli_mu_per_minute=ledger.used,
    )
