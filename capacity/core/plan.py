"""Can this be sold? The what-if of the ledger: live capacity against all reservations with one of them replaced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from capacity.core.allocate import Model, Replica, Reservation, allocate
from model_units.units import MilliModelUnitsPerMinute as Rate
from model_units.units import to_model_units


@dataclass(frozen=True, slots=True)
class SalesPlan:
    """The answer to a sales question; fields as in fairlead.capacity.v1.PlanReservationResponse."""

    sellable: bool
    have: Rate
    sold: Rate
    headroom: Rate
    explanation: str


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
        Whether live capacity covers all of them, with the numbers and one sentence.
    """
    others = [r for r in reservations if r.model_id == model.model_id and r.tenant_id != wanted.tenant_id]
    (ledger,) = allocate(replicas, [model], [*others, wanted], {})
    headroom = Rate(ledger.have - ledger.sold)
    explanation = _explain(ledger.replicas_ready, model, headroom)
    return SalesPlan(headroom >= 0, ledger.have, ledger.sold, headroom, explanation)


def _explain(replicas_ready: int, model: Model, headroom: int) -> str:
    share = f"{model.target_utilization_ppm / 10_000:g} %"
    basis = f"{replicas_ready} ready replica{'' if replicas_ready == 1 else 's'} at {share} target utilisation"
    if replicas_ready == 0:
        return f"{model.model_id} has no ready replica, so nothing it sells is covered now."
    amount = f"{_model_units(abs(headroom))} MU/min"
    if headroom >= 0:
        return f"{basis} cover it and leave {amount} unsold."
    return f"{basis} are {amount} short: the gap would be shared by tier, then by weight."


def _model_units(rate: int) -> str:
    return f"{to_model_units(rate):,.3f}".rstrip("0").rstrip(".")  # type: ignore[arg-type]  # a rate prints alike
