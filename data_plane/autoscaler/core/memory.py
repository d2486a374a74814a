"""What the autoscaler remembers between two looks at a model: how long, how often, how much lately."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from common.clock import NS_PER_S, MonotonicNs
from data_plane.autoscaler.core.seat import ScalePolicy, Seat, SeatState, classify, elapsed_s
from model_units.units import MilliModelUnitsPerMinute


class NeedWindow:
    """The greatest need of the last `window_s` seconds: what scaling down has to respect.

    Kept as a queue of falling values, so that each look costs amortised constant time.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._first: MonotonicNs | None = None
        self._needs: deque[tuple[MonotonicNs, int]] = deque()

    def add(self, need: int, now: MonotonicNs) -> None:
        """Notes the need seen at `now`, which must not lie before the one noted last."""
        if self._first is None:
            self._first = now
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()
        self._needs.append((now, need))
        while elapsed_s(self._needs[0][0], now) > self._window_s:
            self._needs.popleft()

    def clear(self) -> None:
        """Starts over: the need is unknown for a while, so that what was seen before says nothing about after."""
        self._first = None
        self._needs.clear()

    def complete(self, now: MonotonicNs) -> bool:
        """Whether a whole window has been seen; before that nobody knows what was needed."""
        return self._first is not None and elapsed_s(self._first, now) >= self._window_s

    @property
    def greatest(self) -> MilliModelUnitsPerMinute:
        """The greatest need inside the window; 0 before the first."""
        return MilliModelUnitsPerMinute(self._needs[0][1] if self._needs else 0)


class StormBrake:
    """Lets at most one replica, or a tenth of them, begin to be removed per interval.

    Many alarms at once are more often a fault of the observer (a store that forgot its leases, a wrong target) than of
    the replicas, so the platform loses capacity slowly enough for somebody to notice.
    """

    SHARE_MAX = 0.1

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._begun: deque[MonotonicNs] = deque()

    def take(self, replicas: int, now: MonotonicNs) -> bool:
        """Whether one more of `replicas` may begin to be removed now; counts it if so."""
        while self._begun and elapsed_s(self._begun[0], now) >= self._interval_s:
            self._begun.popleft()
        if len(self._begun) >= max(1, int(replicas * self.SHARE_MAX)):
            return False
        self._begun.append(now)
        return True


@dataclass(slots=True)
class SeatMemory:
    """What is remembered of one seat.

    Attributes:
        start_number: The start of the seat this is about.
        state: As of the last look.
        state_since: When it came into that state.
        started: When this start was first seen.
        retry_at: A dead seat is started again from then on.
        was_registered: Whether this start has had a record.
        drain_asked: Whether this start was told to drain; it counts as draining from then on.
        stop_asked: Whether this start was told to stop for a fault of its own.
        failures: Starts in a row that ended before they settled.
    """

    start_number: int
    state: SeatState
    state_since: MonotonicNs
    started: MonotonicNs
    retry_at: MonotonicNs
    was_registered: bool = False
    drain_asked: bool = False
    stop_asked: bool = False
    failures: int = 0

    def observe(self, seat: Seat, policy: ScalePolicy, now: MonotonicNs) -> None:
        """Takes in one look at the seat."""
        if seat.start_number != self.start_number:
            self.start_number, self.started = seat.start_number, now
            self.was_registered = self.drain_asked = self.stop_asked = False
            self._enter(SeatState.LOADING, now)
        self.was_registered = self.was_registered or seat.record is not None
        state = classify(seat, self.was_registered)
        undrained = (SeatState.READY, SeatState.UNHEALTHY, SeatState.LOST, SeatState.CALIBRATING)
        if state in undrained and self.drain_asked:
            state = SeatState.DRAINING
        if state is SeatState.DRAINING:
            self.drain_asked = True
        if state is SeatState.DEAD and self.state is not SeatState.DEAD:
            self._fail(policy, now)
        if state is not self.state:
            self._enter(state, now)

    def ask_drain(self, now: MonotonicNs) -> None:
        """Notes that the seat was told to drain."""
        self.drain_asked = True
        self._enter(SeatState.DRAINING, now)

    def _enter(self, state: SeatState, now: MonotonicNs) -> None:
        self.state, self.state_since = state, now

    def _fail(self, policy: ScalePolicy, now: MonotonicNs) -> None:
        """Counts a death and sets the pause before the next start: none for the first, then doubling."""
        if elapsed_s(self.started, now) >= policy.settled_s:
            self.failures = 0
        pause_s = 0.0
        if self.failures:
            pause_s = policy.restart_backoff_first_s * 2.0 ** min(self.failures - 1, 30)
        self.failures += 1
        self.retry_at = MonotonicNs(now + round(min(pause_s, policy.restart_backoff_max_s) * NS_PER_S))


def first_look(seat: Seat, now: MonotonicNs) -> SeatMemory:
    """The memory of a seat that was not known before; a dead one may be started at once."""
    registered = seat.record is not None
    state = classify(seat, registered)
    return SeatMemory(seat.start_number, state, now, now, now, registered, drain_asked=state is SeatState.DRAINING)
