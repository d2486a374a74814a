"""Random lives of a model's replicas: whatever happens, the scaling decision keeps its promises."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.clock import NS_PER_S, FakeClock
from data_plane.autoscaler.core.scale import ModelScaler
from data_plane.autoscaler.core.seat import (
    Drain,
    Forget,
    ModelView,
    Record,
    Registered,
    ScalePolicy,
    Seat,
    Start,
    Stop,
    StopReason,
)
from model_units.units import REPLICA_CAPACITY, MilliModelUnitsPerMinute

POLICY = ScalePolicy(stable_window_s=30, removal_interval_s=5, loading_limit_s=100, lost_patience_s=10)


@dataclass
class Process:
    """The naive model of one seat: a process that registers, serves, drains and dies."""

    start_number: int = 1
    alive: bool = True
    state: Registered | None = None
    ready_once: bool = False
    told_to_drain: bool = False
    busy: int = 0
    alive_since_ns: int = 0


class Fleet(RuleBasedStateMachine):
    """Drives the scaler with a fleet that obeys it, fails at random and changes its mind about the need."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.scaler = ModelScaler(POLICY)
        self.fleet: dict[str, Process] = {}
        self.needs: list[tuple[int, int]] = []
        self.need, self.low, self.high = 100_000, 1, 8
        self.removals_ns: list[int] = []

    def now(self) -> int:
        return self.clock.monotonic_ns()

    def record(self, slot: str) -> Record | None:
        process = self.fleet[slot]
        if not process.alive or process.state is None:
            return None
        return Record(f"{slot}/{process.start_number}", process.state, REPLICA_CAPACITY)

    def pick(self, index: int, *states: Registered | None) -> Process | None:
        fitting = [process for process in self.fleet.values() if process.alive and process.state in states]
        return fitting[index % len(fitting)] if fitting else None

    @rule(need=st.integers(0, 900_000))
    def change_need(self, need: int) -> None:
        self.need = need

    @rule(low=st.integers(0, 3), extra=st.integers(0, 7))
    def change_bounds(self, low: int, extra: int) -> None:
        self.low, self.high = low, low + extra

    @rule(index=st.integers(0, 9))
    def register(self, index: int) -> None:
        if process := self.pick(index, None):
            process.state = Registered.DRAINING if process.told_to_drain else Registered.STARTING

    @rule(index=st.integers(0, 9))
    def become_ready(self, index: int) -> None:
        if process := self.pick(index, Registered.STARTING, Registered.UNHEALTHY, Registered.CALIBRATING):
            process.state, process.ready_once = Registered.READY, True

    @rule()
    def everything_loads(self) -> None:
        for process in self.fleet.values():
            if process.alive and process.state in (None, Registered.STARTING) and not process.told_to_drain:
                process.state, process.ready_once = Registered.READY, True

    @rule(index=st.integers(0, 9), sick=st.booleans())
    def fall_ill_or_vanish(self, index: int, sick: bool) -> None:
        if process := self.pick(index, Registered.READY):
            process.state = Registered.UNHEALTHY if sick else None

    @rule(index=st.integers(0, 9))
    def be_calibrated(self, index: int) -> None:
        if process := self.pick(index, Registered.READY):
            process.state = Registered.CALIBRATING

    @rule(index=st.integers(0, 9))
    def die(self, index: int) -> None:
        if process := self.pick(index, None, *Registered):
            process.alive, process.state = False, None

    @rule(index=st.integers(0, 9), busy=st.integers(0, 2))
    def load(self, index: int, busy: int) -> None:
        if process := self.pick(index, Registered.READY, Registered.DRAINING):
            process.busy = busy

    @rule(seconds=st.sampled_from([0.5, 1, 3, 6, 12, 31]))
    def look(self, seconds: float) -> None:
        """Lets time pass, looks once, and checks every decision against the naive model before obeying it."""
        self.clock.advance(seconds)
        self.needs.append((self.now(), self.need))
        seats = tuple(
            Seat(slot, process.start_number, process.alive, self.record(slot), process.busy)
            for slot, process in self.fleet.items()
        )
        view = ModelView("m", self.low, self.high, MilliModelUnitsPerMinute(self.need), seats)
        plan = self.scaler.decide(view, self.clock.monotonic_ns())
        assert len({action.slot for action in plan.actions}) == len(plan.actions)
        for action in plan.actions:
            match action:
                case Start():
                    self.start(action.slot)
                case Drain():
                    self.drain(action)
                case Stop():
                    self.stop(action)
                case Forget():
                    assert not self.fleet.pop(action.slot).alive
        coming = sum(
            not process.told_to_drain and process.state is not Registered.DRAINING for process in self.fleet.values()
        )
        lasting = sum(self.counts_for_sure(process) for process in self.fleet.values())
        assert coming >= min(self.high, max(self.low, math.ceil(self.need / REPLICA_CAPACITY))) or lasting < coming
        assert lasting <= max(self.high, plan.replicas_present)

    def counts_for_sure(self, process: Process) -> bool:
        return (
            process.alive
            and process.state in (None, Registered.STARTING, Registered.READY)
            and not process.told_to_drain
        )

    def start(self, slot: str) -> None:
        old = self.fleet.get(slot)
        assert old is None or not old.alive
        self.fleet[slot] = Process(old.start_number + 1 if old else 1, alive_since_ns=self.now())

    def drain(self, action: Drain) -> None:
        process = self.fleet[action.slot]
        assert process.state in (Registered.READY, Registered.UNHEALTHY), "a loading replica is never removed"
        serving = [p for p in self.fleet.values() if p.state is Registered.READY and p.alive and not p.told_to_drain]
        after = len(serving) - (process.state is Registered.READY)
        window_need = max(need for at, need in self.needs if self.now() - at <= POLICY.stable_window_s * NS_PER_S)
        if len([p for p in self.fleet.values() if not p.told_to_drain]) <= self.high:
            assert after * REPLICA_CAPACITY >= window_need, "the greatest need of the window is respected"
            assert after >= self.low
        self.brake()
        process.told_to_drain = True
        process.state = Registered.DRAINING

    def stop(self, action: Stop) -> None:
        process = self.fleet[action.slot]
        assert process.alive
        if action.reason in (StopReason.DRAINED, StopReason.DRAIN_TIMEOUT):
            assert process.told_to_drain
            assert process.busy == 0 or action.reason is StopReason.DRAIN_TIMEOUT
            del self.fleet[action.slot]
            return
        assert process.state in (None, Registered.STARTING)
        patience_s = POLICY.lost_patience_s if process.ready_once else POLICY.loading_limit_s
        assert self.now() - process.alive_since_ns >= patience_s * NS_PER_S
        self.brake()
        process.alive, process.state = False, None

    def brake(self) -> None:
        recent = [at for at in self.removals_ns if self.now() - at < POLICY.removal_interval_s * NS_PER_S]
        assert not recent, "one removal per interval at this size"
        self.removals_ns.append(self.now())

    @precondition(lambda self: self.fleet)
    @invariant()
    def slots_stay_low(self) -> None:
        assert all(int(slot.removeprefix("replica-")) <= 30 for slot in self.fleet)


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
