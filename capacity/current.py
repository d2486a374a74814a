"""What the store holds of one model right now: a sales answer must count what was sold a moment ago."""

from __future__ import annotations

from dataclasses import dataclass

from capacity.core.values import Model, Replica, Reservation
from capacity.translate import model_from, replica_from, reservation_from
from common import keys
from common.store import Store
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import NotFoundError, Reason


@dataclass(frozen=True, slots=True)
class Current:
    """One model with everything that decides its ledger."""

    model: Model
    replicas: tuple[Replica, ...]
    reservations: tuple[Reservation, ...]


async def read_current(store: Store, model_id: str) -> Current:
    """Reads a model, its reservations and the fleet.

    Raises:
        NotFoundError: There is no such model.
        UnavailableError: The store does not answer.
    """
    entry = await store.get(keys.MODELS + model_id)
    if entry is None:
        raise NotFoundError(f"there is no model {model_id!r}", reason=Reason.UNKNOWN_MODEL, field="model_id")
    policies = await store.list(f"{keys.POLICIES}{model_id}/")
    replicas = await store.list(keys.REPLICAS)
    return Current(
        model=model_from(admin_pb2.Model.FromString(entry.value)),
        replicas=tuple(replica_from(engine_pb2.Replica.FromString(item.value)) for item in replicas.entries),
        reservations=tuple(reservation_from(admin_pb2.Reservation.FromString(item.value)) for item in policies.entries),
    )
