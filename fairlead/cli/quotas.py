"""Puts a quota together from its three owners: control plane, capacity allocator, rate limiter."""

from __future__ import annotations

from typing import Any

from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.cli.connection import AdminConnection
from fairlead.cli.output import message_row
from fairlead.errors import FairleadError
from fairlead.quota.v1 import quota_pb2

_FROM_ALLOCATOR = (
    "guaranteed_milli_mu_per_minute",
    "granted_milli_mu_per_minute",
    "wants_milli_mu_per_minute",
    "used_milli_mu_per_minute",
)


def read_quotas(
    connection: AdminConnection, tenant_id: str = "", model_id: str = ""
) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads quotas.

    Args:
        connection: To the control plane.
        tenant_id: Only this tenant's; empty for all.
        model_id: Only this model's; empty for all.

    Returns:
        One row per reservation: the fields of Reservation, then those of Quota (None where the allocator has not
        granted it or cannot be asked), then `leases`, one per router (None where the limiter cannot be asked); and a
        sentence for each owner that could not be asked.

    Raises:
        FairleadError: The reservations themselves cannot be read.
    """
    reservations = connection.call(
        connection.admin.ListReservations, admin_pb2.ListReservationsRequest(tenant_id=tenant_id, model_id=model_id)
    ).reservations
    missing: list[str] = []
    granted: dict[tuple[str, str], capacity_pb2.Quota] = {}
    try:
        ledger = connection.call(connection.capacity.ListCapacity, capacity_pb2.ListCapacityRequest(model_id=model_id))
        granted = {
            (quota.model_id or model.model_id, quota.tenant_id): quota
            for model in ledger.models
            for quota in model.quotas
        }
    except FairleadError as error:
        missing.append(_cannot("the capacity allocator", error))
    leases: dict[tuple[str, str], list[dict[str, Any]]] = {}
    leases_known = True
    try:
        tables = connection.call(
            connection.limiter.ListLeases, quota_pb2.ListLeasesRequest(tenant_id=tenant_id, model_id=model_id)
        ).tables
        for table in tables:
            for lease in table.leases:
                row = {"router_id": table.router_id, **message_row(lease)}
                del row["tenant_id"], row["model_id"]
                leases.setdefault((lease.model_id, lease.tenant_id), []).append(row)
    except FairleadError as error:
        missing.append(_cannot("the rate limiter", error))
        leases_known = False
    rows = []
    for reservation in reservations:
        key = (reservation.model_id, reservation.tenant_id)
        quota = granted.get(key)
        row = message_row(reservation)
        del row["model_shortfall_milli_mu_per_minute"]  # only in the answer to a change
        row |= {field: getattr(quota, field) if quota is not None else None for field in _FROM_ALLOCATOR}
        row["leases"] = leases.get(key, []) if leases_known else None
        rows.append(row)
    return rows, missing


def reservation_of(connection: AdminConnection, tenant_id: str, model_id: str) -> admin_pb2.Reservation | None:
    """What a tenant has of a model, with its etag; None where it has nothing."""
    request = admin_pb2.ListReservationsRequest(tenant_id=tenant_id, model_id=model_id)
    found = connection.call(connection.admin.ListReservations, request).reservations
    return found[0] if found else None


def check_names(connection: AdminConnection, tenant_id: str = "", model_id: str = "") -> None:
    """Tells a name that does not exist from one that has nothing: to be asked where nothing was found.

    Args:
        connection: To the control plane.
        tenant_id: A tenant that was asked for; empty for none.
        model_id: Likewise a model.

    Raises:
        FairleadError: There is no such tenant or model.
    """
    if tenant_id:
        connection.call(connection.admin.GetTenant, admin_pb2.GetTenantRequest(tenant_id=tenant_id))
    if model_id:
        connection.call(connection.admin.GetModel, admin_pb2.GetModelRequest(model_id=model_id))


def _cannot(who: str, error: FairleadError) -> str:
    return f"{who} cannot be asked now: {error.message}"
