"""Whole calibrations: what they find, and that they end, whatever the replica does."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engines.simulated.hardware import HARDWARE
from engines.simulated.rehearsal import rehearse
from engines.simulated.work import SchedulerLimits
from model_units.calibration.calibrator import POINTS_MAX, Calibrator, EngineLimits
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.calibration.search import Objective
from model_units.calibration.traffic import CLASSES
from model_units.cost import CostForm
from model_units.loads import load_from_proto, load_to_proto
from tests.unit.model_units.calibration.replicas import (
    EMPTY,
    H100_LIMITS,
    LinearReplica,
    Replica,
    calibrate,
    calibrated_h100,
    slower,
)

LIMITS = EngineLimits(256, 0, 16_384)
NAMES = [each.name for each in CLASSES]


def linear(**options: object) -> Calibrator:
    return Calibrator(LIMITS, Objective(50.0), **options)  # type: ignore[arg-type]


def test_a_simulated_h100_is_calibrated() -> None:
    """Proves the bar on the simulated H100: acceptable within a quarter of an hour of replica time, the hold-out error
    within 5 %, every traffic class within 6 % of its measured capacity."""
    calibrator, done = calibrated_h100()
    outcome = calibrator.outcome()
    assert outcome.objections == ()
    assert outcome.acceptable
    assert outcome.evidence is not None
    assert outcome.evidence.hold_out_error <= 0.05
    assert sorted(outcome.evidence.class_errors) == sorted(NAMES)
    assert all(abs(error) <= 0.06 for error in outcome.evidence.class_errors.values())
    assert outcome.evidence.engine_s == pytest.approx(sum(result.engine_s for _, result in done))
    assert outcome.evidence.engine_s <= 900.0
    assert outcome.evidence.points == len(outcome.points) <= POINTS_MAX


def test_true_coefficients_are_found() -> None:
    """Proves that a replica that costs what its coefficients say is given those coefficients."""
    replica = LinearReplica()
    calibrator = Calibrator(EngineLimits(100_000, 0, 16_384), Objective(50.0))
    calibrate(calibrator, replica)
    outcome = calibrator.outcome()
    assert outcome.acceptable
    assert outcome.fit is not None
    assert outcome.fit.coefficients == pytest.approx(replica.coefficients, rel=0.02)
    assert outcome.evidence is not None
    assert outcome.evidence.stated_error < 0.005
    for point in outcome.points:
        assert point.replica_s == pytest.approx(replica.cost_s(point.input_tokens, point.output_tokens), rel=0.01)


def test_the_same_results_lead_to_the_same_loads() -> None:
    """Proves that nothing but what was measured decides on the loads, and that another seed makes others."""
    replica = LinearReplica()
    first, again, other = linear(), linear(), linear(seed=2)
    loads = [load for load, _ in calibrate(first, replica)]
    assert [load for load, _ in calibrate(again, replica)] == loads
    assert first.outcome() == again.outcome()
    assert other.next() != loads[0]


@settings(max_examples=3, deadline=None, phases=[Phase.generate])
@given(st.floats(0.0, 1.0))
def test_an_interrupted_calibration_goes_on(part: float) -> None:
    """Proves that whatever was recorded when it ended, the rest goes on with the same loads to the same outcome."""
    calibrator, done = calibrated_h100()
    cut = round(part * len(done))
    again = Calibrator(H100_LIMITS, Objective(50.0))
    again.restore(done[:cut])
    for load, result in done[cut:]:
        assert again.next() == load
        again.record(result)
    assert again.next() is None
    assert again.outcome() == calibrator.outcome()


@pytest.mark.parametrize(
    "other",
    [
        Calibrator(H100_LIMITS, Objective(50.0), seed=2),
        Calibrator(H100_LIMITS, Objective(20.0)),
        Calibrator(replace(H100_LIMITS, sequences_max=16), Objective(50.0)),
        Calibrator(replace(H100_LIMITS, context_tokens=2_048), Objective(50.0)),
        Calibrator(H100_LIMITS, Objective(50.0), budget_s=60.0),
        Calibrator(H100_LIMITS, Objective(50.0), form=CostForm.PRODUCT),
    ],
    ids=["seed", "objective", "sequences", "context", "budget", "form"],
)
def test_measurements_of_other_settings_are_refused(other: Calibrator) -> None:
    """Proves that what was measured with other settings, so far as they lead to other loads, is not gone on with."""
    with pytest.raises(ValueError, match="belong to a calibration with other settings; start afresh"):
        other.restore(calibrated_h100()[1])


def test_more_measurements_than_loads_are_refused() -> None:
    """Proves that a calibration that is over takes no further measurement."""
    _, done = calibrated_h100()
    with pytest.raises(ValueError, match="start afresh"):
        Calibrator(H100_LIMITS, Objective(50.0)).restore([*done, done[-1]])


def test_a_result_needs_its_load() -> None:
    """Proves that a result is only taken for a load that was handed out, and only once."""
    calibrator = linear()
    with pytest.raises(RuntimeError, match="needs the load"):
        calibrator.record(EMPTY)
    load = calibrator.next()
    assert load is not None
    calibrator.record(LinearReplica()(load))
    with pytest.raises(RuntimeError, match="needs the load"):
        calibrator.record(LinearReplica()(load))


def test_the_default_objective_leaves_room_above_an_idle_step() -> None:
    """Proves that without an objective it is 50 ms, or two and a half idle steps where that is more."""
    for idle_ms, objective_ms in ((8.0, 50.0), (30.0, 75.0)):
        calibrator = Calibrator(LIMITS, Objective(0.0))
        load = calibrator.next()
        assert load is not None
        calibrator.record(LinearReplica((0.0, 1e-9, 0.0, 0.0), idle_ms)(load))
        assert calibrator.objective.tpot_ms == objective_ms


@settings(max_examples=3, deadline=None, phases=[Phase.generate])
@given(st.floats(0.0, 1.0), st.sampled_from([1.6, 0.6]))
def test_a_replica_that_changes_its_speed_is_never_accepted(part: float, factor: float) -> None:
    """Proves that whenever a replica becomes slower or faster by more than half, nothing may be published of it."""
    expected = len(calibrate(linear(), LinearReplica()))
    count = itertools.count()
    change = 1 + round(part * (expected - 12))  # the number of loads depends on what happens

    def changing(load: LoadSpec) -> LoadResult:
        result = LinearReplica()(load)
        return slower(result, factor) if next(count) >= change else result

    calibrator = linear()
    calibrate(calibrator, changing)
    outcome = calibrator.outcome()
    assert not outcome.acceptable
    assert any("changed its speed" in objection for objection in outcome.objections)


def test_a_simulated_replica_that_slows_down_is_not_accepted() -> None:
    """Proves the same on the simulated H100, throttled to 1.6 times its step times half way."""
    count = itertools.count()

    def throttled(load: LoadSpec) -> LoadResult:
        return rehearse(HARDWARE["h100"], load, slow_factor=1.6 if next(count) >= 15 else 1.0)

    calibrator = Calibrator(H100_LIMITS, Objective(50.0))
    calibrate(calibrator, throttled)
    assert any("1.6" in objection for objection in calibrator.outcome().objections)


@pytest.mark.parametrize(
    "factor",
    [lambda number: 1.15 if number >= 17 else 1.0, lambda number: 1.6 if 10 <= number < 20 else 1.0],
    ids=["a little, for good", "much, for a while"],
)
def test_a_change_that_the_last_load_does_not_show_is_not_accepted(factor: Callable[[int], float]) -> None:
    """Proves that a replica which becomes 1.15 times slower half way, too little for the repeated load to tell, or 1.6
    times slower for ten loads only, is not published either: its points contradict each other."""
    count = itertools.count()
    calibrator = Calibrator(H100_LIMITS, Objective(50.0))
    calibrate(calibrator, lambda load: rehearse(HARDWARE["h100"], load, slow_factor=factor(next(count))))
    outcome = calibrator.outcome()
    assert not outcome.acceptable
    assert any("hold-out error" in objection for objection in outcome.objections)


@pytest.mark.parametrize("seed", range(2))
def test_noise_is_not_accepted(seed: int) -> None:
    """Proves that a replica whose results are noise, over four orders of magnitude, ends in objections, and with
    evidence that can be stated."""
    draw = random.Random(seed)

    def noisy(load: LoadSpec) -> LoadResult:
        return slower(LinearReplica()(load), 10 ** draw.uniform(-2.0, 2.0))

    calibrator = linear()
    calibrate(calibrator, noisy)
    assert calibrator.outcome().objections
    assert not calibrator.outcome().acceptable


def single_tokens(load: LoadSpec) -> LoadResult:
    """Every answer at once: no request is seen to decode."""
    result = LinearReplica()(load)
    return replace(result, output_tokens=result.first_tokens, decoding_s=0.0, ttft_s_p50=0.0, ttft_s_p95=0.0)


def alike(load: LoadSpec) -> LoadResult:
    """The same whatever is asked for."""
    return LoadResult(5.0, 6.0, 10, 100, 4.0, 1_000, 1e5, 1e5, 0.1, 0.2)


@pytest.mark.parametrize(
    ("replica", "objection"),
    [
        (lambda _: EMPTY, "too few lengths"),
        (lambda _: replace(EMPTY, engine_s=0.0), "too few lengths"),
        (alike, "too few lengths"),
        (single_tokens, ""),
    ],
    ids=["empty", "empty in no time", "always alike", "no time per token"],
)
def test_useless_results_end_in_objections(replica: Replica, objection: str) -> None:
    """Proves that a replica that cannot be measured neither keeps a calibration going for ever nor breaks it."""
    calibrator = linear()
    calibrate(calibrator, replica)
    outcome = calibrator.outcome()
    assert not outcome.acceptable
    assert any(objection in each for each in outcome.objections)


def test_a_class_that_cannot_be_measured_is_named() -> None:
    """Proves that a profile is not acceptable as long as a class was left out, and that its name is said."""

    def no_mix(load: LoadSpec) -> LoadResult:
        mixed = len(load.lengths) > 1 and load.lengths == CLASSES[3].pairs(64, LIMITS.context_tokens)
        return EMPTY if mixed else LinearReplica()(load)

    calibrator = linear()
    calibrate(calibrator, no_mix)
    assert any("not tested on summarization" in each for each in calibrator.outcome().objections)


@pytest.mark.parametrize("budget_s", [1.0, 150.0, 300.0])
def test_a_small_budget_ends_early(budget_s: float) -> None:
    """Proves that a budget is kept to within a few loads, and that what it did not reach is said."""
    calibrator = Calibrator(H100_LIMITS, Objective(50.0), budget_s=budget_s)
    done = calibrate(calibrator, lambda load: rehearse(HARDWARE["h100"], load))
    outcome = calibrator.outcome()
    used_s = list(itertools.accumulate(result.engine_s for _, result in done))
    assert used_s[-1] <= budget_s + 45.0  # the load that crosses it, and the first one once more
    for (load, _), before_s in zip(done[1:], used_s, strict=False):
        assert load.time_max_s <= max(0.0, budget_s - before_s) + 31.0
        assert load_from_proto(load_to_proto(load)) == load, "an interrupted calibration would not go on"
    if outcome.fit is None:
        assert "too few lengths" in outcome.objections[0]
    else:
        untested = [name for name in NAMES if name not in [each.name for each in outcome.classes]]
        assert all(any(name in each for each in outcome.objections) for name in untested)
    assert budget_s > 200.0 or not outcome.acceptable


@pytest.mark.parametrize("sequences_max", [1, 4])
@pytest.mark.parametrize(("context_tokens", "kv"), [(2_048, 0), (4_096, 440_000), (4_096, 3_000), (131_072, 500)])
def test_small_engines_are_asked_what_they_take(sequences_max: int, context_tokens: int, kv: int) -> None:
    """Proves that no load is larger than the engine: its slots, its context, its KV cache."""
    limits = EngineLimits(sequences_max, kv, context_tokens)
    hardware = replace(HARDWARE["h100"], kv_capacity_tokens=kv or 440_000)

    def bounded(load: LoadSpec) -> LoadResult:
        assert load.concurrency <= sequences_max
        assert all(read + made <= context_tokens for read, made in load.lengths)
        return rehearse(hardware, load, SchedulerLimits(sequences_max=sequences_max))  # refuses what cannot fit

    calibrator = Calibrator(limits, Objective(50.0))
    calibrate(calibrator, bounded)
    outcome = calibrator.outcome()
    assert outcome.fit is not None
    assert not any("could not be measured" in each for each in outcome.objections)


@pytest.mark.parametrize("context_tokens", [2, 5])
def test_absurd_contexts_do_no_harm(context_tokens: int) -> None:
    """Proves that an engine with next to no context ends a calibration and does not break it."""
    calibrator = Calibrator(EngineLimits(8, 0, context_tokens), Objective(50.0))
    calibrate(calibrator, lambda load: rehearse(HARDWARE["h100"], load))
    assert isinstance(calibrator.outcome().objections, tuple)


def test_the_product_form_is_calibrated_too() -> None:
    """Proves that the form for comparison goes through, has no quadratic term, and is the worse one on the H100."""
    product, attention = calibrated_h100(CostForm.PRODUCT)[0].outcome(), calibrated_h100()[0].outcome()
    assert product.fit is not None
    assert product.fit.form is CostForm.PRODUCT
    assert product.fit.coefficients[2] == 0.0
    assert product.evidence is not None
    assert attention.evidence is not None
    assert product.evidence.hold_out_error > 1.5 * attention.evidence.hold_out_error


def test_progress_grows_to_the_end() -> None:
    """Proves that the part that is done never falls by much, begins near 0 and ends at 1 with nothing left."""
    calibrator = Calibrator(H100_LIMITS, Objective(50.0))
    fractions = []
    for load, result in calibrated_h100()[1]:
        progress = calibrator.progress
        assert 0.0 <= progress.fraction <= 1.0
        assert f"{load.concurrency} at a time" in progress.detail
        fractions.append(progress.fraction)
        assert calibrator.next() == load
        calibrator.record(result)
    assert fractions[0] == 0.0
    assert fractions[1] < 0.1
    assert all(later > earlier - 0.05 for earlier, later in itertools.pairwise(fractions[1:]))
    assert fractions[-1] > 0.7
    end = calibrator.progress
    assert (end.fraction, end.engine_left_s, end.detail) == (1.0, 0.0, "done")
    assert end.engine_s == pytest.approx(math.fsum(result.engine_s for _, result in calibrated_h100()[1]))


def test_progress_is_not_over_before_the_end() -> None:
    """Proves that where the budget is used up, a load that is still to come leaves something to do."""
    calibrator = Calibrator(H100_LIMITS, Objective(50.0), budget_s=150.0)
    while (load := calibrator.next()) is not None:
        progress = calibrator.progress
        assert progress.fraction <= 0.99
        assert progress.engine_left_s > 0.0
        calibrator.record(rehearse(HARDWARE["h100"], load))
    assert (calibrator.progress.fraction, calibrator.progress.engine_left_s) == (1.0, 0.0)


def test_a_search_ends_with_the_budget() -> None:
    """Proves that a search whose loads take far longer than those before is given up in the middle, without counting
    as lengths that cannot be measured."""
    count = itertools.count()

    def slowing(load: LoadSpec) -> LoadResult:
        return replace(rehearse(HARDWARE["h100"], load), engine_s=8.0 if next(count) < 12 else 80.0)

    calibrator = Calibrator(H100_LIMITS, Objective(50.0), budget_s=200.0)
    done = calibrate(calibrator, slowing)
    assert sum(result.engine_s for _, result in done) <= 200.0 + 2 * 80.0
    assert not any("could not be measured" in each for each in calibrator.outcome().objections)


def test_a_slow_replica_is_calibrated_with_time() -> None:
    """Proves the remedy for slow engines: ten times slower than an H100, a replica is acceptable with a budget of an
    hour, whose loads may take longer, and an objective of four idle steps."""
    calibrator = Calibrator(EngineLimits(256, 440_000, 131_072), Objective(300.0), budget_s=3_600.0)
    done = calibrate(calibrator, lambda load: rehearse(HARDWARE["h100"], load, slow_factor=10.0))
    assert calibrator.outcome().acceptable
    assert {load.time_max_s for load, _ in done} == {360.0}


@pytest.mark.parametrize("ttft_ms", [200.0, 1_000.0])
def test_an_objective_for_the_first_token_leaves_out_what_cannot_keep_it(ttft_ms: float) -> None:
    """Proves that no load after the first points has a prompt that takes an idle H100 longer than the objective, and
    that an outcome which waiting has spoilt says so."""
    limits = EngineLimits(256, H100_LIMITS.kv_capacity_tokens, 131_072)
    calibrator = Calibrator(limits, Objective(50.0, ttft_ms))
    done = calibrate(calibrator, lambda load: rehearse(HARDWARE["h100"], load))
    longest = max(read for load, _ in done for read, _ in load.lengths)
    hardware = HARDWARE["h100"]
    alone_s = hardware.step_s(prefill_tokens=longest, prefill_squares=longest**2, sequences=0, context_tokens=0)
    assert 0.4 * ttft_ms <= 1e3 * alone_s <= 1.1 * ttft_ms
    outcome = calibrator.outcome()
    if not outcome.acceptable:
        assert any(f"allow more than {ttft_ms:g} ms, or leave it out" in each for each in outcome.objections)
    assert not any("time to first token" in each for each in calibrated_h100()[0].outcome().objections)


def test_loads_say_what_they_are_for() -> None:
    """Proves that a mix is handed out under the name of its class, a point without one."""
    calibrator = Calibrator(H100_LIMITS, Objective(50.0))
    seen = []
    for load, result in calibrated_h100()[1]:
        assert calibrator.next() == load
        name = calibrator.traffic_class
        assert bool(name) == (len(load.lengths) > 1)
        if name and name not in seen:
            seen.append(name)
        calibrator.record(result)
    assert seen == NAMES


def test_an_unfinished_measurement_is_not_acceptable() -> None:
    """Proves that an outcome before the end, when everything but the repeated load is there, may not be published."""
    calibrator = Calibrator(H100_LIMITS, Objective(50.0))
    calibrator.restore(calibrated_h100()[1][:-1])
    assert calibrator.outcome().objections == ("the measurement is not finished",)
