"""Live capacity, reservations and demand become per-tenant quotas: one pure function, the same answer everywhere.

Per model, in milli-MU per minute:

1. *have* = capacity of the READY replicas x target utilisation.
2. *guaranteed*: reservations, as far as `have` covers them. In a shortfall a lower tier number is served first, and
   within the first tier that does not fit the rest is shared by weighted max-min. The gap is reported, never silent.
3. A tenant that does not use its guarantee *keeps* twice what it wants, at least half of it; the rest may
   be lent. It gets everything back in the round after its wants rise.
4. *Lending*: what tenants want above their guarantee, up to their burst ceiling, is served by weighted max-min, first
   from capacity nobody bought, then from unused guarantees.
5. Capacity that is idle even then is handed out up to the ceilings too, so that a burst needs no round trip.

The sum granted never exceeds `have`. Example: have 240,000; A reserved 150,000 and wants 20,000; B reserved 50,000 with
ceiling 240,000 and wants 200,000. B gets its 50,000, the unsold 40,000 and A's unused 75,000: 165,000; A keeps 75,000.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from capacity.core.fair_share import Claim, fair_share
from model_units.units import MilliModelUnitsPerMinute as Rate

PPM = 1_000_000
# What 0 means in admin.Model.target_utilization.
DEFAULT_UTILIZATION_PPM = 800_000

# An idle owner keeps this part of its guarantee, so that its first requests after a pause meet no refusal; the rest is
# back within about a second. Half: a compromise between lending and readiness.
KEEP_PART_MIN = (1, 2)
# An owner in use keeps its wants with this headroom: wants are averages over the last seconds, so an owner that comes
# back is seen at a fraction of what it really wants, and must be back at its whole reservation within two seconds.
KEEP_WANTS_FACTOR = 2
# Wants are rounded up to 1/16 of their power of two (6 % at most), so that noise does not move everyone's quota.
_WANTS_STEPS = 16


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica as the allocator sees it.

    Attributes:
        replica_id: Its id.
        model_id: What it serves.
        capacity: Milli-MU per minute at its latency objective.
        ready: Whether it takes requests.
    """

    replica_id: str
    model_id: str
    capacity: Rate
    ready: bool


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the allocator sees it.

    Attributes:
        model_id: Its id.
        target_utilization_ppm: Share of live capacity that may be promised and used, parts per million, 1 to PPM.
    """

    model_id: str
    target_utilization_ppm: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a tenant bought.

    Attributes:
        tenant_id: Who.
        model_id: Of what.
        reserved: Guaranteed rate; 0 for best effort only.
        ceiling: Most including lent capacity; below `reserved` counts as `reserved`.
        tier: 1 (first in a shortfall) to 9.
        weight: 1 to 1000.
    """

    tenant_id: str
    model_id: str
    reserved: Rate
    ceiling: Rate
    tier: int = 5
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Demand:
    """What a tenant wants of a model and uses of it, over all routers, milli-MU per minute."""

    wants: Rate
    used: Rate


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """One tenant's row of the ledger; fields as in fairlead.capacity.v1.Quota."""

    tenant_id: str
    reserved: Rate
    guaranteed: Rate
    granted: Rate
    ceiling: Rate
    wants: Rate
    used: Rate


@dataclass(frozen=True, slots=True)
class ModelLedger:
    """Have, sold and used of one model, its quotas sorted by tenant, and what the autoscaler should hold."""

    model_id: str
    replicas_ready: int
    have: Rate
    sold: Rate
    used: Rate
    shortfall: Rate
    target: Rate
    floor: Rate
    quotas: tuple[TenantQuota, ...]


NO_DEMAND = Demand(Rate(0), Rate(0))


def allocate(
    replicas: Iterable[Replica],
    models: Iterable[Model],
    reservations: Iterable[Reservation],
    demand: Mapping[tuple[str, str], Demand],
) -> tuple[ModelLedger, ...]:
    """Computes every model's ledger.

    Args:
        replicas: Every registered replica; only ready ones count.
        models: Every known model. Replicas and reservations of others are left out.
        reservations: At most one per (model, tenant).
        demand: By (model id, tenant id); absent means none.

    Returns:
        One ledger per model, sorted by model. A model without live replicas has a ledger with nothing granted and the
        whole reservation as shortfall.
    """
    ready: dict[str, list[Rate]] = {}
    sold: dict[str, list[Reservation]] = {}
    for replica in replicas:
        if replica.ready:
            ready.setdefault(replica.model_id, []).append(replica.capacity)
    for reservation in sorted(reservations, key=lambda r: r.tenant_id):
        sold.setdefault(reservation.model_id, []).append(reservation)
    ledgers = []
    for model in sorted(models, key=lambda model: model.model_id):
        mine = sold.get(model.model_id, [])
        wanted = [demand.get((model.model_id, r.tenant_id), NO_DEMAND) for r in mine]
        ledgers.append(_ledger(model, ready.get(model.model_id, []), mine, wanted))
    return tuple(ledgers)


def _ledger(
    model: Model, ready: Sequence[Rate], reservations: Sequence[Reservation], demand: Sequence[Demand]
) -> ModelLedger:
    have = sum(ready) * model.target_utilization_ppm // PPM
    guaranteed = guarantees(have, reservations)
    granted = _grants(have, reservations, guaranteed, demand)
    quotas = tuple(
        TenantQuota(r.tenant_id, r.reserved, Rate(sure), Rate(now), ceiling_of(r), d.wants, d.used)
        for r, sure, now, d in zip(reservations, guaranteed, granted, demand, strict=True)
    )
    sold = sum(r.reserved for r in reservations)
    wanted = sum(min(d.wants, ceiling_of(r)) for r, d in zip(reservations, demand, strict=True))
    return ModelLedger(
        model_id=model.model_id,
        replicas_ready=len(ready),
        have=Rate(have),
        sold=Rate(sold),
        used=Rate(sum(d.used for d in demand)),
        shortfall=Rate(sold - sum(guaranteed)),
        target=_capacity_for(max(sold, wanted), model),
        floor=_capacity_for(sold, model),
        quotas=quotas,
    )


def ceiling_of(reservation: Reservation) -> Rate:
    """The most a tenant may be granted: its burst ceiling, but never less than what it bought."""
    return max(reservation.reserved, reservation.ceiling)


def guarantees(have: int, reservations: Sequence[Reservation]) -> list[int]:
    """The part of each reservation that `have` covers: by tier, then weighted max-min.

    Args:
        have: Milli-MU per minute to promise.
        reservations: All of one model.

    Returns:
        One amount per reservation, in order, none above what was reserved.
    """
    covered = [0] * len(reservations)
    left = have
    for tier in sorted({r.tier for r in reservations}):
        indexes = [index for index, r in enumerate(reservations) if r.tier == tier]
        shares = fair_share(left, [Claim(reservations[i].reserved, reservations[i].weight) for i in indexes])
        for index, share in zip(indexes, shares, strict=True):
            covered[index] = share
        left -= sum(shares)
    return covered


def _grants(
    have: int, reservations: Sequence[Reservation], guaranteed: Sequence[int], demand: Sequence[Demand]
) -> list[int]:
    weights = [r.weight for r in reservations]
    ceilings = [ceiling_of(r) for r in reservations]
    wants = [min(_round_up(d.wants), ceiling) for d, ceiling in zip(demand, ceilings, strict=True)]
    unsold = have - sum(guaranteed)

    missing = [max(0, want - sure) for want, sure in zip(wants, guaranteed, strict=True)]
    unused = [sure - _keeps(sure, want) for sure, want in zip(guaranteed, wants, strict=True)]
    lent = fair_share(unsold + sum(unused), _claims(missing, weights))
    borrowed = max(0, sum(lent) - unsold)
    given_up = fair_share(borrowed, [Claim(amount) for amount in unused])
    granted = [sure + more - less for sure, more, less in zip(guaranteed, lent, given_up, strict=True)]

    idle = have - sum(granted)
    # Idle capacity exists only when nobody had to give anything up, so no owner is below its guarantee here.
    room = [ceiling - now for ceiling, now in zip(ceilings, granted, strict=True)]
    extra = fair_share(idle, _claims(room, weights))
    return [now + more for now, more in zip(granted, extra, strict=True)]


def _claims(limits: Sequence[int], weights: Sequence[int]) -> list[Claim]:
    return [Claim(limit, weight) for limit, weight in zip(limits, weights, strict=True)]


def _keeps(guaranteed: int, wants: int) -> int:
    least = -(-guaranteed * KEEP_PART_MIN[0] // KEEP_PART_MIN[1])
    return min(guaranteed, max(least, wants * KEEP_WANTS_FACTOR))


def _round_up(wants: int) -> int:
    if wants < _WANTS_STEPS:
        return max(0, wants)
    step = 1 << max(0, wants.bit_length() - _WANTS_STEPS.bit_length())
    return -(-wants // step) * step


def _capacity_for(rate: int, model: Model) -> Rate:
    """Raw replica capacity that carries `rate` at the model's target utilisation."""
    return Rate(-(-rate * PPM // model.target_utilization_ppm))


def utilization_ppm(fraction: float) -> int:
    """A target utilisation as exact parts per million.

    Args:
        fraction: Above 0 up to 1 as stored; 0 means the default of 0.8.

    Returns:
        1 to PPM. A 32-bit float such as 0.7 becomes 700,000, not 699,999.98.
    """
    return min(PPM, max(1, round(fraction * PPM))) if fraction > 0 else DEFAULT_UTILIZATION_PPM
