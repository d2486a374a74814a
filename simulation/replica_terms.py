"""What a replica is: the states of its life, and what all replicas of a model have in common."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from engines.simulated.hardware import Hardware
from engines.simulated.work import SchedulerLimits
from fairlead.engine.v1 import engine_pb2
from model_units.units import REPLICA_CAPACITY, MilliModelUnitsPerMinute


class State(enum.Enum):
    """Where a replica is in its life."""

    STARTING = engine_pb2.REPLICA_STATE_STARTING
    READY = engine_pb2.REPLICA_STATE_READY
    DRAINING = engine_pb2.REPLICA_STATE_DRAINING
    GONE = 0


@dataclass(frozen=True, slots=True)
class ReplicaTerms:
    """What every replica of a model has in common.

    Attributes:
        model_id: What it serves.
        hardware: Its engine's step times.
        limits: Its engine's scheduler limits.
        queued_max: Most requests that wait in the agent.
        report_interval_ns: How often it reports.
        report_delay_ns: How long a report takes.
        answers_report: Whether answers carry reports, which take no time.
        speed: How many times as fast as its hardware its engine is.
    """

    model_id: str
    hardware: Hardware
    limits: SchedulerLimits
    queued_max: int
    report_interval_ns: int
    report_delay_ns: int
    answers_report: bool = True
    speed: float = 1.0

    @property
    def capacity(self) -> MilliModelUnitsPerMinute:
        """What it serves at its objective, mMU per minute."""
        return MilliModelUnitsPerMinute(round(REPLICA_CAPACITY * self.speed))

    def at_speed(self, speed: float) -> ReplicaTerms:
        """The same, so many times as fast."""
        return self if speed == self.speed else replace(self, speed=speed)
