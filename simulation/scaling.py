"""The autoscaler: the product's decision, with the seats of a simulation as its actuator."""

from __future__ import annotations

from typing import Final

from common.clock import MonotonicNs
from data_plane.autoscaler.core.scale import ModelScaler
from data_plane.autoscaler.core.seat import (
    Drain,
    Forget,
    ModelView,
    Record,
    Registered,
    ScalePolicy,
    Start,
    Stop,
)
from data_plane.autoscaler.core.seat import Seat as SeatView
from fairlead.engine.v1 import engine_pb2
from model_units.units import MilliModelUnitsPerMinute
from simulation.kernel import Loop
from simulation.quota import Allocator
from simulation.registry import Registry
from simulation.seats import Seat, Seats

# The autoscaler's default setting: data_plane/autoscaler/config.py.
_LOOK_INTERVAL_S: Final = 1.0

_REGISTERED: Final = {
    engine_pb2.REPLICA_STATE_STARTING: Registered.STARTING,
    engine_pb2.REPLICA_STATE_READY: Registered.READY,
    engine_pb2.REPLICA_STATE_DRAINING: Registered.DRAINING,
}


class Autoscaler:
    """Holds one model at the replicas its capacity target asks for.

    Args:
        loop: Virtual time.
        seats: The model's.
        registry: What it sees of the replicas.
        allocator: Sets the target.
        scale_window_s: How long need must be lower before a replica is removed.
    """

    def __init__(
        self, loop: Loop, seats: Seats, registry: Registry, allocator: Allocator, scale_window_s: float
    ) -> None:
        self._loop = loop
        self._seats = seats
        self._registry = registry
        self._allocator = allocator
        self._scaler = ModelScaler(ScalePolicy(stable_window_s=scale_window_s))
        loop.after(0.0, self._look)

    def _look(self, _: object) -> None:
        self._loop.after(_LOOK_INTERVAL_S, self._look)
        spec = self._seats.spec
        ledger = self._allocator.ledgers.get(spec.id)
        need = MilliModelUnitsPerMinute(max(ledger.target, ledger.floor)) if ledger is not None else None
        view = ModelView(
            spec.id,
            spec.replicas_min,
            spec.replicas_max or spec.replicas,
            need,
            tuple(self._view(seat) for seat in self._seats.seats.values()),
        )
        for action in self._scaler.decide(view, MonotonicNs(self._loop.now_ns)).actions:
            match action:
                case Start():
                    self._seats.start(action.slot)
                case Drain():
                    self._seats.drain(action.slot)
                case Stop():
                    self._seats.stop(action.slot)
                    if action.forget:
                        self._seats.forget(action.slot)
                case Forget():
                    self._seats.forget(action.slot)

    def _view(self, seat: Seat) -> SeatView:
        replica = seat.replica
        record = self._registry.records.get(replica.replica_id)
        seen = None
        if record is not None:
            capacity = MilliModelUnitsPerMinute(record.capacity_milli_mu_per_minute)
            seen = Record(replica.replica_id, _REGISTERED[record.state], capacity)
        draining = seen is not None and seen.state is Registered.DRAINING
        return SeatView(seat.slot, seat.starts, replica.alive, seen, replica.in_flight if draining else None)
