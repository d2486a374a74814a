"""Calibrates simulated replicas in virtual time: the profiles that ship for hardware nobody has at hand.

    python -m simulation.calibrate              a table, for every simulated hardware
    python -m simulation.calibrate --write      and the profiles of `model_units/profiles`, each as its next version

The core is the one that calibrates live replicas; a minute of a replica's time takes milliseconds here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from engines.simulated.hardware import HARDWARE, LLAMA_3_1_CONTEXT_TOKENS, Hardware
from engines.simulated.rehearsal import rehearse
from engines.simulated.work import SchedulerLimits
from model_units.calibration.calibrator import Calibrator, EngineLimits
from model_units.calibration.outcome import Outcome
from model_units.calibration.search import Objective
from model_units.cost import CostProfile
from model_units.profiles import built_in_profiles, render_profile

PROFILES = Path(__file__).resolve().parent.parent / "model_units" / "profiles"
_SIGNIFICANT_DIGITS = 5


def calibrate(hardware: Hardware, limits: SchedulerLimits | None = None) -> Outcome:
    """Calibrates one simulated replica at the default objective.

    Args:
        hardware: Its step times and KV capacity.
        limits: Its scheduler.
    """
    limits = limits or SchedulerLimits()
    engine = EngineLimits(limits.sequences_max, hardware.kv_capacity_tokens, LLAMA_3_1_CONTEXT_TOKENS)
    calibrator = Calibrator(engine, Objective(0.0))
    while (load := calibrator.next()) is not None:
        calibrator.record(rehearse(hardware, load, limits))
    return calibrator.outcome()


def profile_of(hardware: Hardware, outcome: Outcome, version: int) -> CostProfile:
    """The profile of a simulated replica.

    Args:
        hardware: What was calibrated.
        outcome: With a fit.
        version: The profile's.

    Raises:
        ValueError: There is no fit, or it must not be published; the message says why.
    """
    if outcome.fit is None or outcome.evidence is None or not outcome.acceptable:
        raise ValueError(f"{hardware.label}: {'; '.join(outcome.objections)}")
    a, b, d, g = (_rounded(value) for value in outcome.fit.coefficients)
    evidence = outcome.evidence
    return CostProfile(
        profile_id=f"{hardware.model}/{hardware.label}/{version}",
        model=hardware.model,
        hardware=hardware.label,
        engine="simulated, on the step times of measured vLLM kernels",
        version=version,
        tpot_objective_ms=outcome.objective.tpot_ms,
        a=a,
        b=b,
        d=d,
        g=g,
        form=outcome.fit.form,
        provenance=(
            f"Calibration of a simulated {hardware.label} in virtual time (python -m simulation.calibrate): "
            f"{evidence.points} lengths, {evidence.engine_s / 60:.0f} minutes of its time, hold-out error "
            f"{evidence.hold_out_error:.1%}. Step times: vLLM kernels measured by NVIDIA AIConfigurator (Apache-2.0)."
        ),
        evidence=evidence,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrates all, or those named."""
    parser = argparse.ArgumentParser(prog="python -m simulation.calibrate", description=main.__doc__)
    parser.add_argument("labels", nargs="*", metavar="HARDWARE", help=f"of {', '.join(HARDWARE)}; all by default")
    parser.add_argument("--write", action="store_true", help="write the profiles that ship, as the next versions")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.labels) - set(HARDWARE))
    if unknown:
        parser.error(f"no simulated hardware {', '.join(unknown)}; known: {', '.join(HARDWARE)}")
    table = Table("hardware", "TPOT ms", "a", "b", "d", "g", "hold-out", "worst class", "minutes", "objections")
    failed = False
    for label in options.labels or HARDWARE:
        hardware = HARDWARE[label]
        outcome = calibrate(hardware)
        table.add_row(label, *_cells(outcome))
        failed = failed or not outcome.acceptable
        if options.write and outcome.acceptable:
            profile = profile_of(hardware, outcome, built_in_profiles().next_version(hardware.model, label))
            (PROFILES / f"{profile.profile_id.replace('/', '_')}.json").write_text(render_profile(profile))
    Console().print(table)
    return int(failed)


def _cells(outcome: Outcome) -> list[str]:
    if outcome.fit is None or outcome.evidence is None:
        return [*[""] * 8, "; ".join(outcome.objections)]
    evidence = outcome.evidence
    return [
        f"{outcome.objective.tpot_ms:g}",
        *(f"{value:.4g}" for value in outcome.fit.coefficients),
        f"{evidence.hold_out_error:.1%}",
        f"{max((abs(error) for error in evidence.class_errors.values()), default=0):.1%}",
        f"{evidence.engine_s / 60:.1f}",
        "; ".join(outcome.objections),
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


if __name__ == "__main__":
    raise SystemExit(main())
