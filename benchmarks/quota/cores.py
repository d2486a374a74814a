"""The cores by themselves: isolation in the simulator, the router's decision, the allocator's round."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console

from benchmarks.report import Bar, Report

CORES: Final = ("isolation", "decision", "allocator")
"""Modules beside this one; `measure()` of each returns its metrics by name, and may take a console for tables."""

BARS: Final[Mapping[str, Bar]] = {
    "router_cpu_per_decision_us": Bar(20.0),
    "allocator_round_s": Bar(1.0),
    # Per tenant at 5,000 against 1,250: 1 would be linear; a sort's share and colder caches are granted.
    "allocator_cost_per_tenant_ratio": Bar(1.3),
    "isolation_product_steady_ttft_p95_ratio": Bar(1.10),
    "isolation_product_pulses_ttft_p95_ratio": Bar(1.10),
}

# Half of what the simulation runs by itself: this benchmark has twelve minutes for everything.
_SIMULATED_S: Final = 90.0


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
        report.add(metric, value, BARS.get(metric))
