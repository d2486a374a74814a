"""The step machine against a naive model of what its requests are owed."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from engines.simulated.hardware import Hardware
from engines.simulated.step_machine import StepMachine
from engines.simulated.work import SchedulerLimits, Work

KV_CAPACITY_TOKENS = 256
LIMITS = SchedulerLimits(sequences_max=5, step_tokens_max=32, block_tokens=4)
TOY = Hardware("toy", "toy", 1.0, 0.1, 0.5, 0.2, 0.3, 1e-3, 1e-4, 0.5, KV_CAPACITY_TOKENS)


@dataclass
class Owed:
    """What the naive model knows of one live request."""

    work: Work
    order: tuple[int, int]
    produced: int = 0
    running: bool = False


class StepMachineAgainstModel(RuleBasedStateMachine):
    """Proves: every token asked for is produced once; each request ends exactly once; the KV cache never overflows and
    is empty when nobody runs; nobody is admitted before an earlier or more important request that waits.
    """

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.machine = StepMachine(TOY, LIMITS)
        self.live: dict[str, Owed] = {}
        self.ended: set[str] = set()
        self.count = 0

    @rule(
        target=names,
        input_tokens=st.integers(1, 120),
        output_tokens=st.integers(1, 120),
        priority=st.integers(1, 3),
    )
    def add_one(self, input_tokens: int, output_tokens: int, priority: int) -> str:
        return self.add(input_tokens, output_tokens, priority)

    def add(self, input_tokens: int, output_tokens: int, priority: int) -> str:
        self.count += 1
        work = Work(f"r{self.count}", input_tokens, output_tokens, priority)
        self.machine.add(work)
        self.live[work.request_id] = Owed(work, (-priority, self.count))
        return work.request_id

    @rule(count=st.integers(2, 8), output_tokens=st.integers(1, 12), priority=st.integers(1, 3))
    def add_small_ones(self, count: int, output_tokens: int, priority: int) -> None:
        for _ in range(count):
            self.add(3, output_tokens, priority)

    @rule(name=names)
    def cancel(self, name: str) -> None:
        assert self.machine.cancel(name) == (name in self.live)
        if self.live.pop(name, None) is not None:
            self.ended.add(name)

    @rule(steps=st.integers(1, 30))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    def _step(self) -> None:
        result = self.machine.step()
        if result is None:
            assert not self.live
            return
        assert result.duration_s > 0
        for name in result.preempted:
            self.live[name].running = False
        waiting = [owed.order for owed in self.live.values() if not owed.running]
        for name in result.admitted:
            owed = self.live[name]
            assert owed.order == min(waiting), "somebody overtook"
            waiting.remove(owed.order)
            owed.running = True
        computed = result.prefill_tokens
        assert len(set(result.produced)) == len(result.produced)
        for name in result.produced:
            owed = self.live[name]
            assert owed.running
            owed.produced += 1
            assert owed.produced <= owed.work.output_tokens
            assert (name in result.finished) == (owed.produced == owed.work.output_tokens)
        assert computed <= LIMITS.step_tokens_max
        assert result.produced or computed, "a step that does nothing"
        assert set(result.finished) <= set(result.produced)
        for name in result.finished:
            assert name not in self.ended, "ended twice"
            self.ended.add(name)
            del self.live[name]

    @invariant()
    def cache_and_slots_hold(self) -> None:
        running = [owed for owed in self.live.values() if owed.running]
        assert set(self.machine.running) == {owed.work.request_id for owed in running}
        assert len(running) <= LIMITS.sequences_max
        assert self.machine.waiting == len(self.live) - len(running)
        size = LIMITS.block_tokens
        # A running request holds at least its prompt and all it produced but the last token, at most one block more.
        held = [owed.work.input_tokens + max(0, owed.produced - 1) for owed in running]
        least = sum(-(-tokens // size) * size for tokens in held)
        assert least <= self.machine.kv_used_tokens <= min(KV_CAPACITY_TOKENS, least + size * len(running))

    def teardown(self) -> None:
        """Everything left ends too: there is no state the machine cannot get out of."""
        bound = 10 + sum(3 * (owed.work.input_tokens + owed.work.output_tokens) for owed in self.live.values()) * 10
        for _ in range(bound):
            if not self.live:
                break
            self._step()
        assert not self.live
        assert not self.machine.busy
        assert self.machine.kv_used_tokens == 0
        assert len(self.ended) == self.count


StepMachineAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStepMachineAgainstModel = StepMachineAgainstModel.TestCase
