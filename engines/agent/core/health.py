"""When an engine is dead, decided from its progress and not from timeouts.

An engine is replaced only when

- its process is gone, or
- work is in it and no token came out of it for the stall time, max(60 s, 5 x the longest legitimate step), or
- it is idle, or fails one request after the other, and a top-priority end-to-end probe failed three times.

A timeout alone never kills: a probe is one request that stays in the engine; each `probe_timeout_s` without an answer
counts as one failure, and its answer, however late, clears them. So a probe that takes 15 s under starved CPU kills
nobody, where three cancelled ones in a row would have. Time in which the agent itself did not run (a paused or starved
process) does not count against the engine, and any token from the engine clears all suspicion.

Idle, a dead engine is found within probe_interval_s + 3 * probe_timeout_s: with the defaults 5 + 3 * 8 = 29 s.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """How patient the agent is.

    Attributes:
        stall_floor_s: Least stall time, seconds.
        longest_step_s: Longest legitimate step of this engine, seconds; five of them raise the stall time. The longest
            step of the measured configurations takes 1.3 s.
        probe_interval_s: Pause between probes of an idle engine, seconds.
        probe_timeout_s: A probe without an answer counts as failed once per this time, seconds.
        probe_failures_max: Failures in a row that replace an idle engine.
        errors_max: Requests in a row that the engine failed before it is probed although it is busy.
        tick_max_s: Longest time one tick may count; more than this between two ticks means the agent stood still.
    """

    stall_floor_s: float = 60.0
    longest_step_s: float = 1.3
    probe_interval_s: float = 5.0
    probe_timeout_s: float = 8.0
    probe_failures_max: int = 3
    errors_max: int = 3
    tick_max_s: float = 1.0

    @property
    def stall_s(self) -> float:
        """No token for this long, with work inside, means a hang."""
        return max(self.stall_floor_s, 5.0 * self.longest_step_s)


class Action(enum.Enum):
    """What to do now."""

    NOTHING = "nothing"
    PROBE = "probe"
    RESTART = "restart"


class Cause(enum.Enum):
    """Why an engine is replaced."""

    PROCESS_GONE = "process_gone"
    STALLED = "stalled"
    PROBES_FAILED = "probes_failed"


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known of the engine at one moment.

    Attributes:
        alive: Its process exists.
        progress_tokens: Tokens it produced since it started.
        work: Requests that wait or run, the probe not counted.
    """

    alive: bool
    progress_tokens: int
    work: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do and everything it was decided from, for the log.

    Attributes:
        action: What to do.
        cause: Why, for a restart.
        observation: What was seen.
        quiet_s: How long nothing came out while something was inside, seconds.
        probe_failures: Failures of the probe so far.
        errors: Requests in a row that the engine failed.
        stall_s: The stall time in force, seconds.
    """

    action: Action
    cause: Cause | None
    observation: Observation
    quiet_s: float
    probe_failures: int
    errors: int
    stall_s: float


@dataclass(slots=True)
class _Probe:
    running: bool = False
    waited_s: float = 0.0  # since it began, or since its last failure
    failures: int = 0
    rested_s: float = 0.0  # idle since the last probe or the last work


class HealthCore:
    """The state machine of one engine's life; `tick` it at least once per `tick_max_s`.

    Its first action is a probe: an engine that just started has to answer one before it gets work.

    Args:
        limits: How patient.
        now_s: The engine's start, monotonic seconds.
    """

    def __init__(self, limits: HealthLimits, now_s: float) -> None:
        self._limits = limits
        self._last_s = now_s
        self._progress_tokens = 0
        self._quiet_s = 0.0
        self._errors = 0
        self._probe = _Probe(rested_s=limits.probe_interval_s)

    def probe_succeeded(self) -> None:
        """The probe was answered."""
        self._probe = _Probe()
        self._quiet_s = 0.0
        self._errors = 0

    def probe_failed(self) -> None:
        """The probe ended with an error: one failure more; the next one follows after `probe_interval_s`."""
        self._probe = _Probe(failures=self._probe.failures + 1)

    def request_failed(self) -> None:
        """The engine failed a request (not: the request was wrong or cancelled)."""
        self._errors += 1

    def tick(self, observation: Observation, now_s: float) -> Decision:
        """Looks at the engine.

        Args:
            observation: What is known now.
            now_s: Monotonic seconds.

        Returns:
            What to do. After PROBE a probe counts as running until `probe_succeeded` or `probe_failed`; after RESTART
            this state machine has done its work, and the new engine gets a new one.
        """
        passed_s = min(max(0.0, now_s - self._last_s), self._limits.tick_max_s)
        self._last_s = now_s
        self._watch_progress(observation, passed_s)
        if not observation.alive:
            return self._decide(Action.RESTART, observation, Cause.PROCESS_GONE)
        if observation.work and self._quiet_s >= self._limits.stall_s:
            return self._decide(Action.RESTART, observation, Cause.STALLED)
        probing = not observation.work or self._errors >= self._limits.errors_max
        self._watch_probe(passed_s, probing)
        if probing and self._probe.failures >= self._limits.probe_failures_max:
            return self._decide(Action.RESTART, observation, Cause.PROBES_FAILED)
        if not probing or self._probe.running or self._probe.rested_s < self._limits.probe_interval_s:
            return self._decide(Action.NOTHING, observation)
        self._probe.running, self._probe.waited_s, self._probe.rested_s = True, 0.0, 0.0
        return self._decide(Action.PROBE, observation)

    def _watch_progress(self, observation: Observation, passed_s: float) -> None:
        moved = observation.progress_tokens != self._progress_tokens
        self._progress_tokens = observation.progress_tokens
        if moved:
            self._probe.failures, self._probe.waited_s, self._errors = 0, 0.0, 0
        if moved or not (observation.work or self._probe.running):
            self._quiet_s = 0.0
        else:
            self._quiet_s += passed_s

    def _watch_probe(self, passed_s: float, probing: bool) -> None:
        probe = self._probe
        if probe.running:
            probe.waited_s += passed_s
            if probe.waited_s >= self._limits.probe_timeout_s:
                probe.waited_s = 0.0
                probe.failures += 1
        elif probing:
            probe.rested_s += passed_s
        else:
            probe.rested_s, probe.failures = 0.0, 0

    def _decide(self, action: Action, observation: Observation, cause: Cause | None = None) -> Decision:
        return Decision(
            action, cause, observation, self._quiet_s, self._probe.failures, self._errors, self._limits.stall_s
        )
