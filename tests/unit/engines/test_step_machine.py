from __future__ import annotations

import pytest

from engines.simulated.hardware import HARDWARE, Hardware, hardware
from engines.simulated.step_machine import StepMachine
from engines.simulated.work import SchedulerLimits, Step, Work
from fairlead.errors import InvalidArgumentError

H100 = HARDWARE["h100"]


def small(kv_capacity_tokens: int) -> Hardware:
    """A machine whose steps take 1 ms plus 1 ms per prefill token, so that times can be read off."""
    return Hardware("small", "toy", 0, 0, 0, 1.0, 0, 0, 0, 1.0, kv_capacity_tokens)


def step(machine: StepMachine) -> Step:
    result = machine.step()
    assert result is not None
    return result


def run(machine: StepMachine) -> list[Step]:
    steps = []
    while (result := machine.step()) is not None:
        steps.append(result)
        assert len(steps) < 100_000
    return steps


def test_step_times_of_the_worked_examples() -> None:
    """Proves the step-time formula on the two numbers of the module's docstring."""
    decode_s = H100.step_s(prefill_tokens=0, prefill_squares=0, sequences=64, context_tokens=64_000)
    prefill_s = H100.step_s(prefill_tokens=2_048, prefill_squares=2_048**2, sequences=0, context_tokens=0)
    assert decode_s == pytest.approx(10.50e-3, rel=1e-3)
    assert prefill_s == pytest.approx(44.0e-3, rel=2e-3)


def test_unknown_hardware_lists_the_known() -> None:
    """Proves that a wrong label is answered with the ones there are."""
    with pytest.raises(InvalidArgumentError, match="known: a100, a100-tp4, h100, h100-tp4, h100-tp8"):
        hardware("abacus")


def test_chunked_prefill_of_the_worked_example() -> None:
    """Proves chunking: two prompts of 3,000 and 100 tokens both yield their first token in the second step."""
    machine = StepMachine(H100)
    machine.add(Work("long", 3_000, 2))
    machine.add(Work("short", 100, 3))
    first, second, third, fourth = run(machine)
    assert (first.prefill_tokens, first.produced) == (2_048, ())
    assert (second.prefill_tokens, second.produced, second.finished) == (1_052, ("long", "short"), ())
    assert (third.produced, third.finished) == (("long", "short"), ("long",))
    assert (fourth.produced, fourth.finished) == (("short",), ("short",))
    assert not machine.busy
    assert machine.kv_used_tokens == 0


def test_attention_of_a_later_chunk_costs_more() -> None:
    """Proves that a chunk deep in a prompt takes longer than the first one, by the quadratic term."""
    machine = StepMachine(H100)
    machine.add(Work("long", 3 * 2_048, 1))
    first, second, third = run(machine)
    chunk = 2_048**2
    assert second.duration_s - first.duration_s == pytest.approx(2 * chunk * H100.ap / 1_000)
    assert third.duration_s - second.duration_s == pytest.approx(2 * chunk * H100.ap / 1_000)


def test_higher_priority_prefills_first() -> None:
    """Proves that a system request that comes last overtakes a prompt that is half computed."""
    machine = StepMachine(H100)
    machine.add(Work("batch", 100_000, 1, priority=1))
    step(machine)
    machine.add(Work("interactive", 100, 1, priority=2))
    machine.add(Work("system", 100, 1, priority=3))
    result = step(machine)
    assert result.admitted == ("system", "interactive")
    assert result.finished == ("system", "interactive")


def test_slots_are_limited() -> None:
    """Proves that no more than sequences_max run and that the next in line starts when one ends."""
    machine = StepMachine(H100, SchedulerLimits(sequences_max=2))
    for name in ("a", "b", "c"):
        machine.add(Work(name, 10, 2))
    assert step(machine).admitted == ("a", "b")
    assert machine.waiting == 1
    assert step(machine).finished == ("a", "b")
    assert step(machine).admitted == ("c",)


def test_full_cache_preempts_who_came_last_and_finishes_everyone() -> None:
    """Proves that a full KV cache throws out the youngest, which computes its tokens again and still ends right."""
    machine = StepMachine(small(64), SchedulerLimits(sequences_max=4, step_tokens_max=64))
    machine.add(Work("old", 16, 33))
    machine.add(Work("young", 16, 33))
    steps = run(machine)
    assert [name for result in steps for name in result.preempted][:1] == ["young"]
    produced = [name for result in steps for name in result.produced]
    assert (produced.count("old"), produced.count("young")) == (33, 33)
    assert [name for result in steps for name in result.finished] == ["old", "young"]
    assert sum(result.prefill_tokens for result in steps) > 32
    assert machine.kv_used_tokens == 0


def test_cancel_frees_at_once() -> None:
    """Proves that cancelling a running, a half-computed and a waiting request frees slot and cache, once."""
    machine = StepMachine(H100, SchedulerLimits(sequences_max=2))
    for name, tokens in (("decoding", 10), ("prefilling", 5_000), ("waiting", 10)):
        machine.add(Work(name, tokens, 50))
    step(machine)
    assert machine.running == ("decoding", "prefilling")
    assert [machine.cancel(name) for name in ("decoding", "prefilling", "waiting")] == [True, True, True]
    assert machine.cancel("decoding") is False
    assert not machine.busy
    assert machine.kv_used_tokens == 0
    assert machine.step() is None


@pytest.mark.parametrize(
    ("work", "named"),
    [
        (Work("known", 1, 1), "already"),
        (Work("new", 0, 1), "input_tokens"),
        (Work("new", 1, 0), "output_tokens"),
        (Work("new", 440_000, 2), "larger than the KV cache"),
    ],
)
def test_impossible_requests_are_refused(work: Work, named: str) -> None:
    """Proves that what could never end is refused at the door."""
    machine = StepMachine(H100)
    machine.add(Work("known", 1, 1))
    with pytest.raises(ValueError, match=named):
        machine.add(work)


def test_limits_must_make_sense() -> None:
    """Proves that limits that could stall the machine are refused."""
    with pytest.raises(ValueError, match="sequences_max"):
        SchedulerLimits(sequences_max=10, step_tokens_max=9)
