"""How a calibration's record changes: what is written when it begins, measures, pauses and ends."""

from __future__ import annotations

from typing import Final

from control_plane.calibration.core.choose import engine_label
from control_plane.calibration.core.options import budget_s
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.engine.v1 import engine_pb2
from model_units.calibration.calibrator import CORE_VERSION, Calibrator, EngineLimits
from model_units.calibration.load import LoadResult, LoadSpec
from model_units.calibration.outcome import Outcome, Progress
from model_units.calibration.search import Objective
from model_units.cost import CostProfile
from model_units.loads import load_from_proto, load_to_proto, measurement_from_proto, measurement_to_proto
from model_units.wire import form_from_proto, profile_to_proto

PENDING: Final = pb.CALIBRATION_STATE_PENDING
RUNNING: Final = pb.CALIBRATION_STATE_RUNNING
PAUSED: Final = pb.CALIBRATION_STATE_PAUSED
PUBLISHED: Final = pb.CALIBRATION_STATE_PUBLISHED
REFUSED: Final = pb.CALIBRATION_STATE_REFUSED
FAILED: Final = pb.CALIBRATION_STATE_FAILED

ACTIVE: Final = frozenset({PENDING, RUNNING})
"""States in which the leader has something to do."""

_STATE_NAMES: Final = {
    PENDING: "waits to begin",
    RUNNING: "is measuring",
    PAUSED: "is paused",
    PUBLISHED: "has published its profile",
    REFUSED: "was refused",
    FAILED: "has failed",
}


def in_words(calibration: pb.Calibration) -> str:
    """What a calibration is doing, as the end of a sentence that begins with its id."""
    return _STATE_NAMES[calibration.state]


def begin_on(calibration: pb.Calibration, replica: engine_pb2.Replica, epoch: int) -> None:
    """The calibration measures on this replica from now on; measurements of another core are forgotten."""
    if calibration.core_version != CORE_VERSION:
        forget(calibration)
    if not calibration.experiments:
        calibration.sequences_max = replica.sequences_max
        calibration.kv_capacity_tokens = replica.kv_capacity_tokens
        calibration.context_tokens = replica.context_tokens
    calibration.state = RUNNING
    calibration.replica_id = replica.replica_id
    calibration.hardware = replica.hardware
    calibration.engine = engine_label(replica)
    calibration.core_version = CORE_VERSION
    calibration.epoch = epoch
    calibration.detail = f"waits for the requests in flight on {replica.replica_id} to end"


def limits(calibration: pb.Calibration) -> EngineLimits:
    """Limits of the engine its loads were made for."""
    return EngineLimits(
        max(1, calibration.sequences_max), max(0, calibration.kv_capacity_tokens), max(2, calibration.context_tokens)
    )


def calibrator(calibration: pb.Calibration) -> Calibrator:
    """The core as it stands before the first load. Whoever measures and whoever draws start from the same one: only so
    do the stored loads lead to the same outcome.
    """
    options = calibration.options
    return Calibrator(
        limits(calibration),
        Objective(options.tpot_objective_ms, options.ttft_objective_ms),
        budget_s=budget_s(options),
        error_max=options.error_max,
        form=form_from_proto(options.form),
        seed=options.seed,
    )


def forget(calibration: pb.Calibration) -> None:
    """Drops everything that was measured."""
    for name in ("experiments", "profile", "engine_s", "engine_left_s", "progress"):
        calibration.ClearField(name)


def add_experiment(calibration: pb.Calibration, traffic_class: str, load: LoadSpec, result: LoadResult) -> None:
    """Notes one more load and what it came to."""
    calibration.experiments.add(
        traffic_class=traffic_class, load=load_to_proto(load), measurement=measurement_to_proto(result)
    )


def experiments(calibration: pb.Calibration) -> list[tuple[str, LoadSpec, LoadResult]]:
    """Everything that was measured, in order.

    Raises:
        InvalidArgumentError: Something stored cannot be true.
    """
    return [
        (each.traffic_class, load_from_proto(each.load), measurement_from_proto(each.measurement))
        for each in calibration.experiments
    ]


def show_progress(calibration: pb.Calibration, progress: Progress, profile: CostProfile | None) -> None:
    """Notes how far it is and the fit so far."""
    calibration.progress = progress.fraction
    calibration.engine_s = progress.engine_s
    calibration.engine_left_s = progress.engine_left_s
    calibration.detail = progress.detail
    calibration.ClearField("profile")
    if profile is not None:
        calibration.profile.CopyFrom(profile_to_proto(profile))


def end(calibration: pb.Calibration, state: pb.CalibrationState.ValueType, detail: str) -> None:
    """The calibration stops, for good or for a pause."""
    calibration.state = state
    calibration.detail = detail
    if state in (PUBLISHED, REFUSED):
        calibration.progress = 1.0
    if state != PAUSED:
        calibration.engine_left_s = 0.0


def draft(calibration: pb.Calibration, outcome: Outcome, before: CostProfile | None, day: str) -> CostProfile | None:
    """The profile that an outcome makes, not numbered yet: its version is 1.

    Args:
        calibration: What was measured and where.
        outcome: What came of it.
        before: The profile in force; images are not measured, so what they cost is taken from it.
        day: The date for its provenance, such as "2026-11-22".

    Returns:
        The profile, or None while there is no fit or the fit is none that could be charged.
    """
    if outcome.fit is None:
        return None
    a, b, d, g = outcome.fit.coefficients
    try:
        return CostProfile(
            profile_id=f"{calibration.model_id}/{calibration.hardware}/1",
            model=calibration.model_id,
            hardware=calibration.hardware,
            version=1,
            engine=calibration.engine,
            provenance=_provenance(calibration, outcome, day),
            tpot_objective_ms=outcome.objective.tpot_ms,
            ttft_objective_ms=outcome.objective.ttft_ms,
            form=outcome.fit.form,
            image_s=before.image_s if before is not None else 0.0,
            image_cpu_s=before.image_cpu_s if before is not None else 0.0,
            evidence=outcome.evidence,
            a=a,
            b=b,
            d=d,
            g=g,
        )
    except ValueError:
        return None


def _provenance(calibration: pb.Calibration, outcome: Outcome, day: str) -> str:
    points = len(outcome.points)
    error = f", {outcome.evidence.hold_out_error:.1%} off on points left out" if outcome.evidence is not None else ""
    return (
        f"Calibration {calibration.calibration_id} of {day}: {calibration.engine} on {calibration.hardware}, "
        f"replica {calibration.replica_id}, {points} points{error}."
    )
