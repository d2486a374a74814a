"""The scaling decision, case by case; tests/stateful/test_scale_model.py walks it at random."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from common.clock import FakeClock
from data_plane.autoscaler.core.scale import ModelScaler
from data_plane.autoscaler.core.seat import (
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
)
from model_units.units import MilliModelUnitsPerMinute

CAPACITY = 100_000
POLICY = ScalePolicy()


def seat(
    number: int,
    state: Registered | None = Registered.READY,
    *,
    start: int = 1,
    alive: bool = True,
    busy: int | None = None,
) -> Seat:
    record = None
    if state is not None:
        record = Record(f"r{number}-{start}", state, MilliModelUnitsPerMinute(CAPACITY))
    return Seat(f"replica-{number}", start, alive, record, busy)


def dead(number: int, *, start: int = 1) -> Seat:
    return seat(number, None, start=start, alive=False)


class Bench:
    """One scaler under a fake clock."""

    def __init__(self, policy: ScalePolicy = POLICY) -> None:
        self.clock = FakeClock()
        self.scaler = ModelScaler(policy)

    def look(
        self,
        seats: Sequence[Seat],
        *,
        need: int | None = 0,
        low: int = 0,
        high: int = 100,
        foreign: Sequence[Record] = (),
    ) -> Plan:
        need_typed = None if need is None else MilliModelUnitsPerMinute(need)
        view = ModelView("m", low, high, need_typed, tuple(seats), tuple(foreign))
        return self.scaler.decide(view, self.clock.monotonic_ns())

    def pass_window(self, seats: Sequence[Seat], **view: int) -> None:
        """Looks once, then lets the stable window pass."""
        self.look(seats, **view)
        self.clock.advance(POLICY.stable_window_s + 1)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_starts_what_is_missing_at_once(bench: Bench) -> None:
    """From nothing, the first look starts enough replicas for the need, in the lowest slots."""
    assert bench.look([], need=250_000).actions == (Start("replica-1"), Start("replica-2"), Start("replica-3"))


def test_respects_bounds_when_starting(bench: Bench) -> None:
    """replicas_min holds without any need, and replicas_max against any need."""
    assert len(bench.look([], need=None, low=2).actions) == 2
    assert len(bench.look([], need=10_000_000, high=4).actions) == 4


def test_fills_gaps_in_slots(bench: Bench) -> None:
    """A new replica takes the lowest free slot, so that a replacement sits where the lost one sat."""
    assert bench.look([seat(1), seat(3)], need=300_000).actions == (Start("replica-2"),)


def test_counts_loading_replicas_as_coming(bench: Bench) -> None:
    """While replicas load, the same need does not start more of them, whether they have registered or not."""
    assert bench.look([seat(1), seat(2, None), seat(3, Registered.STARTING)], need=300_000).actions == ()


def test_uses_registered_capacity(bench: Bench) -> None:
    """Replicas derated to half count half, and new ones are expected to be like them."""
    slow = Record("r", Registered.READY, MilliModelUnitsPerMinute(50_000))
    plan = bench.look([Seat("replica-1", 1, True, slow)], need=150_000)
    assert plan.actions == (Start("replica-2"), Start("replica-3"))


def test_a_replica_under_calibration_stays_and_serves_nothing(bench: Bench) -> None:
    """What is being measured is replaced while the need asks for it, is never stopped, and keeps its seat."""
    seats = [seat(1), seat(2, Registered.CALIBRATING)]
    assert bench.look(seats, need=100_000).actions == ()
    assert bench.look(seats, need=200_000).actions == (Start("replica-3"),)
    assert bench.look(seats, need=200_000, high=2).actions == (), "its seat counts"
    bench.clock.advance(10 * POLICY.loading_limit_s)
    assert bench.look(seats, need=100_000).actions == (), "it is not stuck"
    other = Record("r", Registered.CALIBRATING, MilliModelUnitsPerMinute(CAPACITY))
    assert bench.look([seat(1)], need=200_000, foreign=[other]).actions == (Start("replica-2"),)


def test_waits_a_stable_window_before_removing(bench: Bench) -> None:
    """A need that was high inside the window keeps its replicas; the drain comes when it left the window."""
    seats = [seat(1), seat(2), seat(3)]
    bench.look(seats, need=300_000)
    bench.clock.advance(POLICY.stable_window_s)
    assert bench.look(seats, need=150_000).actions == ()
    bench.clock.advance(1)
    assert bench.look(seats, need=150_000).actions == (Drain("replica-3", "r3-1"),)


def test_removes_nothing_right_after_a_start(bench: Bench) -> None:
    """A freshly elected autoscaler has seen no window yet and holds what is there."""
    assert bench.look([seat(1), seat(2), seat(3)], need=0).actions == ()


def test_unknown_need_holds_and_restarts_the_window(bench: Bench) -> None:
    """Without a target nothing is removed, and the window starts over when one comes back."""
    seats = [seat(1), seat(2)]
    bench.pass_window(seats, need=0)
    assert bench.look(seats, need=None).actions == ()
    assert bench.look(seats, need=0).actions == ()


def test_never_goes_below_need_or_minimum(bench: Bench) -> None:
    """One more removal would cut into the need, or into replicas_min: it does not happen."""
    seats = [seat(1), seat(2)]
    bench.pass_window(seats, need=100_001)
    assert bench.look(seats, need=100_001).actions == ()
    bench.pass_window(seats, need=0, low=2)
    assert bench.look(seats, need=0, low=2).actions == ()


def test_never_removes_a_loading_replica(bench: Bench) -> None:
    """One ready, one loading, a need of one: neither goes, because one must not and the other serves."""
    seats = [seat(1), seat(2, Registered.STARTING)]
    bench.pass_window(seats, need=100_000)
    assert bench.look(seats, need=100_000).actions == ()


def test_removal_is_braked(bench: Bench) -> None:
    """A need that falls to nothing removes one replica per interval, not all of them."""
    seats = [seat(number) for number in range(1, 6)]
    bench.pass_window(seats)
    assert bench.look(seats).actions == (Drain("replica-5", "r5-1"),)
    seats[4] = seat(5, Registered.DRAINING)
    assert bench.look(seats).actions == ()
    bench.clock.advance(POLICY.removal_interval_s)
    assert Drain("replica-4", "r4-1") in bench.look(seats).actions


def test_stops_a_drained_replica_when_idle(bench: Bench) -> None:
    """Draining, then busy, then idle: it is stopped only when it said that it serves nothing."""
    draining = seat(2, Registered.DRAINING)
    assert bench.look([seat(1), draining], need=100_000).actions == ()
    bench.clock.advance(POLICY.drain_time_min_s)
    assert bench.look([seat(1), seat(2, Registered.DRAINING, busy=3)], need=100_000).actions == ()
    plan = bench.look([seat(1), seat(2, Registered.DRAINING, busy=0)], need=100_000)
    assert plan.actions == (Stop("replica-2", StopReason.DRAINED, forget=True),)


def test_stops_a_drain_that_never_ends(bench: Bench) -> None:
    """A replica that drains longer than the limit is stopped with its requests."""
    seats = [seat(1), seat(2, Registered.DRAINING, busy=1)]
    bench.look(seats, need=100_000)
    bench.clock.advance(POLICY.drain_time_max_s)
    assert bench.look(seats, need=100_000).actions == (Stop("replica-2", StopReason.DRAIN_TIMEOUT, forget=True),)


def test_replaces_a_replica_drained_by_an_administrator(bench: Bench) -> None:
    """A drain from outside leaves the need uncovered, so another replica starts in a free slot."""
    assert bench.look([seat(1, Registered.DRAINING), seat(2)], need=200_000).actions == (Start("replica-3"),)


def test_drained_process_that_ends_by_itself_is_forgotten(bench: Bench) -> None:
    """A draining agent that exits is not restarted in its seat."""
    bench.look([seat(1, Registered.DRAINING), seat(2)], need=100_000)
    assert bench.look([dead(1), seat(2)], need=100_000).actions == (Forget("replica-1"),)


def test_restarts_a_dead_replica_at_once_then_with_backoff(bench: Bench) -> None:
    """The first death restarts at once; each further one waits twice as long."""
    bench.look([seat(1)], need=100_000)
    pauses_s = []
    for start in range(1, 5):
        waited_s = 0.0
        while bench.look([dead(1, start=start)], need=100_000).actions != (Start("replica-1"),):
            bench.clock.advance(0.5)
            waited_s += 0.5
        pauses_s.append(waited_s)
        bench.look([seat(1, None, start=start + 1)], need=100_000)
    assert pauses_s == [0.0, 1.0, 2.0, 4.0]


def test_backoff_ends_when_a_seat_settles(bench: Bench) -> None:
    """A seat that lived for a while has no history of failures any more."""
    for start in (1, 2):
        bench.look([seat(1, start=start)], need=100_000)
        bench.look([dead(1, start=start)], need=100_000)
    bench.look([seat(1, start=3)], need=100_000)
    bench.clock.advance(POLICY.settled_s)
    assert bench.look([dead(1, start=3)], need=100_000).actions == (Start("replica-1"),)


def test_dead_replica_nobody_needs_is_forgotten(bench: Bench) -> None:
    """Where the others cover the window's need, a dead replica is given up instead of restarted."""
    bench.pass_window([seat(1), seat(2)], need=100_000)
    assert bench.look([seat(1), dead(2)], need=100_000).actions == (Forget("replica-2"),)


def test_unhealthy_replica_gets_its_patience(bench: Bench) -> None:
    """An agent may replace its engine for a while; then another replica starts, and it goes once that one serves."""
    sick = seat(2, Registered.UNHEALTHY)
    assert bench.look([seat(1), sick], need=200_000).actions == ()
    bench.clock.advance(POLICY.unhealthy_patience_s)
    assert bench.look([seat(1), sick], need=200_000).actions == (Start("replica-3"),)
    bench.clock.advance(POLICY.stable_window_s)
    assert bench.look([seat(1), sick, seat(3)], need=200_000).actions == (Drain("replica-2", "r2-1"),)


def test_lost_replica_is_restarted_one_at_a_time(bench: Bench) -> None:
    """Agents that vanish from the store but not from the machine are restarted slowly: it may be the store's fault."""
    bench.look([seat(number) for number in (1, 2, 3)], need=300_000)
    lost = [seat(number, None) for number in (1, 2, 3)]
    assert bench.look(lost, need=300_000).actions == ()
    bench.clock.advance(POLICY.lost_patience_s)
    plan = bench.look(lost, need=300_000)
    assert plan.actions == (Stop("replica-1", StopReason.LOST, forget=False),)
    assert {state for _, state in plan.states} == {SeatState.LOST}
    assert bench.look([seat(1), *lost[1:]], need=300_000).actions == ()


def test_stuck_replica_is_restarted(bench: Bench) -> None:
    """A replica that has not come up within the limit is stuck; it is stopped and its seat started again."""
    bench.look([seat(1, Registered.STARTING)], need=100_000)
    bench.clock.advance(POLICY.loading_limit_s)
    plan = bench.look([seat(1, Registered.STARTING)], need=100_000)
    assert plan.actions == (Stop("replica-1", StopReason.LOADING_TIMEOUT, forget=False),)


def test_lowered_maximum_drains_without_waiting(bench: Bench) -> None:
    """An administrator who lowers replicas_max is obeyed at once, by draining."""
    assert bench.look([seat(1), seat(2)], need=200_000, high=1).actions == (Drain("replica-2", "r2-1"),)


def test_counts_replicas_started_by_others(bench: Bench) -> None:
    """Replicas that somebody else runs count towards need and minimum and are never touched."""
    foreign = [Record("f", Registered.READY, MilliModelUnitsPerMinute(CAPACITY))]
    assert bench.look([], need=100_000, low=1, foreign=foreign).actions == ()
    assert bench.look([], need=200_000, foreign=foreign).actions == (Start("replica-1"),)


def test_drain_is_followed_up_when_the_record_lags(bench: Bench) -> None:
    """A replica told to drain counts as draining even while its record still says ready."""
    seats = [seat(1), seat(2)]
    bench.pass_window(seats, need=100_000)
    assert bench.look(seats, need=100_000).actions == (Drain("replica-2", "r2-1"),)
    bench.clock.advance(POLICY.removal_interval_s)
    plan = bench.look(seats, need=100_000)
    assert plan.actions == ()
    assert plan.states[1] == ("replica-2", SeatState.DRAINING)
