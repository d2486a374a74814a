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

Headroom: *sellable* is `have` less its largest failure domain. What is held back from sale is lent like any capacity
nobody bought, and guarantees come from all of `have`: headroom is there to be used in a loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from capacity.core.columns import Column, column
from capacity.core.domains import largest_domain, raw_for, spare_raw, usable
from capacity.core.shares import share_out
from capacity.core.values import (
    NO_DEMAND,
    PPM,
    Demand,
    FailureDomain,
    Headroom,
    Model,
    ModelLedger,
    Quotas,
    Replica,
    Reservation,
    Sold,
    TenantQuota,
    ceiling_of,
    utilization_ppm,
)
from capacity.core.wants import round_up
from model_units.units import MilliModelUnitsPerMinute as Rate

__all__ = [
    "PPM",
    "Demand",
    "FailureDomain",
    "Headroom",
    "Model",
    "ModelLedger",
    "Replica",
    "Reservation",
    "TenantQuota",
    "allocate",
    "ceiling_of",
    "demand_columns",
    "have_of",
    "ledger_of",
    "utilization_ppm",
]


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
    ready: dict[str, list[Replica]] = {}
    booked: dict[str, list[Reservation]] = {}
    for replica in replicas:
        if replica.ready:
            ready.setdefault(replica.model_id, []).append(replica)
    for reservation in reservations:
        booked.setdefault(reservation.model_id, []).append(reservation)
    ledgers = []
    for model in sorted(models, key=lambda model: model.model_id):
        fleet, sold = ready.get(model.model_id, []), Sold(booked.get(model.model_id, []))
        wants, used = demand_columns([demand.get((model.model_id, tenant), NO_DEMAND) for tenant in sold.tenants])
        counted = round_up(np.minimum(wants, sold.ceiling))
        shares = share_out(have_of(model, fleet), sold, counted)
        ledgers.append(ledger_of(model, fleet, Quotas(sold, shares, wants, used)))
    return tuple(ledgers)


def demand_columns(demand: Sequence[Demand]) -> tuple[Column, Column]:
    """What is wanted and what is used, as columns."""
    return column([d.wants for d in demand]), column([d.used for d in demand])


def have_of(model: Model, ready: Iterable[Replica]) -> int:
    """Live capacity at target utilisation."""
    return usable(sum(replica.capacity for replica in ready), model)


def ledger_of(model: Model, ready: Sequence[Replica], quotas: Quotas) -> ModelLedger:
    """The ledger of one model.

    Args:
        model: The model.
        ready: Its ready replicas.
        quotas: Its quotas, computed from what those have.
    """
    have, sold = have_of(model, ready), quotas.sold.total
    domain = largest_domain(model, ready)
    sellable = have - (domain.capacity if domain else 0)
    need = raw_for(sold, model)
    floor = need + spare_raw(model, ready, need)
    wanted = int(np.minimum(quotas.wants, quotas.sold.ceiling).sum())
    return ModelLedger(
        model_id=model.model_id,
        target_utilization_ppm=model.target_utilization_ppm,
        replicas_ready=len(ready),
        have=Rate(have),
        sold=Rate(sold),
        used=Rate(int(quotas.used.sum())),
        shortfall=Rate(max(0, sold - have)),
        # Headroom is lent, so it serves demand too: what is wanted above the reservations needs none of its own.
        target=Rate(max(floor, raw_for(wanted, model))),
        floor=Rate(floor),
        headroom=model.headroom,
        largest_domain=domain,
        sellable=Rate(sellable),
        uncovered_after_loss=Rate(max(0, sold - sellable)),
        columns=quotas,
    )
