"""Says which load comes next until the cost of requests is known. Pure: the same results lead to the same loads.

    idle       one request at a time: how fast an empty replica is
    points     the highest load that keeps the objective, at lengths chosen one after the other (design, search)
    latencies  a few of the points at lower loads: how the time per output token grows with the load
    classes    the highest load for a mix of every traffic class
    again      the first load once more: a replica that changed its speed meanwhile has measured nothing

Every point becomes one equation: the work the replica does per second at its highest load costs one replica-second.
Work is what was counted in the window (prompt tokens, their squares, output tokens, their contexts), so a prompt more
or less at the window's edge is priced and does not disturb.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from model_units.calibration.analysis import analyse, fit_targets, prior_cost, request_cost
from model_units.calibration.design import Lengths, cloud, in_time, next_lengths
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.calibration.outcome import Outcome, Progress, Target
from model_units.calibration.search import Objective, Probe, Search
from model_units.calibration.traffic import CLASSES
from model_units.cost import CostForm
from model_units.fit import Fit, Row

CORE_VERSION: Final = 2
"""Grows with every change after which the loads of a stored calibration would be others."""

IDLE_STEPS_PER_OBJECTIVE: Final = 2.5
TPOT_OBJECTIVE_MS: Final = 50.0
"""Where none is asked for, full load keeps 50 ms per output token, or two and a half times what an idle replica takes
where that is more: a replica that hardly batches at its objective has no cost per token to speak of. Source of the
50 ms: the usual objective of interactive traffic, and that of the published constants."""

POINTS_MAX: Final = 18
POINTS_MIN: Final = 10
# More lengths than this are not tried when many of them cannot be measured.
_TRIED_MAX: Final = 24
_KV_SHARE_MAX: Final = 0.9
# Prompts of made-up words come out some tokens longer than wanted; an answer that the context cuts short tells nothing.
_CONTEXT_SHARE: Final = 0.95
_MIX_PAIRS: Final = 64
_IDLE: Final = (512, 64)
# The points whose latency is measured at lower loads too, and the parts of their highest load.
_LATENCY_POINTS: Final = 3
_LATENCY_SHARES: Final = (0.12, 0.3, 0.6)
_WINDOW_S: Final = 5.0
_MIX_WINDOW_S: Final = 20.0
# Most time of a load; a tenth of the budget where that is more, for slow replicas.
_TIME_MAX_S: Final = 90.0
_TIME_MAX_SHARE: Final = 0.1
# How far the last load may go beyond the budget: a window of it, and what comes before.
_OVERRUN_S: Final = 30.0
_PROBES_EXPECTED: Final = 2.0
# The rest of the budget is for loads that take longer than those before.
_BUDGET_SHARE: Final = 0.8
# A mix takes longer than a point: its window is.
_MIX_TARGETS: Final = 1.8
# With fewer at a time, one request more or less is too large a step to find the objective between.
_CONCURRENCY_MIN: Final = 5
# Where computing the first prompts takes longer, they are not measured: the form says what they cost.
_WARM_S_MAX: Final = 30.0
# What a load costs whatever its lengths: its window, and the search around it.
_OVERHEAD_S: Final = 10.0

# What is done while a load is still to come.
_PROGRESS_MAX: Final = 0.99

# How long an idle replica takes for the first load's prompt where the prior costs are true.
_PRIOR_TTFT_S: Final = 0.026


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine takes.

    Attributes:
        sequences_max: Requests at a time, 1 or more.
        kv_capacity_tokens: Its KV cache; 0 where it does not tell.
        context_tokens: Longest prompt plus answer, 2 or more.
    """

    sequences_max: int
    kv_capacity_tokens: int
    context_tokens: int


class Calibrator:
    """One calibration.

    Args:
        limits: What the engine takes.
        objective: What full load keeps; a tpot_ms of 0 takes the default.
        budget_s: Most replica time, above 0.
        error_max: Worst hold-out error that may be published, 0.05 for 5 %; a traffic class may be `MIX_NOISE` beyond.
        form: Which terms to fit.
        seed: Of the loads.
    """

    def __init__(
        self,
        limits: EngineLimits,
        objective: Objective,
        *,
        budget_s: float = 900.0,
        error_max: float = 0.05,
        form: CostForm = CostForm.ATTENTION,
        seed: int = 1,
    ) -> None:
        self._limits = limits
        self._objective = objective
        self._budget_s = budget_s
        self._error_max = error_max
        self._form = form
        self._seed = seed
        self._engine_s = 0.0
        self._loads = 0
        self._idle: list[LoadResult] = []
        self._targets: list[Target] = []
        self._abandoned: list[str] = []
        self._untested: list[str] = []
        self._tried: list[Lengths] = []
        self._mixes = list(CLASSES)
        self._latencies: list[tuple[int, int]] | None = None  # (which target, concurrency), once the points are done
        self._lengths: Lengths | None = None
        self._search: Search | None = None
        self._load: LoadSpec | None = None
        self._fit: Fit | None = None

    @property
    def objective(self) -> Objective:
        """What full load keeps; the default is known after the first load."""
        return self._objective

    @property
    def traffic_class(self) -> str:
        """The class whose mix the load last handed out is, or "" where its requests are all alike. Mixes are fitted
        too; each is judged by a fit that has not seen it."""
        testing = self._search is not None and self._lengths is None
        return self._mixes[0].name if testing else ""

    def next(self) -> LoadSpec | None:
        """The next load; None when the calibration is over. The same one until its result is recorded."""
        if self._load is None:
            self._load = self._next()
        return self._load

    def record(self, result: LoadResult) -> None:
        """Takes what the load came to.

        Raises:
            RuntimeError: No load was handed out.
        """
        load = self._load
        if load is None:
            raise RuntimeError("a result needs the load it belongs to")
        self._load = None
        self._loads += 1
        self._engine_s += result.engine_s
        if self._search is None:
            if self._latencies:
                self._take_latency(load.concurrency, result)
            else:
                self._take_idle(result)
        elif not result.usable:
            self._end_search(None)
        else:
            self._search.record(load.concurrency, result)
            if self._search.next() is None:
                self._end_search(self._search)
            elif not self._affords_load:
                self._end_search(None, measurable=True)

    def restore(self, experiments: Sequence[tuple[LoadSpec, LoadResult]]) -> None:
        """Goes on where an interrupted calibration was.

        Args:
            experiments: Everything it had recorded, in order.

        Raises:
            ValueError: They are those of another calibration (other limits, objective, seed or version).
        """
        for load, result in experiments:
            if self.next() != load:
                raise ValueError("these measurements belong to a calibration with other settings; start afresh")
            self.record(result)

    @property
    def progress(self) -> Progress:
        """How far it is."""
        left = self._loads_left() if self.next() is not None else 0.0
        mean_s = self._engine_s / self._loads if self._loads else 20.0
        if not left:
            return Progress(1.0, self._engine_s, 0.0, self._detail())
        left_s = max(mean_s, min(left * mean_s, self._budget_s - self._engine_s))
        done = self._engine_s / (self._engine_s + left_s) if left_s else 0.0
        return Progress(min(_PROGRESS_MAX, done), self._engine_s, left_s, self._detail())

    def _loads_left(self) -> float:
        """How many loads are expected to come."""
        targets = len(self._mixes)
        lower = _LATENCY_POINTS * len(_LATENCY_SHARES)
        if self._latencies is not None:
            lower = len(self._latencies)
        else:
            targets += max(0, POINTS_MAX - len(self._tried))
        return targets * _PROBES_EXPECTED + lower + 2 - len(self._idle)

    def outcome(self) -> Outcome:
        """What is known so far."""
        return analyse(
            self._objective,
            self._targets,
            self._idle,
            self._abandoned,
            form=self._form,
            context_tokens=self._longest(),
            error_max=self._error_max,
            engine_s=self._engine_s,
            untested=[*self._untested, *(mix.name for mix in self._mixes)],
        )

    def _detail(self) -> str:
        load = self._load
        if load is None:
            return "done"
        read, made = load.lengths[0]
        what = f"{read:,} in, {made:,} out" if len(load.lengths) == 1 else f"a mix of {self.traffic_class}"
        return f"{what}, {load.concurrency} at a time"

    def _next(self) -> LoadSpec | None:
        if not self._idle:
            return self._spec((_IDLE,), 1, _WINDOW_S)
        if self._search is None:
            self._begin_search()
        if self._search is not None:
            concurrency = self._search.next()
            assert concurrency is not None
            if self._lengths is None:
                return self._spec(self._mix(), concurrency, _MIX_WINDOW_S)
            return self._spec(((self._lengths.input_tokens, self._lengths.output_tokens),), concurrency, _WINDOW_S)
        if self._latencies:
            target, concurrency = self._latencies[0]
            lengths = self._targets[target].lengths
            assert lengths is not None
            return self._spec(((lengths.input_tokens, lengths.output_tokens),), concurrency, _WINDOW_S)
        return self._spec((_IDLE,), 1, _WINDOW_S) if len(self._idle) == 1 else None

    def _spec(self, lengths: tuple[tuple[int, int], ...], concurrency: int, window_s: float) -> LoadSpec:
        if lengths == (_IDLE,):
            quarter = max(1, self._longest() // 4)
            lengths = ((min(_IDLE[0], quarter), min(_IDLE[1], quarter)),)
        # In whole seconds: a load that was stored has to come out the same.
        left_s = math.ceil(max(0.0, self._budget_s - self._engine_s))
        time_max_s = max(_TIME_MAX_S, _TIME_MAX_SHARE * self._budget_s)
        return LoadSpec(lengths, concurrency, window_s, min(time_max_s, left_s + _OVERRUN_S), self._seed + self._loads)

    @property
    def _affords_load(self) -> bool:
        """Whether the budget has room for a load that takes as long as those before."""
        return self._engine_s * (1.0 + 1.0 / max(1, self._loads)) <= self._budget_s

    def _take_idle(self, result: LoadResult) -> None:
        self._idle.append(result)
        if not self._objective.tpot_ms:
            wanted = IDLE_STEPS_PER_OBJECTIVE * 1000.0 * result.tpot_s
            self._objective = Objective(max(TPOT_OBJECTIVE_MS, float(round(wanted))), self._objective.ttft_ms)

    def _lower_loads(self) -> list[tuple[int, int]]:
        """Parts of the highest loads of a few points."""
        loads = []
        for number, target in enumerate(self._targets[:_LATENCY_POINTS]):
            tried = {probe.concurrency for probe in target.probes}
            best = min(target.probes, key=lambda probe: abs(probe.stress - 1.0)).concurrency
            wanted = {max(2, round(share * best)) for share in _LATENCY_SHARES}
            loads += [(number, concurrency) for concurrency in sorted(wanted - tried) if concurrency < best]
        return loads

    def _take_latency(self, concurrency: int, result: LoadResult) -> None:
        assert self._latencies is not None
        number, _ = self._latencies.pop(0)
        if not self._affords_load:
            self._latencies = []
        if result.usable:
            probe = Probe(concurrency, result, self._objective.stress(result))
            target = self._targets[number]
            probes = sorted((*target.probes, probe), key=lambda each: each.concurrency)
            self._targets[number] = replace(target, probes=tuple(probes))

    def _begin_search(self) -> None:
        """Chooses what to look at next: a point while the budget allows, then the classes."""
        points = sum(target.lengths is not None for target in self._targets)
        load_s = self._engine_s / max(1, self._loads)
        per_target_s = _PROBES_EXPECTED * load_s
        latencies = _LATENCY_POINTS * len(_LATENCY_SHARES) if self._latencies is None else 0
        room_s = (
            _BUDGET_SHARE * self._budget_s
            - self._engine_s
            - latencies * load_s
            - _MIX_TARGETS * per_target_s * len(self._mixes)
        )
        needed = points < POINTS_MIN and self._engine_s + per_target_s < self._budget_s
        wanted = points < POINTS_MAX and len(self._tried) < _TRIED_MAX and (needed or room_s > per_target_s)
        self._lengths = self._next_lengths() if wanted else None
        if self._lengths is not None:
            self._tried.append(self._lengths)
            pairs: tuple[tuple[int, int], ...] = ((self._lengths.input_tokens, self._lengths.output_tokens),)
        elif self._latencies is None:
            self._latencies = self._lower_loads() if self._engine_s < _BUDGET_SHARE * self._budget_s else []
            self._begin_search()
            return
        elif self._latencies:
            return
        elif self._mixes and self._fit is not None and self._engine_s + per_target_s / 2 < self._budget_s:
            pairs = self._mix()
        else:
            return
        self._search = Search(
            self._objective, most=self._most(pairs), guess=self._guess(pairs), idle_stress=self._idle_stress()
        )

    def _next_lengths(self) -> Lengths | None:
        def uncertainty(lengths: Lengths) -> float:
            if self._fit is None or not self._fit.degrees_of_freedom:
                return 1.0
            return self._fit.relative_uncertainty(Row.of_request(lengths.input_tokens, lengths.output_tokens, 1.0))

        def replica_s(lengths: Lengths) -> float:
            pair = (lengths.input_tokens, lengths.output_tokens)
            concurrency = min(self._guess((pair,)), self._most((pair,)))
            if concurrency < _CONCURRENCY_MIN and self._limits.sequences_max > _CONCURRENCY_MIN:
                return math.inf
            warm_s = concurrency * self._cost(lengths.input_tokens, 1)
            return _OVERHEAD_S + warm_s if warm_s <= _WARM_S_MAX else math.inf

        masses = cloud(self._longest(), self._cost, self._objective.ttft_ms)
        return next_lengths(masses, self._tried, uncertainty=uncertainty, replica_s=replica_s)

    def _cost(self, read: int, made: int) -> float:
        """Replica-seconds of a request as far as they are known: by the fit, else by a well-known replica's."""
        if self._fit is not None:
            return request_cost(self._fit)(read, made)
        return max(0.2, self._idle[0].ttft_s_p50 / _PRIOR_TTFT_S) * prior_cost(read, made)

    def _end_search(self, search: Search | None, *, measurable: bool = False) -> None:
        """Files what a search has found; None when its load could not be measured, or when the budget ended it."""
        name = self._mixes[0].name if self._lengths is None else ""
        if search is None and self._lengths is None:
            self._untested.append(name)
        elif search is None and not measurable:
            assert self._lengths is not None
            self._abandoned.append(f"{self._lengths.input_tokens:,} in")
        elif search is not None:
            self._targets.append(Target(self._lengths, name, tuple(search.probes), search.rates()))
        if self._lengths is None:
            self._mixes.pop(0)
        else:
            self._fit = fit_targets(self._targets, self._form, self._longest(), self._objective.ttft_ms)[0]
        self._search = self._lengths = None

    def _mix(self) -> tuple[tuple[int, int], ...]:
        """The pairs of the next class that can keep the objective for the first token; all of them where none can."""
        pairs = self._mixes[0].pairs(_MIX_PAIRS, self._longest())
        return in_time(pairs, self._cost, self._objective.ttft_ms) or pairs

    def _longest(self) -> int:
        kv, context = self._limits.kv_capacity_tokens, max(2, int(_CONTEXT_SHARE * self._limits.context_tokens))
        return max(2, min(context, int(_KV_SHARE_MAX * kv))) if kv else context

    def _most(self, pairs: Sequence[tuple[int, int]]) -> int:
        """Most requests at a time: the engine's slots, and those whose contexts fit nine tenths of its KV cache."""
        tokens = sum(read + made for read, made in pairs) / len(pairs)
        kv = self._limits.kv_capacity_tokens
        room = int(_KV_SHARE_MAX * kv / tokens) if kv else self._limits.sequences_max
        return max(1, min(self._limits.sequences_max, room))

    def _guess(self, pairs: Sequence[tuple[int, int]]) -> int:
        """Requests at a time at the objective, as far as the fit (or a well-known replica) says."""
        cost_s = sum(self._cost(read, made) for read, made in pairs)
        read_s = sum(self._cost(read, 1) for read, _ in pairs)
        made_s = sum(made for _, made in pairs) * self._objective.tpot_ms / 1000.0
        return max(1, round((made_s + read_s) / max(cost_s, 1e-9)))

    def _idle_stress(self) -> float:
        return 1000.0 * self._idle[0].tpot_s / self._objective.tpot_ms
