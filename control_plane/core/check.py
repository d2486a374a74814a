"""What may be stored: every field of a tenant, model or reservation, refused by name.

The checks fill in defaults that have no meaning of their own as 0 and return the record as it is to be stored.
"""

from __future__ import annotations

import math
import re
import unicodedata

from fairlead.admin.v1 import admin_pb2
from fairlead.errors import InvalidArgumentError, NotFoundError
from fairlead.reservation_limits import RATE_MAX_MILLI_MU_PER_MINUTE, TIER_MAX, WEIGHT_MAX
from model_units.profiles import ProfileCatalogue

TENANT_ID = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)
MODEL_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}", re.ASCII)
HARDWARE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
ENDPOINT = re.compile(r"[A-Za-z0-9.\[\]:_-]{1,255}:\d{1,5}", re.ASCII)

DISPLAY_NAME_CHARACTERS_MAX = 200
CONTEXT_TOKENS_MAX = 10_000_000
REPLICAS_MAX = 10_000
SEQUENCES_MAX = 100_000
DEFAULT_BYTES_PER_TOKEN = 4.0
ENGINES = ("simulated", "triton")
DIALECTS = ("", "ensemble", "llmapi")


def tenant_id(value: str, field: str = "tenant_id") -> str:
    """A tenant's id, or InvalidArgumentError."""
    if not TENANT_ID.fullmatch(value):
        raise InvalidArgumentError(
            f"{field} {value[:80]!r} must be 1 to 63 of a-z, 0-9 and '-', starting with a letter", field=field
        )
    return value


def model_id(value: str, field: str = "model_id") -> str:
    """A model's id, or InvalidArgumentError."""
    if not MODEL_ID.fullmatch(value):
        raise InvalidArgumentError(
            f"{field} {value[:80]!r} must be 1 to 127 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
            field=field,
        )
    return value


def display_name(value: str, field: str = "display_name") -> str:
    """A name for people, or InvalidArgumentError."""
    if len(value) > DISPLAY_NAME_CHARACTERS_MAX:
        raise InvalidArgumentError(
            f"{field} has {len(value)} characters; at most {DISPLAY_NAME_CHARACTERS_MAX} are allowed", field=field
        )
    # Cc, Cf: control characters and direction marks could forge what a terminal shows.
    if any(unicodedata.category(character) in ("Cc", "Cf") for character in value):
        raise InvalidArgumentError(f"{field} must not hold control characters", field=field)
    return value


def tenant(record: admin_pb2.Tenant) -> admin_pb2.Tenant:
    """A tenant as it is to be stored, without times and etag, or InvalidArgumentError."""
    return admin_pb2.Tenant(
        tenant_id=tenant_id(record.tenant_id, "tenant.tenant_id"),
        display_name=display_name(record.display_name, "tenant.display_name"),
        suspended=record.suspended,
    )


def model(record: admin_pb2.Model, profiles: ProfileCatalogue) -> admin_pb2.Model:
    """A model as it is to be stored, without times and etag.

    Args:
        record: As an administrator wrote it.
        profiles: Cost profiles a model may name.

    Raises:
        InvalidArgumentError: A field is out of range; the message names it.
    """
    model_id(record.model_id, "model.model_id")
    context = _whole("model.context_tokens", record.context_tokens, 1, CONTEXT_TOKENS_MAX)
    output_max = _whole("model.output_tokens_max", record.output_tokens_max, 1, context)
    output_default = _whole("model.output_tokens_default", record.output_tokens_default, 0, output_max)
    replicas_min = _whole("model.replicas_min", record.replicas_min, 0, REPLICAS_MAX)
    engine = _engine(record.engine)
    try:
        profiles.resolve(record.profile_id, engine.hardware)
    except NotFoundError as error:
        field = "model.profile_id" if record.profile_id else "model.engine.hardware"
        raise InvalidArgumentError(f"{field}: {error.message}", field=field) from error
    return admin_pb2.Model(
        model_id=record.model_id,
        display_name=display_name(record.display_name, "model.display_name"),
        engine=engine,
        profile_id=record.profile_id,
        context_tokens=context,
        output_tokens_max=output_max,
        output_tokens_default=output_default or output_max,
        bytes_per_token=_fraction("model.bytes_per_token", record.bytes_per_token, 0.1, 100) or DEFAULT_BYTES_PER_TOKEN,
        target_utilization=_fraction("model.target_utilization", record.target_utilization, 0.001, 1),
        replicas_min=replicas_min,
        replicas_max=_whole("model.replicas_max", record.replicas_max, replicas_min, REPLICAS_MAX),
        headroom=_headroom(record.headroom),
        routing_policy=_routing_policy(record.routing_policy),
    )


def _headroom(value: admin_pb2.Headroom.ValueType) -> admin_pb2.Headroom.ValueType:
    # An open enum: a number that nobody knows arrives as it was sent.
    if value not in admin_pb2.Headroom.values():
        raise _wrong("model.headroom", f"{value} must be one of {', '.join(admin_pb2.Headroom.keys()[1:])}")
    return value


def _routing_policy(value: admin_pb2.RoutingPolicy.ValueType) -> admin_pb2.RoutingPolicy.ValueType:
    if value not in admin_pb2.RoutingPolicy.values():
        raise _wrong("model.routing_policy", f"{value} must be one of {', '.join(admin_pb2.RoutingPolicy.keys()[1:])}")
    return value


def _engine(spec: admin_pb2.EngineSpec) -> admin_pb2.EngineSpec:
    if spec.engine not in ENGINES:
        raise _wrong("model.engine.engine", f"{spec.engine[:80]!r} must be one of {', '.join(ENGINES)}")
    if not HARDWARE.fullmatch(spec.hardware):
        raise _wrong("model.engine.hardware", f"{spec.hardware[:80]!r} must be a label such as h100 or cpu-2core")
    if spec.dialect not in DIALECTS:
        raise _wrong("model.engine.dialect", f"{spec.dialect[:80]!r} must be ensemble, llmapi or empty")
    if spec.endpoint and not (ENDPOINT.fullmatch(spec.endpoint) and int(spec.endpoint.rpartition(":")[2]) <= 65535):
        raise _wrong("model.engine.endpoint", f"{spec.endpoint[:80]!r} must be host:port or empty")
    _whole("model.engine.sequences_max", spec.sequences_max, 0, SEQUENCES_MAX)
    return spec


def reservation(record: admin_pb2.Reservation, field: str = "reservation") -> admin_pb2.Reservation:
    """A reservation as it is to be stored, without etag.

    A ceiling of 0 becomes the reserved rate: no burst beyond it. Reserved 0 with a ceiling is best effort only.

    Args:
        record: As an administrator wrote it.
        field: What it is called in the request.

    Raises:
        InvalidArgumentError: A field is out of range; the message names it.
    """
    name = f"{field}.reserved_milli_mu_per_minute"
    reserved = _whole(name, record.reserved_milli_mu_per_minute, 0, RATE_MAX_MILLI_MU_PER_MINUTE)
    name = f"{field}.burst_ceiling_milli_mu_per_minute"
    ceiling = _whole(name, record.burst_ceiling_milli_mu_per_minute, 0, RATE_MAX_MILLI_MU_PER_MINUTE) or reserved
    if ceiling == 0:
        raise _wrong(
            f"{field}.reserved_milli_mu_per_minute",
            "must be above 0, or a burst ceiling must be set for best effort only; delete the reservation to end it",
        )
    if ceiling < reserved:
        raise _wrong(name, f"{ceiling} must be at least the {reserved} reserved")
    return admin_pb2.Reservation(
        tenant_id=tenant_id(record.tenant_id, f"{field}.tenant_id"),
        model_id=model_id(record.model_id, f"{field}.model_id"),
        reserved_milli_mu_per_minute=reserved,
        burst_ceiling_milli_mu_per_minute=ceiling,
        tier=_whole(f"{field}.tier", record.tier, 0, TIER_MAX),
        weight=_whole(f"{field}.weight", record.weight, 0, WEIGHT_MAX),
    )


def request_id(value: str) -> str:
    """A mutation's request id, or InvalidArgumentError; empty is none."""
    if len(value) > 128 or not value.isprintable():
        raise InvalidArgumentError("request_id must be at most 128 printable characters", field="request_id")
    return value


def _whole(field: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise _wrong(field, f"{value} must be {least:,} to {most:,}")
    return value


def _fraction(field: str, value: float, least: float, most: float) -> float:
    """0 stands for the default; NaN is in no range."""
    if value == 0 or (math.isfinite(value) and least <= round(value, 6) <= most):
        return value
    raise _wrong(field, f"{value:g} must be {least:g} to {most:g}, or 0 for the default")


def _wrong(field: str, text: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{field}: {text}", field=field)
