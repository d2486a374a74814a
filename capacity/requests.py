"""What a plan may ask: every field checked and refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterable

from capacity.core.fair_share import WEIGHT_MAX
from capacity.core.values import Headroom, Reservation, utilization_ppm
from capacity.core.what_if import Change
from capacity.translate import POLICIES, RATE_MAX_MILLI_MU_PER_MINUTE, TIER_MAX, reservation_from
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.errors import InvalidArgumentError
from model_units.units import MilliModelUnitsPerMinute as Rate

# The limits of what can be stored, as the admin API has them.
REPLICAS_MAX = 10_000
UTILIZATION_MIN = 0.001
_NAME_CHARACTERS_MAX = 255
_NAMES_MAX = 10_000


def wanted_from(request: capacity_pb2.PlanReservationRequest) -> Reservation:
    """The reservation of a sales question, or InvalidArgumentError."""
    name("model_id", request.model_id)
    name("tenant_id", request.tenant_id)
    rate = request.reserved_milli_mu_per_minute
    whole("reserved_milli_mu_per_minute", rate, 1, RATE_MAX_MILLI_MU_PER_MINUTE)
    return Reservation(request.tenant_id, request.model_id, Rate(rate), Rate(rate))


def change_from(request: capacity_pb2.PlanCapacityRequest) -> Change:
    """The change of a what-if, or InvalidArgumentError."""
    name("model_id", request.model_id)
    reservations = tuple(_reservation(record, request.model_id) for record in request.reservations)
    tenants = _names("reservations.tenant_id", (row.tenant_id for row in reservations))
    ended = _names("without_tenant_ids", request.without_tenant_ids)
    for tenant in sorted(tenants & ended):
        raise InvalidArgumentError(
            f"{tenant!r} is in reservations and in without_tenant_ids; leave it in one of them",
            field="without_tenant_ids",
        )
    add_capacity = request.add_replica_capacity_milli_mu_per_minute
    whole("add_replica_capacity_milli_mu_per_minute", add_capacity, 0, RATE_MAX_MILLI_MU_PER_MINUTE)
    return Change(
        reservations=reservations,
        without_tenants=ended,
        without_replicas=_names("without_replica_ids", request.without_replica_ids),
        without_hosts=_names("without_hosts", request.without_hosts),
        without_racks=_names("without_racks", request.without_racks),
        add_replicas=whole("add_replicas", request.add_replicas, 0, REPLICAS_MAX),
        add_capacity=Rate(add_capacity) if add_capacity else None,
        target_utilization_ppm=_utilization(request.target_utilization),
        headroom=_headroom(request.headroom),
    )


def name(field: str, value: str) -> str:
    """A name as it is, or InvalidArgumentError."""
    if not value:
        raise InvalidArgumentError(f"{field} is required", field=field)
    if len(value) > _NAME_CHARACTERS_MAX or not value.isprintable() or "/" in value:
        raise InvalidArgumentError(
            f"{field} {value[:80]!r} must be at most {_NAME_CHARACTERS_MAX} printable characters without '/'",
            field=field,
        )
    return value


def whole(field: str, value: int, least: int, most: int) -> int:
    """A number as it is, or InvalidArgumentError."""
    if not least <= value <= most:
        raise InvalidArgumentError(f"{field}: {value} must be {least:,} to {most:,}", field=field)
    return value


def _reservation(record: admin_pb2.Reservation, model_id: str) -> Reservation:
    name("reservations.tenant_id", record.tenant_id)
    if record.model_id not in ("", model_id):
        raise InvalidArgumentError(
            f"reservations.model_id {record.model_id[:80]!r} must be {model_id!r}, the model that is planned, or empty",
            field="reservations.model_id",
        )
    reserved, ceiling = record.reserved_milli_mu_per_minute, record.burst_ceiling_milli_mu_per_minute
    whole("reservations.reserved_milli_mu_per_minute", reserved, 0, RATE_MAX_MILLI_MU_PER_MINUTE)
    if ceiling == 0:
        whole("reservations.reserved_milli_mu_per_minute", reserved, 1, RATE_MAX_MILLI_MU_PER_MINUTE)
    else:
        whole("reservations.burst_ceiling_milli_mu_per_minute", ceiling, reserved, RATE_MAX_MILLI_MU_PER_MINUTE)
    whole("reservations.tier", record.tier, 0, TIER_MAX)
    whole("reservations.weight", record.weight, 0, WEIGHT_MAX)
    filled = admin_pb2.Reservation()
    filled.CopyFrom(record)
    filled.model_id = model_id
    return reservation_from(filled)


def _names(field: str, values: Iterable[str]) -> frozenset[str]:
    listed = list(values)
    whole(field, len(listed), 0, _NAMES_MAX)
    for value in listed:
        name(field, value)
    if len(set(listed)) < len(listed):
        twice = next(value for value in listed if listed.count(value) > 1)
        raise InvalidArgumentError(f"{field} names {twice[:80]!r} twice", field=field)
    return frozenset(listed)


def _utilization(fraction: float) -> int:
    if fraction == 0:
        return 0
    if not (math.isfinite(fraction) and UTILIZATION_MIN <= round(fraction, 6) <= 1):
        raise InvalidArgumentError(
            f"target_utilization: {fraction:g} must be {UTILIZATION_MIN:g} to 1, or 0 to leave it",
            field="target_utilization",
        )
    return utilization_ppm(fraction)


def _headroom(value: admin_pb2.Headroom.ValueType) -> Headroom | None:
    if value == admin_pb2.HEADROOM_UNSPECIFIED:
        return None
    if value not in POLICIES:
        raise InvalidArgumentError(f"headroom: {value} is not a policy that is known", field="headroom")
    return POLICIES[value]
