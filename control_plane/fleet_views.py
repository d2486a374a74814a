"""What the sharder watches of the store, and what its core sees of it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from common.mirror import Mirror
from control_plane.core.sharding.values import Life, Server
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import NotFoundError
from model_units.cost import CostProfile
from model_units.profiles import built_in_profiles
from model_units.units import MILLI_PER_REPLICA_SECOND
from model_units.units import MilliModelUnitsPerMinute as Rate

# A replica that is being calibrated serves nobody and comes back: one that is not listed counts as crashed.
_LIVES: Final = {
    engine_pb2.REPLICA_STATE_READY: Life.OPEN,
    engine_pb2.REPLICA_STATE_DRAINING: Life.LEAVING,
    engine_pb2.REPLICA_STATE_CALIBRATING: Life.LEAVING,
}


def server_of(replica: engine_pb2.Replica) -> Server | None:
    """A replica as the sharder sees it; None for one that cannot serve."""
    life = _LIVES.get(replica.state)
    if life is None:
        return None
    capacity = Rate(replica.capacity_milli_mu_per_minute)
    return Server(replica.replica_id, replica.slot or replica.replica_id, capacity, life)


@dataclass(frozen=True, slots=True)
class FleetViews:
    """Live copies of the store.

    Attributes:
        replicas: engine.Replica by id.
        models: admin.Model by id.
        reservations: admin.Reservation by "model/tenant".
        profiles: Cost profiles by id.
        routers: admin.ServiceInstance of every router, by anything.
    """

    replicas: Mirror[engine_pb2.Replica]
    models: Mirror[admin_pb2.Model]
    reservations: Mirror[admin_pb2.Reservation]
    profiles: Mirror[CostProfile]
    routers: Mirror[admin_pb2.ServiceInstance]

    @property
    def synced(self) -> bool:
        """Whether the store has been read."""
        return all(mirror.synced for mirror in self._all())

    async def wait_synced(self) -> None:
        """Returns once the store has been read."""
        for mirror in self._all():
            await mirror.wait_synced()

    def _all(self) -> tuple[Mirror[object], ...]:
        return self.replicas, self.models, self.reservations, self.profiles, self.routers  # type: ignore[return-value]

    def of_model(self, model_id: str) -> list[engine_pb2.Replica]:
        """A model's registered replicas, whatever their state."""
        return [replica for replica in self.replicas.items.values() if replica.model_id == model_id]

    def servers(self, model_id: str, dead: Set[str]) -> tuple[Server, ...]:
        """A model's replicas that can serve, sorted by id; of two with one address only the one that started last.

        Args:
            model_id: The model.
            dead: Registered replicas that are taken for dead.
        """
        newest: dict[str, engine_pb2.Replica] = {}
        for replica in self.of_model(model_id):
            address = replica.address or replica.replica_id
            other = newest.get(address)
            if other is None or _started(other) < _started(replica):
                newest[address] = replica
        return tuple(
            sorted(
                (server for r in newest.values() if r.replica_id not in dead and (server := server_of(r)) is not None),
                key=lambda server: server.replica_id,
            )
        )

    def reserved(self, model_id: str) -> dict[str, Rate]:
        """Reserved rate of a model by tenant."""
        return {
            r.tenant_id: Rate(r.reserved_milli_mu_per_minute)
            for r in self.reservations.items.values()
            if r.model_id == model_id
        }

    def token_milli_mu(self, model_id: str) -> float:
        """What computing one token of a prompt costs; 0 where the model's profile is not known."""
        model = self.models.items[model_id]
        try:
            profiles = built_in_profiles().with_live(self.profiles.items)
            return profiles.resolve(model.profile_id, model.engine.hardware).a * MILLI_PER_REPLICA_SECOND
        except NotFoundError:
            return 0.0


def _started(replica: engine_pb2.Replica) -> tuple[int, str]:
    return replica.start_time.ToNanoseconds(), replica.replica_id
