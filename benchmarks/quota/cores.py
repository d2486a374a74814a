"""The cores by themselves: isolation in the simulator, the router's decision, the allocator's round."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console

from benchmarks.quota import bars
from benchmarks.report import Report

CORES: Final = ("isolation", "decision", "allocator")
"""Modules beside this one; `measure()` of each returns its metrics by name, and may take a console for tables."""

# Three pulses in each of three seeds; less than the simulation runs by itself, for this benchmark has twelve minutes.
_SIMULATED_S: Final = 135.0


def measure(name: str, report: Report, console: Console) -> None:
    """Measures one core and adds what it found.

    Args:
        name: One of CORES.
        report: Where results go.
        console: Where its tables go.
    """
    work: Any = importlib.import_module(f"benchmarks.quota.{name}").measure
    offered = {"console": console, "duration_s": _SIMULATED_S}
    taken = {name: value for name, value in offered.items() if name in inspect.signature(work).parameters}
    found: Mapping[str, float] = work(**taken)
    for metric, value in found.items():
        bars.add(report, metric, value)
