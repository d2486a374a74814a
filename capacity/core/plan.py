"""Can this be sold? The ledger of live capacity with one reservation replaced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from capacity.core import phrases
from capacity.core.allocate import allocate
from capacity.core.values import Model, ModelLedger, Replica, Reservation
from model_units.units import MilliModelUnitsPerMinute as Rate


@dataclass(frozen=True, slots=True)
class SalesPlan:
    """The answer to a sales question.

    Attributes:
        sellable: Whether what may be sold covers all reservations including this one.
        headroom: What may be sold minus sold; negative when short.
        reservable: The most this tenant could reserve, with all others as they are.
        explanation: One sentence.
        ledger: With this reservation.
    """

    sellable: bool
    headroom: Rate
    reservable: Rate
    explanation: str
    ledger: ModelLedger


def plan_reservation(
    replicas: Iterable[Replica], model: Model, reservations: Iterable[Reservation], wanted: Reservation
) -> SalesPlan:
    """Tests a reservation without selling it.

    Args:
        replicas: Every registered replica.
        model: The model in question.
        reservations: Those sold; one of the same tenant on this model is replaced.
        wanted: The reservation to test.

    Returns:
        Whether what may be sold covers all of them, with the numbers and one sentence.
    """
    others = [r for r in reservations if r.model_id == model.model_id and r.tenant_id != wanted.tenant_id]
    (ledger,) = allocate(replicas, [model], [*others, wanted], {})
    headroom = Rate(ledger.sellable - ledger.sold)
    reservable = Rate(max(0, headroom + wanted.reserved))
    return SalesPlan(headroom >= 0, headroom, reservable, _explain(ledger, headroom), ledger)


def _explain(ledger: ModelLedger, headroom: int) -> str:
    if ledger.replicas_ready == 0:
        return f"{ledger.model_id} has no ready replica, so nothing it sells is covered now."
    basis = phrases.fleet(ledger.replicas_ready, ledger.target_utilization_ppm)
    rest = phrases.amount(abs(headroom))
    domain = ledger.largest_domain
    if domain is None:
        if headroom >= 0:
            return f"{basis} cover it and leave {rest} unsold."
        return f"{basis} are {rest} short: the gap would be shared by tier, then by weight."
    loss = phrases.domain(domain)
    if headroom >= 0:
        return f"{basis} cover it even without {loss}, and leave {rest} unsold."
    if ledger.shortfall == 0:
        return f"{basis} cover it, but without {loss} they would be {rest} short."
    return (
        f"{basis} are {phrases.amount(ledger.shortfall)} short, and {rest} without {loss}: the gap would be shared by "
        "tier, then by weight."
    )
