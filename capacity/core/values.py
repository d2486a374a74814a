"""What the allocator reads and what it answers: frozen values, rates in milli-MU per minute."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from capacity.core.columns import Column, column
from model_units.units import MilliModelUnitsPerMinute as Rate

PPM = 1_000_000
# What 0 means in admin.Model.target_utilization.
DEFAULT_UTILIZATION_PPM = 800_000


class Headroom(enum.IntEnum):
    """What must be able to vanish without a reservation being cut; the numbers of fairlead.admin.v1.Headroom."""

    NONE = 1
    REPLICA = 2
    HOST = 3
    RACK = 4


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica as the allocator sees it.

    Attributes:
        replica_id: Its id.
        model_id: What it serves.
        capacity: Milli-MU per minute at its latency objective.
        ready: Whether it takes requests.
        host: Where it runs; empty where nobody said.
        rack: Where that host stands; empty where nobody said.
    """

    replica_id: str
    model_id: str
    capacity: Rate
    ready: bool
    host: str = ""
    rack: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the allocator sees it.

    Attributes:
        model_id: Its id.
        target_utilization_ppm: Share of live capacity that may be promised and used, parts per million, 1 to PPM.
        headroom: What is held back from sale.
    """

    model_id: str
    target_utilization_ppm: int
    headroom: Headroom = Headroom.NONE


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


class Demand(NamedTuple):
    """What a tenant wants of a model and uses of it, over all routers, milli-MU per minute."""

    wants: Rate
    used: Rate


NO_DEMAND = Demand(Rate(0), Rate(0))


class TenantQuota(NamedTuple):
    """One tenant's row of the ledger: fields as in fairlead.capacity.v1.Quota, then what they were computed from.

    `granted` is `guaranteed - lent + borrowed + idle`, always.

    Attributes:
        tier: Of the reservation.
        weight: Of the reservation.
        counted: Wants as they were counted, at most the ceiling.
        kept: Part of the guarantee that it keeps whatever others want.
        lent: Part of the guarantee that others have now.
        borrowed: What it wants above its guarantee and was given.
        idle: Its share of capacity that nobody wants.
    """

    tenant_id: str
    reserved: Rate
    guaranteed: Rate
    granted: Rate
    ceiling: Rate
    wants: Rate
    used: Rate
    tier: int
    weight: int
    counted: Rate
    kept: Rate
    lent: Rate
    borrowed: Rate
    idle: Rate


class Sold:
    """The reservations of one model as columns, sorted by tenant.

    Args:
        reservations: All of one model, at most one per tenant.

    Attributes:
        tenants: Who.
        reserved: Guaranteed rates.
        ceiling: Most each may be granted; never below `reserved`.
        tier: 1 to 9.
        weight: 1 to 1000.
        total: Sum of `reserved`.
    """

    def __init__(self, reservations: list[Reservation]) -> None:
        rows = sorted(reservations, key=lambda r: r.tenant_id)
        self.tenants = tuple([r.tenant_id for r in rows])
        self.reserved = column([r.reserved for r in rows])
        self.ceiling = np.maximum(self.reserved, column([r.ceiling for r in rows]))
        self.tier = column([r.tier for r in rows])
        self.weight = column([r.weight for r in rows])
        self.total = int(self.reserved.sum())


@dataclass(frozen=True, slots=True)
class Shares:
    """How live capacity was shared among the tenants of one model, one column per step of the computation.

    Fields as in TenantQuota.
    """

    guaranteed: Column
    counted: Column
    kept: Column
    lent: Column
    borrowed: Column
    idle: Column

    @property
    def granted(self) -> Column:
        """What each may use now."""
        return self.guaranteed - self.lent + self.borrowed + self.idle


@dataclass(frozen=True, eq=False)
class Quotas:
    """The quotas of one model as columns; rows are made when somebody looks at them."""

    sold: Sold
    shares: Shares
    wants: Column
    used: Column

    @cached_property
    def granted(self) -> Column:
        """What each may use now."""
        return self.shares.granted

    @cached_property
    def rows(self) -> tuple[TenantQuota, ...]:
        """One row per tenant, sorted by tenant."""
        sold, shares = self.sold, self.shares
        numbers = (sold.reserved, shares.guaranteed, self.granted, sold.ceiling, self.wants, self.used, sold.tier)
        steps = (sold.weight, shares.counted, shares.kept, shares.lent, shares.borrowed, shares.idle)
        columns = [part.tolist() for part in (*numbers, *steps)]
        return tuple(map(TenantQuota._make, zip(sold.tenants, *columns, strict=True)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quotas) and self.rows == other.rows


@dataclass(frozen=True, slots=True)
class FailureDomain:
    """Ready replicas of one model that can vanish together.

    Attributes:
        kind: REPLICA, HOST or RACK; a replica without a rack counts by host, one without a host alone.
        name: The replica, host or rack.
        replicas: How many.
        raw: Their capacity.
        capacity: Their part of have.
    """

    kind: Headroom
    name: str
    replicas: int
    raw: Rate
    capacity: Rate


@dataclass(frozen=True)
class ModelLedger:
    """Have, sold and used of one model, its quotas, and what the autoscaler should hold.

    Attributes:
        model_id: The model.
        target_utilization_ppm: Of the model.
        replicas_ready: Replicas that count.
        have: Their capacity at target utilisation.
        sold: Sum of the reservations.
        used: Settled lately.
        shortfall: Part of `sold` that `have` does not cover.
        target: Raw capacity that covers reservations, headroom and demand.
        floor: Raw capacity that covers reservations and headroom.
        headroom: The model's policy.
        largest_domain: The largest that the policy is about; None without a policy or without replicas.
        sellable: What may be sold: `have` less that domain.
        uncovered_after_loss: Part of `sold` that would not be covered after losing it.
        columns: The quotas.
    """

    model_id: str
    target_utilization_ppm: int
    replicas_ready: int
    have: Rate
    sold: Rate
    used: Rate
    shortfall: Rate
    target: Rate
    floor: Rate
    headroom: Headroom
    largest_domain: FailureDomain | None
    sellable: Rate
    uncovered_after_loss: Rate
    columns: Quotas

    @property
    def quotas(self) -> tuple[TenantQuota, ...]:
        """One row per tenant, sorted by tenant."""
        return self.columns.rows

    @property
    def covered(self) -> bool:
        """Whether reservations are covered, now and after the loss of the largest domain."""
        return self.shortfall == 0 and self.uncovered_after_loss == 0

    def quota(self, tenant_id: str) -> TenantQuota | None:
        """One tenant's row; None where it has no reservation."""
        return next((row for row in self.quotas if row.tenant_id == tenant_id), None)


def ceiling_of(reservation: Reservation) -> Rate:
    """The most a tenant may be granted: its burst ceiling, but never less than what it bought."""
    return max(reservation.reserved, reservation.ceiling)


def utilization_ppm(fraction: float) -> int:
    """A target utilisation as exact parts per million.

    Args:
        fraction: Above 0 up to 1 as stored; 0 means the default of 0.8.

    Returns:
        1 to PPM. A 32-bit float such as 0.7 becomes 700,000, not 699,999.98.
    """
    return min(PPM, max(1, round(fraction * PPM))) if fraction > 0 else DEFAULT_UTILIZATION_PPM
