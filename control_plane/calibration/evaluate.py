"""What a stored calibration's measurements come to, in the form it fits and in the other one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control_plane.calibration.core import record
from fairlead.admin.v1 import calibration_pb2 as pb
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.calibration.outcome import Outcome
from model_units.cost import CostForm
from model_units.fit import leave_one_out


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
    return [Experiment(*each) for each in record.experiments(calibration)]


def curves(measured: Sequence[Experiment]) -> list[Curve]:
    """The loads by what they were put on, without those that only see how fast an idle replica is.

    Args:
        measured: As from `experiments`; the first load, and repetitions of it, are those of an idle replica.
    """
    groups: dict[tuple[str, tuple[tuple[int, int], ...]], list[Experiment]] = {}
    for each in measured:
        groups.setdefault((each.traffic_class, each.load.lengths), []).append(each)
    found = []
    for (name, lengths), tried in groups.items():
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
    calibrator = record.calibrator(calibration)
    calibrator.restore([(each.load, each.result) for each in measured])
    return calibrator.outcome()


def own_errors(found: Outcome) -> FormErrors:
    """Errors in the form that was fitted."""
    hold_out = found.evidence.hold_out_error if found.evidence is not None else None
    return FormErrors(hold_out, {each.name: each.error for each in found.classes})


def errors_in(form: CostForm, found: Outcome) -> FormErrors:
    """Errors that another form makes on the same measurements.

    Args:
        form: The form.
        found: What the measurements say in the form that was asked for.

    Raises:
        ValueError: There is no fit, or the measured lengths do not tell the form's coefficients apart.
    """
    if found.fit is None:
        raise ValueError("there is no fit yet")
    missed = leave_one_out(found.rows, form)
    count = len(found.points)
    # A point weighs as much as the traffic that it stands for costs.
    weighed = [(abs(error), row.weight) for error, row in zip(missed[:count], found.rows[:count], strict=True)]
    hold_out = math.fsum(error * weight for error, weight in weighed) / math.fsum(weight for _, weight in weighed)
    classes = {each.name: error for each, error in zip(found.classes, missed[count:], strict=True)}
    return FormErrors(hold_out, classes)
