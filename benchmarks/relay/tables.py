"""What the rounds found, for people: one table per scenario; and every run, for machines."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.relay.rounds import OURS, Results
from benchmarks.relay.scenarios import Sample, Scenario


def show(results: Results, scenarios: Sequence[Scenario], console: Console) -> None:
    """Prints a table per scenario that ran."""
    for scenario in scenarios:
        targets = [target for name, target in results.samples if name == scenario.name]
        if not targets:
            continue
        unit = "token" if scenario.per_token else "request"
        title = f"{scenario.name}: CPU time per {unit}, median (least to greatest) of rounds"
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for column in (
            "us",
            "scaled us",
            "ours over it",
            "busy",
            "tokens/s",
            "TTFT p50 / p99 ms",
            "PSS MB",
            "engine late ms",
            "failed",
        ):
            table.add_column(column, justify="right")
        for target in targets:
            table.add_row(target, *_row(results, scenario.name, target))
        console.print(table)


def _row(results: Results, scenario: str, target: str) -> list[str]:
    def median(digits: int, name: str, scale: float = 1.0) -> str:
        found = results.median(scenario, target, lambda each: scale * float(getattr(each, name)))
        return "-" if math.isnan(found) else f"{found:,.{digits}f}"

    ratio = results.ratio(scenario, target) if target != OURS else math.nan
    runs = results.samples[scenario, target]
    return [
        _spread(results.of(scenario, target, Sample.raw)),
        _spread(results.of(scenario, target, Sample.scaled)),
        "" if math.isnan(ratio) else f"{ratio:.3f}",
        f"{median(0, 'busy', 100)} %",
        median(0, "tokens_per_s"),
        f"{median(2, 'ttft_ms_p50')} / {median(2, 'ttft_ms_p99')}",
        median(1, "memory_kb", 1 / 1024),
        median(1, "engine_late_ms"),
        str(sum(each is None or each.failed for each in runs)),
    ]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):,.1f} ({min(values):,.1f}-{max(values):,.1f})"


def write_runs(results: Results, path: Path) -> None:
    """Writes every run as JSON, in the order of rounds."""
    runs = [
        {"scenario": scenario, "target": target, "runs": [each and dataclasses.asdict(each) for each in samples]}
        for (scenario, target), samples in results.samples.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(runs, indent=1) + "\n")
