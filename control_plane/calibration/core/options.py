"""What may be asked of a calibration, and what it means where nothing was said."""

from __future__ import annotations

import math
from typing import Final

from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.errors import InvalidArgumentError
from model_units.wire import form_from_proto, form_to_proto

BUDGET_S: Final = 900.0
"""Replica time where none was set: the quarter of an hour a full calibration fits into."""

BUDGET_MIN_S: Final = 300.0
"""In less, no calibration reaches all traffic classes, so none could be published. Measured: a fast replica (a
simulated H100) takes 460 s of a budget of 500 s, and is not tested on all classes in 400 s."""
BUDGET_MAX_S: Final = 4 * 3_600.0

ERROR_MAX: Final = 0.05
"""Worst hold-out error that is published by itself; a traffic class may be 1 % beyond it (MIX_NOISE)."""

SEED: Final = 1
SEED_MAX: Final = 1 << 63

_TPOT_MAX_MS: Final = 60_000.0
_TTFT_MAX_MS: Final = 3_600_000.0
_NS_PER_S: Final = 1_000_000_000


def filled_in(options: pb.CalibrationOptions, tpot_default_ms: float) -> pb.CalibrationOptions:
    """The options with every default filled in.

    Args:
        options: As asked for.
        tpot_default_ms: Objective of the profile in force; 0 where there is none: then the calibration chooses one
            by how fast the idle replica is.

    Raises:
        InvalidArgumentError: A value is out of its range; the message names it.
    """
    filled = pb.CalibrationOptions()
    filled.CopyFrom(options)
    if "/" in options.replica_id:
        raise _wrong("replica_id", f"{options.replica_id[:80]!r} is no id of a replica")
    filled.tpot_objective_ms = _number("tpot_objective_ms", options.tpot_objective_ms, _TPOT_MAX_MS) or tpot_default_ms
    _number("ttft_objective_ms", options.ttft_objective_ms, _TTFT_MAX_MS)
    filled.error_max = _number("error_max", options.error_max, 1.0) or ERROR_MAX
    if not options.HasField("budget"):
        filled.budget.FromNanoseconds(round(BUDGET_S * _NS_PER_S))
    elif not BUDGET_MIN_S <= budget_s(options) <= BUDGET_MAX_S:
        raise _wrong(
            "budget",
            f"{budget_s(options):g} s must be {BUDGET_MIN_S:g} to {BUDGET_MAX_S:g} s: in less, not all traffic classes"
            f" are reached and nothing is published; {BUDGET_S:g} s are usual",
        )
    filled.form = form_to_proto(form_from_proto(options.form, "options.form"))
    filled.seed = options.seed or SEED
    if filled.seed > SEED_MAX:
        raise _wrong("seed", f"{options.seed} must be at most 2^63")
    return filled


def budget_s(options: pb.CalibrationOptions) -> float:
    """Most replica time, seconds."""
    return options.budget.ToNanoseconds() / _NS_PER_S


def same_measurement(
    paused: pb.CalibrationOptions, wanted: pb.CalibrationOptions, asked: pb.CalibrationOptions
) -> bool:
    """Whether what a paused calibration has measured serves another one.

    Args:
        paused: The paused one's options.
        wanted: The new one's, filled in.
        asked: The new one's as they came: a seed nobody set is no other seed.
    """
    objective = (paused.tpot_objective_ms, paused.ttft_objective_ms, paused.form)
    same_seed = asked.seed in (0, paused.seed)
    return same_seed and objective == (wanted.tpot_objective_ms, wanted.ttft_objective_ms, wanted.form)


def resumed(
    paused: pb.CalibrationOptions, wanted: pb.CalibrationOptions, asked: pb.CalibrationOptions
) -> pb.CalibrationOptions:
    """The options a paused calibration goes on with: what was asked now, else what was asked then."""
    options = pb.CalibrationOptions()
    options.CopyFrom(wanted)
    options.seed = paused.seed
    if not asked.HasField("budget"):
        options.budget.CopyFrom(paused.budget)
    if not asked.error_max:
        options.error_max = paused.error_max
    return options


def _number(name: str, value: float, most: float) -> float:
    if not math.isfinite(value) or not 0.0 <= value <= most:
        raise _wrong(name, f"{value:g} must be 0 to {most:g}; 0 means the default")
    return value


def _wrong(name: str, text: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"options.{name} {text}", field=f"options.{name}")
