"""The replica's own record in the store: what it is, and the state it is in."""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass

from common import keys
from common.clock import Clock
from common.registration import Registration
from common.store import Store
from engines.agent.notices import Notices
from engines.engine import DirectWay, EngineDescription
from fairlead.engine.v1 import engine_pb2
from model_units.units import MilliModelUnitsPerMinute

State = engine_pb2.ReplicaState


@dataclass(frozen=True, slots=True)
class Direct:
    """That routers are to send requests to the engine itself.

    Attributes:
        address: Its address for them; empty for the one the agent uses.
        credentials: Names the credentials at the routers; empty for none.
    """

    address: str = ""
    credentials: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """What does not change while the agent lives.

    Attributes:
        model_id: The model it serves.
        hardware: Hardware label.
        engine: Engine label.
        slot: The seat it was started for, or empty.
        rack: Failure domain, or empty.
        capacity: What it serves at its latency objective, mMU per minute.
        direct: Requests go past the agent; None where they do not.
    """

    model_id: str
    hardware: str
    engine: str
    slot: str
    rack: str
    capacity: MilliModelUnitsPerMinute
    direct: Direct | None = None


class ReplicaRecord:
    """Keeps the record at replicas/{id} true: every change is written at once.

    Args:
        store: Where to.
        identity: What the replica is.
        clock: For the start time.
        changed: Told of every change of state.
    """

    def __init__(
        self,
        store: Store,
        identity: ReplicaIdentity,
        *,
        clock: Clock,
        changed: Notices,
    ) -> None:
        self._changed = changed
        self._direct = identity.direct
        self._replica = engine_pb2.Replica(
            replica_id=f"{identity.model_id}-{secrets.token_hex(4)}",
            model_id=identity.model_id,
            hardware=identity.hardware,
            engine=identity.engine,
            capacity_milli_mu_per_minute=identity.capacity,
            state=State.REPLICA_STATE_STARTING,
            host=socket.gethostname(),
            rack=identity.rack,
            agent_pid=os.getpid(),
            slot=identity.slot,
        )
        self._replica.start_time.FromNanoseconds(clock.wall_ns())
        self._state: engine_pb2.ReplicaState.ValueType = State.REPLICA_STATE_STARTING
        self._draining = False
        self._calibrating = False
        self._registration = Registration(
            store, keys.replica(self._replica.replica_id), self._replica.SerializeToString
        )

    @property
    def replica_id(self) -> str:
        """Unique for every start of an agent."""
        return self._replica.replica_id

    @property
    def state(self) -> engine_pb2.ReplicaState.ValueType:
        """The state in force."""
        return self._replica.state

    @property
    def draining(self) -> bool:
        """Whether the replica was told to drain; it never takes requests again."""
        return self._draining

    @property
    def calibrating(self) -> bool:
        """Whether the replica is set aside for a calibration."""
        return self._calibrating

    @property
    def described(self) -> engine_pb2.Replica:
        """The record as last published, a copy."""
        copy = engine_pb2.Replica()
        copy.CopyFrom(self._replica)
        return copy

    def set_addresses(self, address: str, ops_address: str, ticket_address: str = "") -> None:
        """Says where the agent listens; to be known before `run`.

        Args:
            address: host:port of its gRPC server.
            ops_address: host:port of its ops server.
            ticket_address: host:port for clients with tickets; empty where it takes none.
        """
        self._replica.address = address
        self._replica.ops_address = ops_address
        self._replica.ticket_address = ticket_address

    async def run(self) -> None:
        """Keeps the record in the store until cancelled, then removes it."""
        await self._registration.run()

    def set_state(self, state: engine_pb2.ReplicaState.ValueType) -> None:
        """Publishes a state; once draining, only that, and CALIBRATING for READY while it is set aside."""
        self._state = state
        shown = State.REPLICA_STATE_DRAINING if self._draining else state
        if shown == State.REPLICA_STATE_READY and self._calibrating:
            shown = State.REPLICA_STATE_CALIBRATING
        if shown != self._replica.state:
            self._replica.state = shown
            self._publish()

    def drain(self) -> None:
        """Publishes DRAINING, for good."""
        self._draining = True
        self.set_state(State.REPLICA_STATE_DRAINING)

    def set_calibrating(self, calibrating: bool) -> None:
        """Publishes that the replica is set aside for a calibration, or that it is back."""
        self._calibrating = calibrating
        self.set_state(self._state)

    def set_engine(self, description: EngineDescription, process_id: int) -> None:
        """Publishes what the engine says of itself."""
        self._replica.engine_version = description.version
        self._replica.sequences_max = description.sequences_max
        self._replica.kv_capacity_tokens = description.kv_capacity_tokens
        self._replica.context_tokens = description.context_tokens
        self._replica.prefix_cache = description.prefix_cache
        self._replica.engine_pid = process_id
        self._set_way(description.direct)
        self._publish()

    def count_restart(self) -> None:
        """Publishes one restart of the engine more."""
        self._replica.engine_restarts += 1
        self._publish()

    def set_drift(self, ratio: float, profile_id: str, tokens: int) -> None:
        """Publishes how far the engine is from its profile.

        Args:
            ratio: Time it takes over time the profile says; 0 where nothing is known.
            profile_id: The profile; empty where nothing is known.
            tokens: Output tokens the ratio stands for.
        """
        self._replica.drift_ratio = ratio
        self._replica.drift_profile_id = profile_id
        self._replica.drift_tokens = tokens
        self._registration.update()

    def _set_way(self, way: DirectWay | None) -> None:
        if self._direct is None or way is None:
            return
        self._replica.dialect = way.dialect
        self._replica.engine_address = self._direct.address or way.address
        self._replica.engine_model = way.model
        self._replica.engine_credentials = self._direct.credentials
        self._replica.ClearField("triton")
        if way.triton is not None:
            self._replica.triton.CopyFrom(way.triton)

    def _publish(self) -> None:
        self._registration.update()
        self._changed.notify()
