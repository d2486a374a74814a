"""What the autoscaler knows of a model's replicas, and what it can decide to do about them.

A *seat* is a named place for one replica of one model ("replica-1"). The actuator starts an agent in a seat; the agent
registers itself with the seat's name; a replacement takes the same seat.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import assert_never

from common.clock import NS_PER_S, MonotonicNs
from model_units.units import MilliModelUnitsPerMinute


class Registered(enum.Enum):
    """The state an agent wrote into its record."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"
    CALIBRATING = "calibrating"


@dataclass(frozen=True, slots=True)
class Record:
    """A replica's registration, as far as scaling needs it.

    Attributes:
        replica_id: Unique for every start of an agent.
        state: Where it says it is in its life.
        capacity: What it serves at its latency objective, milli-MU per minute.
    """

    replica_id: str
    state: Registered
    capacity: MilliModelUnitsPerMinute


@dataclass(frozen=True, slots=True)
class Seat:
    """One seat as observed now.

    Attributes:
        slot: The seat's name, unique within its model.
        start_number: Which start of this seat it is; a restart grows it.
        alive: Whether its agent's process exists.
        record: Its registration, or None before it registers and after its lease ends.
        requests_in_flight: What a draining agent said it still serves; None when it has not been asked or not answered.
    """

    slot: str
    start_number: int
    alive: bool
    record: Record | None = None
    requests_in_flight: int | None = None


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model as observed now.

    Attributes:
        model_id: The model.
        replicas_min: Fewest replicas to keep, 0 or more.
        replicas_max: Most replicas to run; draining ones not counted.
        need: Capacity to hold, the greater of target and floor, milli-MU per minute; None while no target is known,
            which means: keep what is there.
        seats: The seats of this autoscaler's actuator, in any order.
        foreign: Records of live replicas that somebody else started.
    """

    model_id: str
    replicas_min: int
    replicas_max: int
    need: MilliModelUnitsPerMinute | None
    seats: tuple[Seat, ...]
    foreign: tuple[Record, ...] = ()


class SeatState(enum.Enum):
    """What a seat counts as."""

    LOADING = "loading"
    """Alive, not registered yet or registered as starting."""
    READY = "ready"
    DRAINING = "draining"
    UNHEALTHY = "unhealthy"
    """Its agent is replacing a dead or hanging engine."""
    CALIBRATING = "calibrating"
    """Is being measured: stays, and serves nothing meanwhile."""
    LOST = "lost"
    """Alive, was registered, and is not any more: its agent hangs or cannot reach the store."""
    DEAD = "dead"
    """Its agent's process is gone."""


def classify(seat: Seat, was_registered: bool) -> SeatState:
    """The state a seat counts as.

    Args:
        seat: As observed.
        was_registered: Whether this start of the seat has had a record before.
    """
    if not seat.alive:
        return SeatState.DEAD
    if seat.record is None:
        return SeatState.LOST if was_registered else SeatState.LOADING
    match seat.record.state:
        case Registered.STARTING:
            return SeatState.LOADING
        case Registered.READY:
            return SeatState.READY
        case Registered.DRAINING:
            return SeatState.DRAINING
        case Registered.UNHEALTHY:
            return SeatState.UNHEALTHY
        case Registered.CALIBRATING:
            return SeatState.CALIBRATING
        case _:
            assert_never(seat.record.state)


@dataclass(frozen=True, slots=True)
class Start:
    """Start an agent in this seat."""

    slot: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell this replica to take no new requests."""

    slot: str
    replica_id: str


class StopReason(enum.Enum):
    """Why a seat's process is ended; the values are metric labels."""

    DRAINED = "drained"
    DRAIN_TIMEOUT = "drain_timeout"
    LOADING_TIMEOUT = "loading_timeout"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Stop:
    """End this seat's agent and engine.

    Attributes:
        slot: The seat.
        reason: Why.
        forget: Whether the seat is given up; else it is started again after its backoff.
    """

    slot: str
    reason: StopReason
    forget: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """Give up a seat whose process is already gone."""

    slot: str


Action = Start | Drain | Stop | Forget


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for one model now, and the numbers it was decided by.

    Attributes:
        actions: In order; at most one per seat.
        replicas_wanted: Replicas this model should have now.
        replicas_present: Replicas that count: every one but those that drain.
        have: Their capacity, with an expected value for those still loading, milli-MU per minute.
        need_held: Greatest need inside the stable window, milli-MU per minute; nothing above it is removed.
        states: Each seat's state, sorted by slot.
    """

    actions: tuple[Action, ...]
    replicas_wanted: int
    replicas_present: int
    have: MilliModelUnitsPerMinute
    need_held: MilliModelUnitsPerMinute
    states: tuple[tuple[str, SeatState], ...]


@dataclass(frozen=True, slots=True)
class ScalePolicy:
    """How patient the autoscaler is. All durations in seconds.

    Attributes:
        stable_window_s: Replicas are removed only for a need that stayed lower this long.
        removal_interval_s: At most one replica, or a tenth of them, begins to be removed per interval.
        drain_time_min_s: A draining replica is kept at least this long, so that every router has seen its state.
        drain_time_max_s: After this a draining replica is stopped with requests in flight.
        loading_limit_s: A replica that has not become ready after this does not load any more: it is stuck.
        unhealthy_patience_s: How long an agent may take to replace its engine before another replica is started.
        lost_patience_s: How long an agent may miss its registration before it is restarted.
        restart_backoff_first_s: Pause before the second restart of a seat; doubles with each failure.
        restart_backoff_max_s: Longest pause.
        settled_s: A seat that lived this long has no failures any more.
    """

    stable_window_s: float = 300.0
    removal_interval_s: float = 10.0
    drain_time_min_s: float = 2.0
    drain_time_max_s: float = 600.0
    loading_limit_s: float = 900.0
    unhealthy_patience_s: float = 180.0
    lost_patience_s: float = 30.0
    restart_backoff_first_s: float = 1.0
    restart_backoff_max_s: float = 60.0
    settled_s: float = 60.0


def elapsed_s(since: MonotonicNs, now: MonotonicNs) -> float:
    """Seconds from `since` to `now`."""
    return (now - since) / NS_PER_S
