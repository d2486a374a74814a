"""May this be sold? What counts of a model's capacity when reservations grow, and the refusal where that is too little.

The capacity that counts is the larger of two: what may be sold of the live replicas now (their capacity at the target
utilisation, less the headroom policy's failure domain), and the same of as many replicas as the model may have, so
that tenants can be set up before replicas run. Reservations that do not grow in sum are never refused, however far
above capacity they are: whoever has sold too much must be able to sell less, step by step.
"""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.admin.v1 import admin_pb2
from fairlead.errors import FailedPreconditionError, Reason
from model_units.units import REPLICA_CAPACITY

PPM = 1_000_000
# What 0 means in admin.Model.target_utilization.
DEFAULT_UTILIZATION_PPM = 800_000


@dataclass(frozen=True, slots=True)
class LiveCapacity:
    """What the capacity allocator says of a model, milli-MU per minute.

    Attributes:
        have: Ready capacity times the target utilisation.
        sellable: The part of it that may be sold under the model's headroom policy.
        largest_domain: The part of it that the headroom policy holds back; 0 without a policy.
    """

    have: int
    sellable: int
    largest_domain: int


@dataclass(frozen=True, slots=True)
class Sale:
    """How the reservations of one model change in sum, milli-MU per minute.

    Attributes:
        model: The model, as it is stored.
        sold_before: Sum of its reservations now.
        sold_after: Sum with the change.
        live_only: Whether only live capacity counts, not the replicas that the model may have.
    """

    model: admin_pb2.Model
    sold_before: int
    sold_after: int
    live_only: bool = False

    @property
    def grows(self) -> bool:
        """Whether more is sold than before; nothing else needs capacity."""
        return self.sold_after > self.sold_before

    def refusal(self, live: LiveCapacity | None) -> FailedPreconditionError | None:
        """Why it must not be sold; None where it may.

        Args:
            live: What the allocator says; None where it cannot be asked.
        """
        capacity = live.sellable if self.live_only and live is not None else capacity_for_sale(self.model, live)
        if not self.grows or capacity is None or self.sold_after <= capacity:
            return None
        model_id = self.model.model_id
        alive = f"{_mu(live.sellable)} of its live capacity now, " if live is not None else ""
        basis = "of its live capacity now" if self.live_only else f"{alive}up to {self.model.replicas_max} replicas"
        insist = "sell ahead of its replicas with `fairlead quota set`" if self.live_only else "insist with --oversell"
        return FailedPreconditionError(
            f"{model_id} may sell {_mu(capacity)} MU/min in all ({basis}); "
            f"{_mu(self.sold_before)} are sold and {_mu(self.sold_after)} would be, "
            f"{_mu(self.sold_after - capacity)} too much: sell less, or give it more replicas "
            f"(`fairlead capacity plan {model_id} --add-replicas 1`), or {insist}",
            reason=Reason.CAPACITY_EXCEEDED,
            metadata={
                "model_id": model_id,
                "capacity_milli_mu_per_minute": str(capacity),
                "sold_milli_mu_per_minute": str(self.sold_before),
                "would_be_sold_milli_mu_per_minute": str(self.sold_after),
                "excess_milli_mu_per_minute": str(self.sold_after - capacity),
            },
        )


def capacity_for_sale(model: admin_pb2.Model, live: LiveCapacity | None) -> int | None:
    """What may be sold of a model in all, milli-MU per minute.

    Args:
        model: As it is stored.
        live: What the allocator says; None where it cannot be asked.

    Returns:
        The larger of what live replicas and what `replicas_max` replicas cover; None where neither is known. Where
        replicas are yet to come, one replica is held back for a headroom policy, or the largest failure domain of
        today where that is more.
    """
    known = [] if live is None else [live.sellable]
    if model.replicas_max:
        share_ppm = round(model.target_utilization * PPM) or DEFAULT_UTILIZATION_PPM
        replica = REPLICA_CAPACITY * share_ppm // PPM
        held_back = 0
        if model.headroom not in (admin_pb2.HEADROOM_UNSPECIFIED, admin_pb2.HEADROOM_NONE):
            held_back = max(replica, live.largest_domain if live is not None else 0)
        known.append(max(0, model.replicas_max * replica - held_back))
    return max(known, default=None)


def _mu(rate: int) -> str:
    return f"{rate / 1000:,.3f}".rstrip("0").rstrip(".")
