"""Failure domains: which replicas of a model vanish together, and how much of what it has the largest of them is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from capacity.core.values import PPM, FailureDomain, Headroom, Model, Replica
from model_units.units import REPLICA_CAPACITY
from model_units.units import MilliModelUnitsPerMinute as Rate

# In what the autoscaler holds, the largest domain counts up to this many times what the reservations need (and no less
# than as many replicas). Where every new replica lands in the domain that is largest already, each would ask for one
# more; with this bound the fleet ends at three times the need, and the ledger says that the policy is not covered.
_DOMAIN_NEEDS_MAX = 2


def domain_of(replica: Replica, headroom: Headroom) -> tuple[Headroom, str]:
    """The failure domain of a replica: kind and name.

    Args:
        replica: Without a rack it counts by host, without a host alone.
        headroom: What kind of domain the policy is about.
    """
    if headroom >= Headroom.RACK and replica.rack:
        return Headroom.RACK, replica.rack
    if headroom >= Headroom.HOST and replica.host:
        return Headroom.HOST, replica.host
    return Headroom.REPLICA, replica.replica_id


def largest_domain(model: Model, ready: Iterable[Replica]) -> FailureDomain | None:
    """The failure domain whose loss costs most.

    Args:
        model: Its policy says which kind.
        ready: The model's ready replicas.

    Returns:
        The largest; of equals the first by name. None without a policy or without replicas.
    """
    if model.headroom == Headroom.NONE:
        return None
    members: dict[tuple[Headroom, str], list[int]] = {}
    total = 0
    for replica in ready:
        members.setdefault(domain_of(replica, model.headroom), []).append(replica.capacity)
        total += replica.capacity
    if not members:
        return None
    (kind, name), lost = min(members.items(), key=lambda item: (-sum(item[1]), item[0]))
    raw = sum(lost)
    part = usable(total, model) - usable(total - raw, model)
    return FailureDomain(kind, name, len(lost), Rate(raw), Rate(part))


def usable(raw: int, model: Model) -> int:
    """The part of raw replica capacity that may be promised and used."""
    return raw * model.target_utilization_ppm // PPM


def raw_for(rate: int, model: Model) -> int:
    """The least raw replica capacity of which `rate` may be used."""
    return -(-rate * PPM // model.target_utilization_ppm)


def spare_raw(model: Model, ready: Sequence[Replica], need: int) -> int:
    """Raw capacity to hold on top of what reservations need, so that they outlive the loss of the largest domain.

    The domain counts as large as it is now. Where nothing runs yet it is taken for one replica as the unit defines it:
    once replicas run, the true size takes over. It counts at most twice the need, but always one or two whole replicas;
    see _DOMAIN_NEEDS_MAX.

    Args:
        model: Its policy.
        ready: Its ready replicas.
        need: Raw capacity that reservations need, milli-MU per minute; 0 needs no spare.
    """
    if model.headroom == Headroom.NONE or need == 0:
        return 0
    domain = largest_domain(model, ready)
    if domain is None:
        return REPLICA_CAPACITY
    replica = max(replica.capacity for replica in ready)
    return min(domain.raw, _DOMAIN_NEEDS_MAX * max(need, replica))
