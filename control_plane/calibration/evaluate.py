"""What a stored calibration's measurements come to, in the form it fits and in the other one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from fairlead.admin.v1 import calibration_pb2 as pb
from model_units.calibration.calibrator import Calibrator, EngineLimits
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.calibration.outcome import Outcome
from model_units.calibration.search import Objective
from model_units.cost import CostForm
from model_units.fit import Row, fit, leave_one_out
from model_units.loads import load_from_proto, measurement_from_proto
from model_units.wire import form_from_proto

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Experiment:
    """One load and what it came to.

    Attributes:
        traffic_class: The class it tests, or "" where it is a point of the fit.
        load: The load.
        result: What was measured.
    """

    traffic_class: str
    load: LoadSpec
    result: LoadResult


@dataclass(frozen=True, slots=True)
class Curve:
    """The loads of one pair of lengths, or of one traffic class.

    Attributes:
        name: The lengths or the class, for people.
        points: Requests at a time, mean time per output token and 95th percentile of the time to first token in
            milliseconds; ascending.
    """

    name: str
    points: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True, slots=True)
class FormErrors:
    """How far a form of the cost function is off.

    Attributes:
        hold_out: Cost-weighted mean error on lengths left out of the fit; None while there are too few.
        classes: Signed error by traffic class.
    """

    hold_out: float | None
    classes: Mapping[str, float]


def experiments(calibration: pb.Calibration) -> list[Experiment]:
    """Everything that was measured, in order.

    Raises:
        InvalidArgumentError: Something stored cannot be true.
    """
    return [
        Experiment(each.traffic_class, load_from_proto(each.load), measurement_from_proto(each.measurement))
        for each in calibration.experiments
    ]


def curves(measured: Sequence[Experiment]) -> list[Curve]:
    """The loads by what they were put on, without those that only see how fast an idle replica is.

    Args:
        measured: As from `experiments`; the first load, and repetitions of it, are those of an idle replica.
    """
    found = []
    for (name, lengths), group in groupby(measured, lambda each: (each.traffic_class, each.load.lengths)):
        tried = list(group)
        idle = (lengths, tried[0].load.concurrency) == (measured[0].load.lengths, measured[0].load.concurrency)
        points = [
            (each.load.concurrency, 1000 * each.result.tpot_s, 1000 * each.result.ttft_s_p95)
            for each in tried
            if each.result.usable
        ]
        if points and not idle:
            read, made = lengths[0]
            found.append(Curve(name or f"{read:,} + {made:,}", tuple(sorted(points))))
    return found


def outcome(calibration: pb.Calibration, measured: Sequence[Experiment]) -> Outcome:
    """What the measurements say so far.

    Args:
        calibration: With the options and the engine's limits.
        measured: As from `experiments`.

    Raises:
        ValueError: They are not those that this version measures with these options.
    """
    options = calibration.options
    limits = EngineLimits(calibration.sequences_max, calibration.kv_capacity_tokens, calibration.context_tokens)
    calibrator = Calibrator(
        limits,
        Objective(options.tpot_objective_ms, options.ttft_objective_ms),
        budget_s=options.budget.ToNanoseconds() / _NS_PER_S,
        error_max=options.error_max,
        form=form_from_proto(options.form),
        seed=options.seed,
    )
    calibrator.restore([(each.load, each.result) for each in measured])
    return calibrator.outcome()


def own_errors(found: Outcome) -> FormErrors:
    """Errors in the form that was fitted."""
    hold_out = found.evidence.hold_out_error if found.evidence is not None else None
    return FormErrors(hold_out, {each.name: each.error for each in found.classes})


def errors_in(form: CostForm, found: Outcome, measured: Sequence[Experiment]) -> FormErrors:
    """Errors that another form makes on the same measurements.

    Args:
        form: The form.
        found: What the measurements say in the form that was asked for.
        measured: As from `experiments`: what was done for each class.

    Raises:
        ValueError: There is no fit, or the measured lengths do not tell the form's coefficients apart.
    """
    if found.fit is None:
        raise ValueError("there is no fit yet")
    other = fit(found.rows, form)
    missed = leave_one_out(found.rows, form)
    # A row weighs as much as the traffic that it stands for costs.
    total = math.fsum(row.weight for row in found.rows)
    hold_out = math.fsum(abs(error) * row.weight for error, row in zip(missed, found.rows, strict=True)) / total
    classes = {}
    for each in found.classes:
        done = [_work(load) for load in measured if load.traffic_class == each.name]
        if done:
            dearer = math.fsum(map(other.predict, done)) / math.fsum(map(found.fit.predict, done))
            classes[each.name] = (1.0 + each.error) * dearer - 1.0
    return FormErrors(hold_out, classes)


def _work(measured: Experiment) -> Row:
    """What was done in a window. Products of lengths are not counted; they are to contexts as in the mix."""
    pairs, result = measured.load.lengths, measured.result
    products = math.fsum(made * read for read, made in pairs)
    contexts = math.fsum(made * (read + made / 2) for read, made in pairs)
    return Row(
        input_tokens=result.input_tokens,
        input_squares=result.input_squares,
        output_tokens=result.output_tokens,
        context_tokens=result.context_tokens,
        product_tokens=result.context_tokens * products / contexts,
        replica_s=1.0,
    )
