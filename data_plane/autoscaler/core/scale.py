"""The scaling decision of one model.

Scaling up happens at once and by as much as is missing; scaling down waits until the need has been lower for a whole
stable window, removes one replica (or a tenth) per interval, and drains each before it stops it. A worked case with
replicas of 100 MU/min: need 250 -> 3 replicas; need falls to 140 -> after 300 s one drains (2 left, 200 >= 140) and
stops when it serves nothing; need jumps to 310 meanwhile -> 2 start at the same look.

What never happens: a loading replica is removed (one that loads for longer than the limit is stuck, not loading); a
working replica is stopped that has not drained; capacity goes below the greatest need of the window, the floor (part of
the need) or replicas_min; more than one replica or a tenth of them begins to be removed per interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count as counting

from common.clock import MonotonicNs
from data_plane.autoscaler.core.memory import NeedWindow, SeatMemory, StormBrake, first_look
from data_plane.autoscaler.core.seat import (
    Action,
    Drain,
    Forget,
    ModelView,
    Plan,
    Record,
    Registered,
    ScalePolicy,
    Seat,
    SeatState,
    Start,
    Stop,
    StopReason,
    elapsed_s,
)
from model_units.units import REPLICA_CAPACITY, MilliModelUnitsPerMinute

SLOT_PREFIX = "replica-"

_REMOVAL_ORDER = (SeatState.DEAD, SeatState.UNHEALTHY, SeatState.READY)
"""Which state goes first when there are too many: what does not serve, before what does."""


def slot_number(slot: str) -> int:
    """The number in a seat's name; a name of another form sorts behind all of ours."""
    digits = slot.removeprefix(SLOT_PREFIX)
    return int(digits) if digits.isdecimal() else 1_000_000_000


class ModelScaler:
    """Decides for one model, look after look. Does nothing by itself: no I/O, no clock.

    Args:
        policy: How patient it is.
    """

    def __init__(self, policy: ScalePolicy) -> None:
        self._policy = policy
        self._window = NeedWindow(policy.stable_window_s)
        self._brake = StormBrake(policy.removal_interval_s)
        self._memory: dict[str, SeatMemory] = {}

    def decide(self, view: ModelView, now: MonotonicNs) -> Plan:
        """What to do now.

        Args:
            view: The model as observed at `now`.
            now: Monotonic; never before the previous call's.

        Returns:
            The actions. One that could not be carried out is decided again at a later look.
        """
        seats = sorted(view.seats, key=lambda seat: (slot_number(seat.slot), seat.slot))
        self._observe(seats, now)
        if view.need is None:
            self._window.clear()
        else:
            self._window.add(view.need, now)
        present = [seat for seat in seats if self._counts(seat, now)]
        expected = _expected_capacity(view)
        have = sum(_capacity(seat, expected) for seat in present) + sum(_served(record) for record in view.foreign)
        replicas = len(present) + len(view.foreign)
        wanted = _wanted(view, replicas, have, expected)

        actions = list(self._end_of_life(seats, now))
        if wanted <= replicas:
            actions += self._remove(view, seats, replicas - wanted, now)
        touched = {action.slot for action in actions}
        actions += [Start(seat.slot) for seat in seats if seat.slot not in touched and self._restartable(seat, now)]
        actions += [Start(slot) for slot in _free_slots(seats, wanted - replicas)]
        states = tuple((seat.slot, self._state(seat)) for seat in seats)
        return Plan(tuple(actions), wanted, replicas, MilliModelUnitsPerMinute(have), self._window.greatest, states)

    def _observe(self, seats: list[Seat], now: MonotonicNs) -> None:
        known = {seat.slot for seat in seats}
        self._memory = {slot: memory for slot, memory in self._memory.items() if slot in known}
        for seat in seats:
            if seat.slot in self._memory:
                self._memory[seat.slot].observe(seat, self._policy, now)
            else:
                self._memory[seat.slot] = first_look(seat, now)

    def _state(self, seat: Seat) -> SeatState:
        return self._memory[seat.slot].state

    def _state_s(self, seat: Seat, now: MonotonicNs) -> float:
        return elapsed_s(self._memory[seat.slot].state_since, now)

    def _counts(self, seat: Seat, now: MonotonicNs) -> bool:
        """Whether a seat stands for a replica that serves, or will without another being started in its stead."""
        match self._state(seat):
            case SeatState.UNHEALTHY:
                return self._state_s(seat, now) < self._policy.unhealthy_patience_s
            case SeatState.DRAINING:
                return False
            case SeatState.DEAD:
                return not self._memory[seat.slot].drain_asked
            case _:
                return True

    def _end_of_life(self, seats: list[Seat], now: MonotonicNs) -> Iterator[Action]:
        """Ends what has drained, and what is stuck or lost for too long."""
        for seat in seats:
            memory = self._memory[seat.slot]
            in_state_s = self._state_s(seat, now)
            match memory.state:
                case SeatState.DEAD if memory.drain_asked:
                    yield Forget(seat.slot)
                case SeatState.DRAINING if in_state_s >= self._policy.drain_time_max_s:
                    yield Stop(seat.slot, StopReason.DRAIN_TIMEOUT, forget=True)
                case SeatState.DRAINING if in_state_s >= self._policy.drain_time_min_s and seat.requests_in_flight == 0:
                    yield Stop(seat.slot, StopReason.DRAINED, forget=True)
                case SeatState.LOADING if in_state_s >= self._policy.loading_limit_s:
                    yield from self._stop_faulty(seat, StopReason.LOADING_TIMEOUT, len(seats), now)
                case SeatState.LOST if in_state_s >= self._policy.lost_patience_s:
                    yield from self._stop_faulty(seat, StopReason.LOST, len(seats), now)
                case _:
                    pass

    def _stop_faulty(self, seat: Seat, reason: StopReason, replicas: int, now: MonotonicNs) -> Iterator[Action]:
        memory = self._memory[seat.slot]
        if memory.stop_asked or self._brake.take(replicas, now):
            memory.stop_asked = True
            yield Stop(seat.slot, reason, forget=False)

    def _remove(self, view: ModelView, seats: list[Seat], above_max: int, now: MonotonicNs) -> Iterator[Action]:
        """Gives up what is not needed: the dead, then the unhealthy, then the ready ones of the highest slots."""
        serving = [seat for seat in seats if self._state(seat) is SeatState.READY]
        ready = len(serving) + sum(record.state is Registered.READY for record in view.foreign)
        capacity = sum(_capacity(seat, 0) for seat in serving)
        capacity += sum(record.capacity for record in view.foreign if record.state is Registered.READY)
        may_shrink = view.need is not None and self._window.complete(now)
        for state in _REMOVAL_ORDER:
            for seat in reversed([seat for seat in seats if self._state(seat) is state]):
                if state is SeatState.DEAD and self._memory[seat.slot].drain_asked:
                    continue
                serves = state is SeatState.READY
                ready_after, capacity_after = ready - serves, capacity - _capacity(seat, 0) * serves
                idle = may_shrink and capacity_after >= self._window.greatest and ready_after >= view.replicas_min
                forced = above_max > 0 and (not serves or ready_after >= view.replicas_max)
                if not (forced or idle):
                    continue
                if state is SeatState.DEAD:
                    yield Forget(seat.slot)
                elif seat.record is not None and self._brake.take(len(seats), now):
                    self._memory[seat.slot].ask_drain(now)
                    yield Drain(seat.slot, seat.record.replica_id)
                else:
                    continue
                ready, capacity, above_max = ready_after, capacity_after, above_max - 1

    def _restartable(self, seat: Seat, now: MonotonicNs) -> bool:
        memory = self._memory[seat.slot]
        return memory.state is SeatState.DEAD and not memory.drain_asked and now >= memory.retry_at


def _capacity(seat: Seat, unknown: int) -> int:
    """A seat's capacity, or `unknown` before it has registered one; none while it is being measured."""
    if seat.record is not None and seat.record.state is Registered.CALIBRATING:
        return 0
    return seat.record.capacity if seat.record is not None and seat.record.capacity > 0 else unknown


def _served(record: Record) -> int:
    """What a replica that somebody else started serves."""
    return 0 if record.state is Registered.CALIBRATING else record.capacity


def _expected_capacity(view: ModelView) -> int:
    """What one more replica will serve: the mean of those that registered, else what a replica is defined to serve."""
    known = [_capacity(seat, 0) for seat in view.seats] + [record.capacity for record in view.foreign]
    known = [capacity for capacity in known if capacity > 0]
    return sum(known) // len(known) if known else REPLICA_CAPACITY


def _wanted(view: ModelView, replicas: int, have: int, expected: int) -> int:
    """Replicas to have now: those there are plus what is missing, within the model's bounds."""
    missing = 0 if view.need is None else math.ceil(max(0, view.need - have) / expected)
    return min(max(replicas + missing, view.replicas_min), view.replicas_max)


def _free_slots(seats: list[Seat], replicas: int) -> list[str]:
    """The lowest `replicas` slots that no seat has; none when `replicas` is negative."""
    taken = {seat.slot for seat in seats}
    free = (slot for slot in (f"{SLOT_PREFIX}{number}" for number in counting(1)) if slot not in taken)
    return [next(free) for _ in range(replicas)]
