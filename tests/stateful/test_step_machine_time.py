"""The step machine in virtual time: however its clock is moved on, the same things happen at the same times."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.simulated.hardware import HARDWARE, Hardware
from engines.simulated.step_machine import StepMachine
from engines.simulated.work import Event, EventKind, SchedulerLimits, Work

LIMITS = SchedulerLimits(sequences_max=5, step_tokens_max=32, block_tokens=4, piece_tokens=8)
TOY = Hardware("toy", "toy", 1.0, 0.1, 0.5, 0.2, 0.3, 1e-3, 1e-4, 0.5, 256)
FOREVER_S = 1e9
# Moments are multiples of an irrational number, so that none falls on the end of a step within rounding.
TICK_S = math.sqrt(2) * 1e-3


@dataclass(frozen=True)
class Deed:
    """Something that comes from outside at some moment: exactly one of the last three."""

    time_s: float
    add: Work | None = None
    cancel: str = ""
    slow_factor: float = 0.0

    def do(self, machine: StepMachine) -> None:
        if self.add is not None:
            machine.add(self.add)
        elif self.cancel:
            machine.cancel(self.cancel)
        else:
            machine.slow_factor = self.slow_factor


@st.composite
def scripts(draw: st.DrawFn) -> list[Deed]:
    ticks, count, deeds = 0, 0, []
    for _ in range(draw(st.integers(1, 30))):
        ticks += draw(st.sampled_from([0, 0, 1, 5, 60]))
        kind = draw(st.sampled_from(["add", "add", "add", "cancel", "slow"]))
        if kind == "add":
            count += 1
            tokens = draw(st.integers(1, 100))
            begins = 100 * draw(st.integers(0, 2))
            prefix = tuple(range(begins, begins + tokens // LIMITS.piece_tokens)) if begins else ()
            work = Work(f"r{count}", tokens, draw(st.integers(1, 80)), draw(st.integers(1, 3)), prefix)
            deeds.append(Deed(ticks * TICK_S, add=work))
        elif kind == "cancel":
            deeds.append(Deed(ticks * TICK_S, cancel=f"r{draw(st.integers(1, 30))}"))
        else:
            deeds.append(Deed(ticks * TICK_S, slow_factor=draw(st.sampled_from([0.5, 1.0, 4.0]))))
    return deeds


def in_one_go(machine: StepMachine, until_s: float) -> list[Event]:
    return machine.advance(until_s)


def event_by_event(machine: StepMachine, until_s: float) -> list[Event]:
    events = []
    while (next_s := machine.next_event_s()) is not None and next_s < until_s:
        before = machine.now_s
        events += machine.advance(next_s)
        assert machine.now_s > before
    return events + machine.advance(until_s)


class StepByStep:
    """Moves a machine the way the real-time engine does, and makes events of what its steps say."""

    def __init__(self) -> None:
        self.cached: dict[str, int] = {}
        self.begun: set[str] = set()

    def __call__(self, machine: StepMachine, until_s: float) -> list[Event]:
        events = []
        while machine.busy and machine.now_s < until_s:
            began_s = machine.now_s
            step = machine.step()
            assert step is not None
            self.cached = dict(step.cached) | self.cached  # the first time counts
            events += [Event(began_s, EventKind.PREEMPTED, name, 0) for name in step.preempted]
            for name in step.produced:
                if name not in self.begun:
                    self.begun.add(name)
                    events.append(Event(machine.now_s, EventKind.FIRST_TOKEN, name, self.cached[name]))
            events += [Event(machine.now_s, EventKind.FINISHED, name, 0) for name in step.finished]
        if not machine.busy:
            machine.advance(until_s)
        return events


def played(script: list[Deed], move: Callable[[StepMachine, float], list[Event]]) -> list[Event]:
    machine = StepMachine(TOY, LIMITS)
    events: list[Event] = []
    for deed in script:
        events += move(machine, deed.time_s)
        deed.do(machine)
    events += move(machine, FOREVER_S)
    assert not machine.busy
    assert machine.kv_used_tokens == 0
    assert machine.next_event_s() is None
    return events


@settings(max_examples=150, deadline=None)
@given(scripts())
def test_however_the_clock_is_moved_the_same_happens(script: list[Deed]) -> None:
    """Proves that advancing in one go, from event to event, and step by step yield the same events in the same order,
    with times within a nanosecond, whatever is added, cancelled and slowed down in between.
    """
    wanted = played(script, StepByStep())
    for move in (in_one_go, event_by_event):
        got = played(script, move)
        assert [event[1:] for event in got] == [event[1:] for event in wanted]
        assert [event.time_s for event in got] == pytest.approx([event.time_s for event in wanted], rel=0, abs=1e-9)


@given(st.sampled_from(sorted(HARDWARE)), st.integers(1, 256), st.integers(1, 400_000), st.integers(1, 3_000))
def test_a_stretch_takes_as_long_as_its_steps(label: str, sequences: int, context: int, steps: int) -> None:
    """Proves that the closed formula of a decode stretch is the sum over its steps, each with a longer context."""
    made_of = HARDWARE[label]
    one_by_one_s = math.fsum(
        made_of.step_s(
            prefill_tokens=0, prefill_squares=0, sequences=sequences, context_tokens=context + sequences * number
        )
        for number in range(1, steps + 1)
    )
    assert made_of.decode_s(sequences, context, steps) == pytest.approx(one_by_one_s, rel=1e-9)


def test_a_long_answer_costs_no_more_calls_than_a_short_one() -> None:
    """Proves that virtual time costs per event: 100,000 tokens take the two looks of two tokens."""
    looks = []
    for output_tokens in (3, 100_000):
        machine = StepMachine(HARDWARE["h100"])
        machine.add(Work("a", 10, output_tokens))
        count = 0
        while (next_s := machine.next_event_s()) is not None:
            machine.advance(next_s)
            count += 1
        looks.append(count)
    assert looks == [2, 2]
