"""bench-units: does a model unit tell the truth?

Every engine configuration in TRACES/engine_step_times.csv.gz (else in the file that ships) becomes a simulated replica,
is calibrated by the core that calibrates live ones, and its profile is held against what the replica sustains:

    hold-out     pairs of lengths drawn from every trace, one by one: cost-weighted mean error. The fit has seen none
    class        the pairs of one trace together: the error of the capacity predicted for it
    additivity   the pairs of a trace, of two traces, and of all at random in one load: predicted against simulated

The seed article's form, a*I + b*O + g*I*O, is fitted to the same measurements and printed beside it. And on every trace
with arrival times: what is reserved at admission per minute, against what it came to cost.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress

from benchmarks.capacity import KV_SHARE_MAX, sustained_requests_per_s
from benchmarks.lengths import evaluate
from benchmarks.report import Bar, Report
from engines.simulated.fit import fit_hardware
from engines.simulated.hardware import LLAMA_3_1_CONTEXT_TOKENS, Hardware
from engines.simulated.kernel_points import SHIPPED_POINTS, KernelPoint, read_kernel_points
from engines.simulated.work import SchedulerLimits
from fairlead.errors import FairleadError
from fairlead.replay import read_trace
from fairlead.replay.traces import DEFAULT_TRACE
from model_units.cost import CostForm
from model_units.fit import Fit, Row, fit, weighted_error
from model_units.profiles import built_in_profiles
from simulation.calibrate import calibrate
from simulation.traces import Kind, open_workload, recognise, recognise_folder

PAIRS_PER_TRACE: Final = 32
_SEED: Final = 20
_LIMITS: Final = SchedulerLimits()
_HARDWARE: Final = "h100"
STEP_TIMES: Final = "engine_step_times.csv.gz"

Pairs = tuple[tuple[int, int], ...]


def main() -> None:
    """Measures and publishes."""
    console = Console()
    folder = os.environ.get("TRACES", "")
    timed, lengths_only, points = _files(Path(folder) if folder else None)
    report = Report("units")
    classes = {_short(path): _sample(path) for path in (*timed, *lengths_only)}
    configs = read_kernel_points(points)
    console.print(f"step times: {points.name}; lengths: {', '.join(classes)}")
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(configs) * len(classes) * 2)
        for number, (config, kernel_points) in enumerate(configs.items()):
            progress.update(task, description=config, completed=2 * number * len(classes))
            try:
                _configuration(report, config, kernel_points, classes, lambda: progress.advance(task))
            except (FairleadError, ValueError) as error:  # one configuration that cannot be judged spoils no other
                console.print(f"[red]{config}: {error}[/]")
                report.add(f"{config}.hold_out_error_percent", math.nan, Bar(5.0))
    for path in timed:
        _reservations(report, path)
    report.publish(console)


def _configuration(
    report: Report,
    config: str,
    points: Sequence[KernelPoint],
    classes: Mapping[str, Pairs],
    advance: Callable[[], None],
) -> None:
    fitted = fit_hardware(config, points)
    report.add(f"{config}.decode_step_error_percent", 100 * fitted.decode_error, Bar(4.0))
    report.add(f"{config}.prefill_step_error_percent", 100 * fitted.prefill_error, Bar(5.0))
    outcome = calibrate(fitted.hardware, _LIMITS)
    report.add(f"{config}.tpot_objective_ms", outcome.objective.tpot_ms)
    if outcome.fit is None or outcome.evidence is None:
        raise ValueError("; ".join(outcome.objections))
    report.add(f"{config}.calibration_engine_minutes", outcome.evidence.engine_s / 60.0, Bar(15.0))
    report.add(f"{config}.own_hold_out_error_percent", 100 * outcome.evidence.hold_out_error)
    tpot_ms = outcome.objective.tpot_ms
    rows: dict[str, list[Row]] = {}
    room = min(LLAMA_3_1_CONTEXT_TOKENS, int(KV_SHARE_MAX * fitted.hardware.kv_capacity_tokens))
    fitting = {name: tuple(pair for pair in pairs if sum(pair) <= room) for name, pairs in classes.items()}
    fitting = {name: pairs for name, pairs in fitting.items() if pairs}
    for name, pairs in fitting.items():
        rows[name] = [_true_row(fitted.hardware, pair, tpot_ms) for pair in pairs]
        advance()
    every = [row for of_class in rows.values() for row in of_class]
    product = fit(outcome.rows, CostForm.PRODUCT)
    report.add(f"{config}.hold_out_error_percent", 100 * weighted_error(every, outcome.fit.predict), Bar(5.0))
    report.add(f"{config}.product_form_hold_out_error_percent", 100 * weighted_error(every, product.predict))
    worst = max((abs(_class_error(outcome.fit, of_class)) for of_class in rows.values()), default=0.0)
    for name, of_class in rows.items():
        report.add(f"{config}.class_error_percent.{name}", 100 * _class_error(outcome.fit, of_class))
    report.add(f"{config}.worst_class_error_percent", 100 * worst, Bar(5.0))
    worst_product = max((abs(_class_error(product, of_class)) for of_class in rows.values()), default=0.0)
    report.add(f"{config}.product_form_worst_class_error_percent", 100 * worst_product)
    worst_mix = worst_across = 0.0
    for name, pairs in _mixes(fitting):
        error = _mix_error(outcome.fit, fitted.hardware, pairs, tpot_ms)
        report.add(f"{config}.additivity_error_percent.{name}", 100 * error)
        worst_mix = max(worst_mix, abs(error))
        worst_across = max(worst_across, 0.0 if name in classes else abs(error))
        advance()
    report.add(f"{config}.worst_additivity_error_percent", 100 * worst_mix, Bar(5.0))
    report.add(f"{config}.worst_additivity_error_across_traces_percent", 100 * worst_across)


def _true_row(hardware: Hardware, pair: tuple[int, int], tpot_ms: float) -> Row:
    rate = sustained_requests_per_s(hardware, [pair], tpot_objective_ms=tpot_ms, limits=_LIMITS)
    return Row.of_request(*pair, 1.0 / rate)


def _class_error(found: Fit, rows: Sequence[Row]) -> float:
    """Predicted over true cost of all requests of a class, minus 1."""
    return sum(found.predict(row) for row in rows) / sum(row.replica_s for row in rows) - 1.0


def _mix_error(found: Fit, hardware: Hardware, pairs: Pairs, tpot_ms: float) -> float:
    """Predicted over simulated cost of a mix of requests, minus 1."""
    rate = sustained_requests_per_s(hardware, pairs, tpot_objective_ms=tpot_ms, limits=_LIMITS)
    predicted = sum(found.predict(Row.of_request(*pair, 1.0)) for pair in pairs) / len(pairs)
    return predicted * rate - 1.0


def _mixes(classes: Mapping[str, Pairs]) -> list[tuple[str, Pairs]]:
    """Every class by itself, neighbours two by two, and all."""
    mixes = list(classes.items())
    for (first, some), (second, more) in itertools.pairwise(classes.items()):
        mixes.append((f"{first}+{second}", some + more))
    if len(classes) > 2:
        mixes.append(("all", tuple(itertools.chain.from_iterable(classes.values()))))
    return mixes


def _sample(path: Path) -> Pairs:
    """Pairs of lengths drawn from a trace, those a context takes."""
    workload = open_workload(path, seed=_SEED, requests_per_s=None if _timed(path) else 1.0)
    pairs = [(request.input_tokens, request.output_tokens) for request in workload.requests]
    fitting = [pair for pair in pairs if sum(pair) <= LLAMA_3_1_CONTEXT_TOKENS]
    return tuple(random.Random(_SEED).sample(fitting, min(PAIRS_PER_TRACE, len(fitting))))


def _reservations(report: Report, path: Path) -> None:
    found = evaluate(read_trace(path).requests, built_in_profiles().default_for(_HARDWARE))
    name = _short(path)
    report.add(f"{name}.reserved_error_percent", 100 * found["estimate_error"], Bar(10.0))
    report.add(f"{name}.reserved_error_by_max_tokens_percent", 100 * found["max_tokens_error"])
    report.add(f"{name}.reserved_error_by_input_only_percent", 100 * found["input_only_error"])


def _files(folder: Path | None) -> tuple[list[Path], list[Path], Path]:
    """Traces with times, lengths without, and the engines' step times; what ships where a folder has none."""
    found = recognise_folder(folder) if folder else ()
    timed = [each.path for each in found if each.kind in (Kind.REQUESTS, Kind.PREFIXED_REQUESTS)]
    lengths_only = [each.path for each in found if each.kind is Kind.LENGTHS]
    steps = folder / STEP_TIMES if folder else SHIPPED_POINTS
    if not timed and not lengths_only:
        timed = [Path(str(resources.files("fairlead") / "data" / DEFAULT_TRACE))]
    return timed, lengths_only, steps if steps.exists() else SHIPPED_POINTS


def _timed(path: Path) -> bool:
    return recognise(path) is not Kind.LENGTHS


def _short(path: Path) -> str:
    """A file's name without what says how it is packed."""
    return path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".jsonl")


if __name__ == "__main__":
    main()
