"""The result of a benchmark: metrics, the bars they are held to, a table for people and JSON for machines."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """What a metric is held to.

    Attributes:
        bar: The limit, in the metric's unit.
        at_most: True where smaller is better, False where larger is.
    """

    bar: float
    at_most: bool = True

    def holds(self, value: float) -> bool:
        """Whether a measured value meets the bar; a value that is not a number never does."""
        return not math.isnan(value) and (value <= self.bar if self.at_most else value >= self.bar)


@dataclasses.dataclass(slots=True)
class Report:
    """Collects the metrics of one benchmark.

    Attributes:
        name: Benchmark name, as in `make bench-NAME`.
        metrics: Value by metric name; the name ends with the unit.
        bars: Bars by metric name.
    """

    name: str
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    bars: dict[str, Bar] = dataclasses.field(default_factory=dict)

    def add(self, metric: str, value: float, bar: Bar | None = None) -> None:
        """Adds one measured value, with its bar where there is one."""
        self.metrics[metric] = value
        if bar is not None:
            self.bars[metric] = bar

    def as_json(self) -> dict[str, object]:
        """The machine-readable form; a value that is not finite becomes null."""
        return {
            "name": self.name,
            "commit": _commit(),
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.metrics.items()},
            "bars": {
                name: {
                    "bar": bar.bar,
                    "at_most" if bar.at_most else "at_least": True,
                    "holds": bar.holds(self.metrics[name]),
                }
                for name, bar in self.bars.items()
            },
        }

    def publish(self, console: Console | None = None) -> Path:
        """Prints the table and writes build/bench/NAME.json.

        Returns:
            The file written.
        """
        table = Table(title=f"bench-{self.name}", title_justify="left")
        table.add_column("metric")
        table.add_column("value", justify="right")
        table.add_column("bar", justify="right")
        table.add_column("holds")
        for name, value in self.metrics.items():
            bar = self.bars.get(name)
            limit = "" if bar is None else f"{'<=' if bar.at_most else '>='} {bar.bar:g}"
            verdict = "" if bar is None else "[green]yes[/]" if bar.holds(value) else "[red]missed[/]"
            table.add_row(name, f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}", limit, verdict)
        (console or Console()).print(table)
        path = ROOT / "build" / "bench" / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_json(), indent=2) + "\n")
        return path


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
