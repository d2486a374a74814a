"""Protobuf messages <-> the core's values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from common.clock import WallNs
from fairlead.capacity.v1 import capacity_pb2
from fairlead.errors import InvalidArgumentError
from fairlead.quota.v1 import quota_pb2
from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.lease import SHARDS
from ratelimiter.core.values import Answer, Lease, Quota, Report, Table, Version, Want, Workload

# Ten million replicas: far above any fleet, far below 64 bits even when summed over a million routers.
AMOUNT_MAX: Final = 10**12
ID_CHARACTERS_MAX: Final = 255


def quotas_from(tables: Iterable[capacity_pb2.QuotaTable]) -> dict[Workload, Quota]:
    """The stored quotas of all models; rows without a grant are left out."""
    return {
        Workload(quota.model_id, quota.tenant_id): Quota(
            Rate(quota.granted_milli_mu_per_minute), Rate(quota.guaranteed_milli_mu_per_minute)
        )
        for table in tables
        for quota in table.quotas
        if quota.granted_milli_mu_per_minute > 0
    }


def report_from(request: quota_pb2.ReportWantsRequest) -> Report:
    """A router's report.

    Raises:
        InvalidArgumentError: A field is missing or out of range; the message names it.
    """
    if not request.router_id or "/" in request.router_id:
        raise InvalidArgumentError("router_id is required and must not contain '/'", field="router_id")
    if not request.incarnation_id:
        raise InvalidArgumentError("incarnation_id is required", field="incarnation_id")
    if request.report_number < 1:
        raise InvalidArgumentError("report_number counts from 1", field="report_number")
    for table in request.applied:
        if not 0 <= table.shard < SHARDS:
            raise InvalidArgumentError(
                f"applied: there is no shard {table.shard}, only 0 to {SHARDS - 1}", field="applied"
            )
    return Report(
        router_id=request.router_id,
        incarnation_id=request.incarnation_id,
        number=request.report_number,
        applied={table.shard: Version(table.epoch, table.table_number) for table in request.applied},
        wants=_wants_from(request.wants),
    )


def _wants_from(wants: Iterable[quota_pb2.Want]) -> Mapping[Workload, Want]:
    by_workload: dict[Workload, Want] = {}
    for index, want in enumerate(wants):
        rates = (want.wants_milli_mu_per_minute, want.used_milli_mu_per_minute, want.held_milli_mu)
        ids = (want.tenant_id, want.model_id)
        if min(rates) < 0 or not all(0 < len(name) <= ID_CHARACTERS_MAX for name in ids):
            raise InvalidArgumentError(
                f"wants[{index}] needs a tenant, a model and amounts of 0 or more", field=f"wants[{index}]"
            )
        # One absurd amount must not cost all tenants of the router their leases: it counts as the most there is.
        wanted, used, held = (min(rate, AMOUNT_MAX) for rate in rates)
        by_workload[Workload(want.model_id, want.tenant_id)] = Want(Rate(wanted), Rate(used), MilliModelUnits(held))
    return by_workload


def wants_to(demand: Mapping[Workload, Want]) -> list[quota_pb2.Want]:
    """Demand over all routers, for the allocator."""
    return [
        quota_pb2.Want(
            tenant_id=workload.tenant_id,
            model_id=workload.model_id,
            wants_milli_mu_per_minute=want.wants,
            used_milli_mu_per_minute=want.used,
            held_milli_mu=want.held,
        )
        for workload, want in sorted(demand.items())
    ]


def table_to(table: Table, granted_wall_ns: WallNs) -> quota_pb2.LeaseTable:
    """A lease table as it is stored and answered."""
    message = quota_pb2.LeaseTable(
        router_id=table.router_id,
        incarnation_id=table.incarnation_id,
        shard=table.shard,
        epoch=table.version.epoch,
        table_number=table.version.number,
        report_number=table.report_number,
        leases=[
            quota_pb2.Lease(
                tenant_id=workload.tenant_id,
                model_id=workload.model_id,
                rate_milli_mu_per_minute=lease.rate,
                burst_milli_mu=lease.burst,
                safe_rate_milli_mu_per_minute=lease.safe_rate,
                quota_milli_mu_per_minute=lease.quota,
            )
            for workload, lease in table.leases.items()
        ],
        outstanding=[
            quota_pb2.Lease(tenant_id=workload.tenant_id, model_id=workload.model_id, rate_milli_mu_per_minute=rate)
            for workload, rate in table.outstanding.items()
        ],
    )
    message.lease_duration.FromNanoseconds(table.lease_ns)
    message.grant_time.FromNanoseconds(granted_wall_ns)
    return message


def answer_to(answer: Answer, tables: Iterable[quota_pb2.LeaseTable]) -> quota_pb2.ReportWantsResponse:
    """The answer to a report, with those of its tables that are to be sent along, as stored."""
    message = quota_pb2.ReportWantsResponse(
        epoch=answer.epoch,
        report_number=answer.report_number,
        tables=tables,
        renewed=[
            quota_pb2.TableVersion(shard=shard, epoch=version.epoch, table_number=version.number)
            for shard, version in answer.renewed.items()
        ],
    )
    message.lease_duration.FromNanoseconds(answer.lease_ns)
    return message


def table_from(message: quota_pb2.LeaseTable) -> Table:
    """A stored lease table, as an earlier leader wrote it."""
    return Table(
        router_id=message.router_id,
        incarnation_id=message.incarnation_id,
        shard=message.shard,
        version=Version(message.epoch, message.table_number),
        report_number=message.report_number,
        lease_ns=message.lease_duration.ToNanoseconds(),
        leases={
            Workload(lease.model_id, lease.tenant_id): Lease(
                Rate(lease.rate_milli_mu_per_minute),
                MilliModelUnits(lease.burst_milli_mu),
                Rate(lease.safe_rate_milli_mu_per_minute),
                Rate(lease.quota_milli_mu_per_minute),
            )
            for lease in message.leases
        },
        outstanding={
            Workload(lease.model_id, lease.tenant_id): Rate(lease.rate_milli_mu_per_minute)
            for lease in message.outstanding
        },
    )


def within(bytes_max: int, tables: Iterable[quota_pb2.LeaseTable]) -> list[quota_pb2.LeaseTable]:
    """As many of these tables, from the first, as fit into so many bytes."""
    fitting = []
    for table in tables:
        bytes_max -= table.ByteSize()
        if bytes_max < 0:
            break
        fitting.append(table)
    return fitting
