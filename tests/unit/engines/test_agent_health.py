from __future__ import annotations

from collections.abc import Callable

import pytest

from engines.agent.core.health import Action, Cause, Decision, HealthCore, HealthLimits, Observation
from engines.agent.core.restarts import RestartBackoff

LIMITS = HealthLimits()
TICK_S = 0.25

World = Callable[[float], tuple[int, int]]  # seconds -> (progress, work)


class Run:
    """Drives a health core through simulated time."""

    def __init__(self, limits: HealthLimits = LIMITS) -> None:
        self.core = HealthCore(limits, 0.0)
        self.now_s = 0.0
        self.probes: list[float] = []

    def until(self, end_s: float, world: World, *, probe_answer_s: float | None = None) -> Decision | None:
        """Ticks until a restart is decided or time is up; every probe is answered after `probe_answer_s`, or never."""
        answer_at: float | None = None
        while self.now_s < end_s:
            self.now_s += TICK_S
            if answer_at is not None and self.now_s >= answer_at:
                answer_at = None
                self.core.probe_succeeded()
            progress, work = world(self.now_s)
            decision = self.core.tick(Observation(True, progress, work), self.now_s)
            if decision.action is Action.RESTART:
                return decision
            if decision.action is Action.PROBE:
                self.probes.append(self.now_s)
                answer_at = None if probe_answer_s is None else self.now_s + probe_answer_s
        return None


def idle(_: float) -> tuple[int, int]:
    return 0, 0


def test_a_fresh_engine_is_probed_at_once_then_every_interval() -> None:
    """Proves that an engine must answer before it gets work, and that an idle one is asked every five seconds."""
    run = Run()
    assert run.until(31.0, idle, probe_answer_s=0.25) is None
    assert run.probes[0] == TICK_S
    gaps = {later - earlier for earlier, later in zip(run.probes, run.probes[1:], strict=False)}
    assert gaps == {LIMITS.probe_interval_s}


def test_process_gone_is_seen_at_the_next_tick() -> None:
    """Proves that a dead process needs no timeout."""
    run = Run()
    run.core.tick(Observation(True, 0, 3), 1.0)
    decision = run.core.tick(Observation(False, 0, 3), 1.25)
    assert (decision.action, decision.cause) == (Action.RESTART, Cause.PROCESS_GONE)


def test_busy_hang_is_found_after_the_stall_time() -> None:
    """Proves detection under load within the stall time plus one tick, with the inputs in the decision."""
    run = Run()
    decision = run.until(200.0, lambda now_s: (int(min(now_s, 20.0) * 10), 5), probe_answer_s=0.25)
    assert decision is not None
    assert decision.cause is Cause.STALLED
    assert 20.0 + LIMITS.stall_s <= run.now_s <= 20.5 + LIMITS.stall_s
    assert decision.observation.work == 5
    assert decision.quiet_s >= decision.stall_s == 60.0


def test_idle_hang_is_found_within_thirty_seconds() -> None:
    """Proves detection of an idle dead engine: one probe that nobody answers for three timeouts."""
    run = Run()
    assert run.until(5.25, idle, probe_answer_s=0.25) is None
    start_s = run.now_s
    decision = run.until(100.0, idle)
    assert decision is not None
    assert decision.cause is Cause.PROBES_FAILED
    assert run.now_s - start_s <= 30.0


@pytest.mark.parametrize("delay_s", [0.0, 1.0, 7.75, 8.0, 15.0, 23.0])
def test_slow_probes_kill_nobody(delay_s: float) -> None:
    """Proves that probe answers delayed by up to 23 s, again and again, are no reason to restart."""
    assert Run().until(3_600.0, idle, probe_answer_s=delay_s) is None


def test_slow_tokens_under_overload_kill_nobody() -> None:
    """Proves that work that yields one token every 59 s, as prompts of 200k tokens may, is left alone."""
    run = Run()
    assert run.until(3_600.0, lambda now_s: (int(now_s / 59.0), 500)) is None
    assert len(run.probes) <= 1


def test_no_probes_while_busy() -> None:
    """Proves that a busy engine is judged by its progress and not given further work."""
    run = Run()
    assert run.until(300.0, lambda now_s: (int(now_s * 10), 3)) is None
    assert run.probes == []


def test_a_long_legitimate_step_raises_the_stall_time() -> None:
    """Proves that an engine whose longest step takes 30 s gets 150 s."""
    run = Run(HealthLimits(longest_step_s=30.0))
    decision = run.until(400.0, lambda _: (0, 1))
    assert decision is not None
    assert 150.0 <= run.now_s <= 151.0


def test_a_paused_agent_does_not_blame_the_engine() -> None:
    """Proves that ten minutes in which the agent did not run count as one tick."""
    run = Run()
    run.until(10.0, lambda _: (5, 1))
    decision = run.core.tick(Observation(True, 5, 1), 610.0)
    assert decision.action is Action.NOTHING
    assert decision.quiet_s <= 10.0 + LIMITS.tick_max_s


def test_work_that_arrives_during_a_silent_probe_inherits_the_silence() -> None:
    """Proves that an engine silent since a probe is found one stall time after the probe, not after the work."""
    run = Run()
    decision = run.until(200.0, lambda now_s: (0, 1 if now_s > 10.0 else 0))
    assert decision is not None
    assert decision.cause is Cause.STALLED
    assert run.now_s <= LIMITS.stall_s + 1.0


def test_failing_probes_restart_after_three() -> None:
    """Proves that errors count like silence: three failed probes replace an idle engine, two do not."""
    run = Run()
    for _ in range(3):
        before = len(run.probes)
        while len(run.probes) == before:
            assert run.until(run.now_s + TICK_S, idle) is None
        run.core.probe_failed()
    decision = run.core.tick(Observation(True, 0, 0), run.now_s + TICK_S)
    assert decision.cause is Cause.PROBES_FAILED
    assert run.now_s <= 2 * LIMITS.probe_interval_s + 3 * TICK_S


def test_an_engine_that_fails_every_request_is_probed_though_busy() -> None:
    """Proves that an engine which says it is ready while every request fails is replaced under load too."""
    run = Run()
    decision = None
    while decision is None and run.now_s < 60.0:
        run.core.request_failed()
        before = len(run.probes)
        decision = run.until(run.now_s + TICK_S, lambda _: (0, 4))
        if len(run.probes) > before:
            run.core.probe_failed()
    assert decision is not None
    assert decision.cause is Cause.PROBES_FAILED
    assert run.now_s < 20.0


def test_a_few_failed_requests_among_good_ones_cause_no_probe() -> None:
    """Proves that any token clears the suspicion that failed requests raise."""
    run = Run()
    for _ in range(400):
        run.core.request_failed()
        run.core.request_failed()
        assert run.until(run.now_s + TICK_S, lambda now_s: (int(now_s * 8), 4)) is None
    assert run.probes == []


def test_restart_pauses_double_and_reset() -> None:
    """Proves the pauses: none after the first failure, then 1, 2, 4 ... 30 s, and none again after a healthy minute."""
    backoff = RestartBackoff()
    assert [backoff.pause_s(0.0) for _ in range(8)] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert backoff.pause_s(61.0) == 0.0
    assert backoff.pause_s(5.0) == 1.0
