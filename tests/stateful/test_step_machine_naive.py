"""The step machine against the naive replica, which does every request and token one by one."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from engines.simulated.hardware import Hardware
from engines.simulated.step_machine import StepMachine
from engines.simulated.work import SchedulerLimits, Step, Work
from tests.support.naive_replica import NaiveReplica

# 100 blocks, of which admission keeps one free; a piece is two blocks.
LIMITS = SchedulerLimits(sequences_max=5, step_tokens_max=32, block_tokens=4, piece_tokens=8)
TOY = Hardware("toy", "toy", 1.0, 0.1, 0.5, 0.2, 0.3, 1e-3, 1e-4, 0.5, 400)


class StepMachineAgainstNaive(RuleBasedStateMachine):
    """Proves: step by step the machine admits, preempts, computes, produces, finishes and caches exactly what the naive
    replica does, takes exactly as long, and holds exactly as much of the KV cache, whatever is added and cancelled.
    """

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.machine = StepMachine(TOY, LIMITS)
        self.naive = NaiveReplica(TOY, LIMITS)
        self.count = 0
        self.live: set[str] = set()

    @rule(
        target=names,
        input_tokens=st.integers(1, 150),
        output_tokens=st.integers(1, 150),
        priority=st.integers(1, 3),
        conversation=st.integers(0, 3),
        shared_pieces=st.integers(0, 20),
    )
    def add(self, input_tokens: int, output_tokens: int, priority: int, conversation: int, shared_pieces: int) -> str:
        """A prompt that begins like the conversation's others and then goes its own way."""
        self.count += 1
        whole = input_tokens // LIMITS.piece_tokens
        shared = [1_000 * conversation + index for index in range(min(shared_pieces, whole))] if conversation else []
        own = [-100 * self.count - index for index in range(whole - len(shared))] if conversation else []
        work = Work(f"r{self.count}", input_tokens, output_tokens, priority, (*shared, *own))
        self.machine.add(work)
        self.naive.add(work)
        self.live.add(work.request_id)
        return work.request_id

    @rule(name=names)
    def cancel(self, name: str) -> None:
        assert self.machine.cancel(name) == self.naive.cancel(name) == (name in self.live)
        self.live.discard(name)

    @rule(slow_factor=st.sampled_from([0.5, 1.0, 3.0]))
    def slow(self, slow_factor: float) -> None:
        self.machine.slow_factor = self.naive.slow_factor = slow_factor

    @rule(steps=st.integers(1, 40))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    def _step(self) -> None:
        began_s = self.machine.now_s
        got, wanted = self.machine.step(), self.naive.step()
        assert (got is None) == (wanted is None)
        if got is None or wanted is None:
            return
        assert self.machine.now_s - began_s == pytest.approx(got.duration_s)
        assert got.duration_s == pytest.approx(wanted.duration_s, rel=1e-9)
        assert _facts(got) == _facts(wanted)
        self.live -= set(got.finished)

    @invariant()
    def holds_the_same(self) -> None:
        assert self.machine.kv_used_tokens == self.naive.used_blocks() * LIMITS.block_tokens <= TOY.kv_capacity_tokens
        states = [request.state for request in self.naive.requests.values()]
        assert self.machine.waiting == states.count("waiting")
        assert self.machine.decoding == states.count("decode")
        assert len(self.machine.running) == len(states) - states.count("waiting")
        for name, request in self.naive.requests.items():
            assert self.machine.produced(name) == request.produced
            assert self.machine.cached(name) == (request.cached or 0)

    def teardown(self) -> None:
        """To the end: the last one leaves nothing behind."""
        for _ in range(100_000):
            if not self.live:
                break
            self._step()
        assert not self.live
        assert not self.machine.busy
        assert self.machine.kv_used_tokens == 0


def _facts(step: Step) -> tuple[object, ...]:
    return (
        step.produced, step.finished, step.admitted, dict(step.cached), step.preempted, step.prefill_tokens,
    )  # fmt: skip


StepMachineAgainstNaive.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStepMachineAgainstNaive = StepMachineAgainstNaive.TestCase
