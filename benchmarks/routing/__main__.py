"""bench-routing: is the right replica chosen, do sessions stay, is the fleet even, and what does it cost?

    make bench-routing [TRACES=DIR] [PHASES=policies,stickiness,sharder,decision,live]

In the simulator, on the product's cores: `policies` (time to first token under every rule), `stickiness` (caches, and
one tenant's surge), `sharder` (evenness, moves, speed). On the clock: `decision` (CPU of one decision). With real
processes: `live`. Every bar that is missed is reported as missed; nothing stops at one.
"""

from __future__ import annotations

import importlib
import inspect
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from benchmarks.report import Bar, Report
from benchmarks.routing import bars

PHASES: Final = ("policies", "stickiness", "sharder", "decision", "live")
"""Modules beside this one, in order. `measure()` of each returns its metrics by name, and may take a console for
tables; `BARS` of a module, if it has them, are its metrics' bars."""


def wanted_phases(arguments: list[str]) -> list[str]:
    """The phases that are named, separated by commas or spaces, in the order of PHASES; all where none is.

    Raises:
        SystemExit: There is no phase of a name.
    """
    named = {name for argument in arguments for name in argument.split(",") if name}
    if unknown := named - set(PHASES):
        sys.exit(f"{', '.join(sorted(unknown))}: unknown; known: {', '.join(PHASES)}")
    return [name for name in PHASES if name in named or not named]


def main() -> None:
    """Measures what is named on the command line (everything when nothing is), prints and writes the report."""
    wanted = wanted_phases(sys.argv[1:])
    console = Console() if sys.stdout.isatty() else Console(width=180)
    report, start_s = Report("routing"), time.monotonic()
    # Ended from outside it still says what it knows.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        for name in wanted:
            began_s = time.monotonic()
            _measure(name, report, console)
            console.print(f"{name}: {time.monotonic() - began_s:.0f} s", highlight=False)
    except KeyboardInterrupt:
        sys.exit("interrupted: what had been measured is in the report, and what had not counts as missed")
    finally:
        bars.miss(report, wanted)
        report.add("wall_s", time.monotonic() - start_s)
        console.print(f"written to {report.publish(console)}")


def _measure(name: str, report: Report, console: Console) -> None:
    """One phase; one that fails must not keep the others from being measured."""
    try:
        module: Any = importlib.import_module(f"benchmarks.routing.{name}")
        takes_console = "console" in inspect.signature(module.measure).parameters
        found: Mapping[str, float] = module.measure(console) if takes_console else module.measure()
        own: Mapping[str, Bar] = getattr(module, "BARS", {})
        for metric, value in found.items():
            if metric in own:
                report.add(metric, value, own[metric])
            else:
                bars.add(report, metric, value)
    except Exception:  # noqa: BLE001  # what a phase could not measure must not hide what the others do
        console.print(f"[red]{escape(traceback.format_exc())}[/]")
        report.add("phases_failed", report.metrics.get("phases_failed", 0.0) + 1, Bar(0.0))


if __name__ == "__main__":
    main()
