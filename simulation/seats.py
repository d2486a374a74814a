"""Where replicas come from and go to: seats are filled, restarted, drained and emptied, with everybody told in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from data_plane.autoscaler.core.scale import SLOT_PREFIX
from fairlead.engine.v1 import engine_pb2
from simulation.books import Incident
from simulation.kernel import NS_PER_S, Loop, stream
from simulation.registry import Registry
from simulation.replica import Replica
from simulation.replica_terms import ReplicaTerms, State
from simulation.scenario import FailureSpec, ModelSpec

# A record hangs on a lease of the store that ends this long after its process; source: common/registration.py.
_RECORD_TTL_S: Final = 5.0
# How often a draining replica is asked whether it is empty.
_DRAIN_LOOK_S: Final = 1.0


@dataclass(slots=True)
class Seat:
    """One place for a replica of a model.

    Attributes:
        slot: Its name.
        replica: Who sits there, dead or alive.
        starts: How often it was started.
    """

    slot: str
    replica: Replica
    starts: int = 1


class Seats:
    """The seats of one model.

    Args:
        loop: Virtual time.
        spec: The model.
        terms: What its replicas are.
        speeds: How many times as fast each of those is that it starts with; what comes later is as fast as usual.
        registry: Where they register.
        directory: All replicas by id, which routers reach them by.
        seed: Of the run.
        note: Told of what happens to replicas.

    Attributes:
        spec: The model.
        seats: By slot.
        replicas: Every replica there ever was.
    """

    def __init__(
        self,
        loop: Loop,
        spec: ModelSpec,
        terms: ReplicaTerms,
        speeds: Sequence[float],
        registry: Registry,
        directory: dict[str, Replica],
        seed: int,
        note: Callable[[Incident], None],
    ) -> None:
        self.spec = spec
        self.seats: dict[str, Seat] = {}
        self.replicas: list[Replica] = []
        self._loop = loop
        self._terms = terms
        self._registry = registry
        self._directory = directory
        self._seed = seed
        self._note = note
        self._speeds = {f"{SLOT_PREFIX}{number}": speed for number, speed in enumerate(speeds, 1)}
        for slot in self._speeds:
            self.start(slot, cold=False)

    def start(self, slot: str, *, cold: bool = True) -> None:
        """Starts a replica in a seat; it takes requests after its cold start."""
        seat = self.seats.get(slot)
        number = 1 if seat is None else seat.starts + 1
        replica_id = f"{self.spec.id}-{slot}-{number}"
        random = stream(self._seed, "replica", replica_id)
        terms = self._terms.at_speed(self._speeds.get(slot, 1.0))
        replica = Replica(replica_id, slot, terms, self._loop, random)
        self._directory[replica_id] = replica
        self.replicas.append(replica)
        self.seats[slot] = Seat(slot, replica, number)
        if cold:
            self._note(Incident(self._loop.now_ns / NS_PER_S, "start", f"{replica_id} starts"))
            self._write(replica)
            self._loop.after(self.spec.cold_start_s, self._ready, replica)
        else:
            self._ready(replica)

    def drain(self, slot: str) -> None:
        """A replica takes no new requests."""
        replica = self.seats[slot].replica
        if replica.alive:
            replica.drain()
            self._write(replica)

    def kill(self, slot: str) -> None:
        """A replica's process ends, whatever it does; its record vanishes when its lease ends."""
        self._kill(self.seats[slot].replica)

    def stop(self, slot: str) -> None:
        """A replica's process is ended in an orderly way: it takes its record along."""
        replica = self.seats[slot].replica
        if replica.alive:
            replica.die()
            self._registry.delete(replica.replica_id)

    def forget(self, slot: str) -> None:
        """A seat is given up."""
        del self.seats[slot]

    def fail(self, failure: FailureSpec) -> None:
        """Lets something go wrong, and be mended later where the failure says so."""
        slot = f"{SLOT_PREFIX}{failure.replica}"
        seat = self.seats.get(slot)
        if seat is None or not seat.replica.alive:
            return  # the autoscaler has taken it out meanwhile
        replica = seat.replica
        self._note(Incident(self._loop.now_ns / NS_PER_S, failure.kind, f"{failure.kind} of {replica.replica_id}"))
        match failure.kind:
            case "crash":
                self._kill(replica)
            case "freeze":
                replica.freeze()
                self._loop.after(_RECORD_TTL_S, self._expire_record, replica)
            case "slow":
                replica.slow_down(failure.slow_factor)
            case _:
                self.drain(slot)
                self._loop.after(_DRAIN_LOOK_S, self._stop_when_empty, replica)
        if failure.heal_after_s:
            self._loop.after(failure.heal_after_s, self._heal, (failure.kind, slot, replica))

    def _heal(self, case: tuple[str, str, Replica]) -> None:
        kind, slot, replica = case
        seat = self.seats.get(slot)
        if seat is None or seat.replica is not replica:
            return  # somebody else has seen to it
        self._note(Incident(self._loop.now_ns / NS_PER_S, "heal", f"{replica.replica_id} is mended"))
        if kind == "freeze":
            replica.thaw()
            self._write(replica)
        elif kind == "slow":
            replica.slow_down(1.0)
        else:
            self.stop(slot)
            self.start(slot)

    def _kill(self, replica: Replica) -> None:
        if replica.alive:
            replica.die()
            self._loop.after(_RECORD_TTL_S, self._expire_record, replica)

    def _expire_record(self, replica: Replica) -> None:
        if replica.frozen or not replica.alive:
            self._registry.delete(replica.replica_id)

    def _stop_when_empty(self, replica: Replica) -> None:
        if not replica.alive or replica.state is not State.DRAINING:
            return
        if replica.in_flight:
            self._loop.after(_DRAIN_LOOK_S, self._stop_when_empty, replica)
        else:
            replica.die()
            self._registry.delete(replica.replica_id)

    def _ready(self, replica: Replica) -> None:
        if replica.state is State.STARTING:
            replica.open()
            self._write(replica)
            if self._loop.now_ns:
                self._note(Incident(self._loop.now_ns / NS_PER_S, "ready", f"{replica.replica_id} is ready"))

    def _write(self, replica: Replica) -> None:
        if not replica.alive:
            return
        self._registry.put(
            engine_pb2.Replica(
                replica_id=replica.replica_id,
                model_id=self.spec.id,
                hardware=self.spec.hardware,
                capacity_milli_mu_per_minute=replica.capacity,
                state=replica.state.value,
                slot=replica.slot,
                prefix_cache=True,
            )
        )
