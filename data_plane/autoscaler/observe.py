"""Translates what the store and the actuator say into what the scaling decision looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from data_plane.autoscaler.actuator import RunningSeat
from data_plane.autoscaler.core.seat import ModelView, Record, Registered, Seat
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.engine.v1 import engine_pb2
from model_units.units import MilliModelUnitsPerMinute

_STATES = {
    engine_pb2.REPLICA_STATE_STARTING: Registered.STARTING,
    engine_pb2.REPLICA_STATE_READY: Registered.READY,
    engine_pb2.REPLICA_STATE_DRAINING: Registered.DRAINING,
    engine_pb2.REPLICA_STATE_UNHEALTHY: Registered.UNHEALTHY,
    engine_pb2.REPLICA_STATE_CALIBRATING: Registered.CALIBRATING,
}


def registration_of(seat: RunningSeat, replicas: Iterable[engine_pb2.Replica]) -> engine_pb2.Replica | None:
    """The record this very process wrote; one that an earlier process of the seat left behind does not count."""
    for replica in replicas:
        same_seat = replica.model_id == seat.model_id and replica.slot == seat.slot
        if same_seat and replica.agent_pid == seat.pid and seat.pid:
            return replica
    return None


def view_model(
    model_id: str,
    model: admin_pb2.Model | None,
    target: capacity_pb2.CapacityTarget | None,
    seats: Iterable[RunningSeat],
    replicas: Iterable[engine_pb2.Replica],
    requests_in_flight: Mapping[str, int],
) -> ModelView:
    """One model as the scaling decision sees it.

    Args:
        model_id: The model.
        model: Its definition; None when it was deleted, which lets its replicas drain after the stable window.
        target: What the capacity allocator asks for, if it has.
        seats: The model's seats.
        replicas: The model's registered replicas.
        requests_in_flight: By replica id, what draining agents said.
    """
    running, registered = list(seats), list(replicas)
    seen = tuple(_seat(seat, registration_of(seat, registered), requests_in_flight) for seat in running)
    ours = {seat.slot for seat in running}
    live = (
        engine_pb2.REPLICA_STATE_STARTING,
        engine_pb2.REPLICA_STATE_READY,
        engine_pb2.REPLICA_STATE_CALIBRATING,
    )
    foreign = tuple(_record(replica) for replica in registered if replica.slot not in ours and replica.state in live)
    if model is None:
        return ModelView(model_id, 0, len(running), MilliModelUnitsPerMinute(0), seen, foreign)
    need = None
    if target is not None:
        need = MilliModelUnitsPerMinute(max(target.target_milli_mu_per_minute, target.floor_milli_mu_per_minute, 0))
    return ModelView(model_id, model.replicas_min, model.replicas_max, need, seen, foreign)


def _seat(seat: RunningSeat, replica: engine_pb2.Replica | None, requests_in_flight: Mapping[str, int]) -> Seat:
    if replica is None:
        return Seat(seat.slot, seat.start_number, seat.alive)
    in_flight = requests_in_flight.get(replica.replica_id)
    return Seat(seat.slot, seat.start_number, seat.alive, _record(replica), in_flight)


def _record(replica: engine_pb2.Replica) -> Record:
    capacity = MilliModelUnitsPerMinute(max(replica.capacity_milli_mu_per_minute, 0))
    return Record(replica.replica_id, _STATES.get(replica.state, Registered.STARTING), capacity)
