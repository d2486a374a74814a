"""Every key Fairlead writes to etcd, each with exactly one writer (docs/architecture.md lists them)."""

from __future__ import annotations

import hashlib

from fairlead.errors import InvalidArgumentError

PREFIX = "/fairlead/v1/"

TENANTS = PREFIX + "tenants/"
API_KEYS = PREFIX + "keys/"
MODELS = PREFIX + "models/"
POLICIES = PREFIX + "policies/"
REPLICAS = PREFIX + "replicas/"
QUOTAS = PREFIX + "quotas/"
TARGETS = PREFIX + "targets/"
LEASES = PREFIX + "leases/"
ASSIGNMENTS = PREFIX + "assignments/"
LEADERS = PREFIX + "leaders/"
SERVICES = PREFIX + "services/"
PROFILES = PREFIX + "profiles/"
CALIBRATIONS = PREFIX + "calibrations/"
DRIFT = PREFIX + "drift/"
EVENTS = PREFIX + "events/"
USAGE = PREFIX + "usage/"
USAGE_STATES = PREFIX + "usage_state/"


def _part(text: str) -> str:
    if not text or "/" in text:
        raise InvalidArgumentError(f"{text!r} cannot be part of a key: it must not be empty or contain '/'")
    return text


def tenant(tenant_id: str) -> str:
    """Key of an admin.Tenant."""
    return TENANTS + _part(tenant_id)


def api_key(key_id: str) -> str:
    """Key of an admin.ApiKey."""
    return API_KEYS + _part(key_id)


def model(model_id: str) -> str:
    """Key of an admin.Model."""
    return MODELS + _part(model_id)


def policy(model_id: str, tenant_id: str) -> str:
    """Key of an admin.Reservation."""
    return f"{POLICIES}{_part(model_id)}/{_part(tenant_id)}"


def replica(replica_id: str) -> str:
    """Key of an engine.Replica."""
    return REPLICAS + _part(replica_id)


def quota(model_id: str, shard: int) -> str:
    """Key of a capacity.QuotaTable."""
    return f"{QUOTAS}{_part(model_id)}/{shard}"


def target(model_id: str) -> str:
    """Key of a capacity.CapacityTarget."""
    return TARGETS + _part(model_id)


def leases_of(router_id: str) -> str:
    """Prefix of one router's quota.LeaseTables."""
    return f"{LEASES}{_part(router_id)}/"


def lease(router_id: str, shard: int) -> str:
    """Key of a quota.LeaseTable."""
    return f"{leases_of(router_id)}{shard}"


def assignment(model_id: str) -> str:
    """Key of a sharding.Assignment."""
    return ASSIGNMENTS + _part(model_id)


def leader(service: str) -> str:
    """Key of the admin.ServiceInstance that leads `service`."""
    return LEADERS + _part(service)


def service(name: str, instance_id: str) -> str:
    """Key of one process's admin.ServiceInstance."""
    return f"{SERVICES}{_part(name)}/{_part(instance_id)}"


def profile(profile_id: str) -> str:
    """Key of an admin.CostProfile, from its id "model/hardware/version"."""
    model_id, hardware, version = (*profile_id.split("/"), "", "", "")[:3]
    return f"{PROFILES}{_part(model_id)}/{_part(hardware)}/{_part(version)}"


def calibration(calibration_id: str) -> str:
    """Key of an admin.Calibration."""
    return CALIBRATIONS + _part(calibration_id)


def drift(model_id: str) -> str:
    """Key of an admin.DriftStatus."""
    return DRIFT + _part(model_id)


def event(event_id: str) -> str:
    """Key of an admin.Event."""
    return EVENTS + _part(event_id)


def usage(hour: str, router_id: str, incarnation_id: str, shard: int) -> str:
    """Key of an admin.UsageTable; `hour` is UTC, as 2026-11-22T19, so that keys sort by time."""
    return f"{USAGE}{_part(hour)}/{_part(router_id)}/{_part(incarnation_id)}/{shard}"


def usage_state(router_id: str, incarnation_id: str) -> str:
    """Key of an admin.UsageState."""
    return f"{USAGE_STATES}{_part(router_id)}/{_part(incarnation_id)}"


def tenant_shard(tenant_id: str, shards: int) -> int:
    """The shard, 0 to shards - 1, whose tables hold a tenant: the same everywhere and for ever.

    Args:
        tenant_id: The tenant.
        shards: How many there are, 1 to 256, a power of two.
    """
    return hashlib.blake2b(tenant_id.encode(), digest_size=2).digest()[0] % shards
