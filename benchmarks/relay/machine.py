"""What the machine says: CPU time and memory of process trees, how fast its cores are just now, what the host took."""

from __future__ import annotations

import os
import sys
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from deploy import bootstrap

LOAD_CORE: Final = 0
"""Where load, engines and everything else run."""
ROUTER_CORE: Final = 1
"""Where what is measured runs, alone."""
_OPTIMIZED: Final = bootstrap.optimized(sys.base_prefix, sysconfig.get_config_var("CONFIG_ARGS") or "")
REFERENCE_STEP_US: Final = 0.034 if _OPTIMIZED else 0.05
"""What a step of the reference loop takes on the core that bars in microseconds are meant for: CPython 3.11 on some
3.5 GHz. An assumption, not a measurement of this run. On one core a Python compiled with optimizations takes .0294
and one without .0436, medians of six runs in turn: a faster Python is no faster core."""

_STEPS: Final = 1_000_000
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_STEAL: Final = 8


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    try:
        children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return found
    for each in children:
        for child in each:
            found += tree(int(child))
    return found


def memory_kb(pids: Iterable[int]) -> float:
    """Proportional set size of processes, kB: shared pages count once over all that share them."""
    total = 0.0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(float(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def step_us(core: int = ROUTER_CORE) -> float:
    """CPU time of one step of a fixed loop of plain Python on a core now, microseconds: how slow it is."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core} & before or before)
    try:
        value, began_s = 0, time.thread_time()
        for step in range(_STEPS):
            value += step
        return (time.thread_time() - began_s) / _STEPS * 1e6
    finally:
        os.sched_setaffinity(0, before)


class Stolen:
    """Share of a core's time that the host gave to others, from now on."""

    def __init__(self, core: int = ROUTER_CORE) -> None:
        self._core = core
        self._before_s, self._began_s = self._read_s(), time.monotonic()

    def share(self) -> float:
        """Since this was made, 0 to 1."""
        passed_s = max(1e-9, time.monotonic() - self._began_s)
        return (self._read_s() - self._before_s) / passed_s

    def _read_s(self) -> float:
        for line in Path("/proc/stat").read_text().splitlines():
            fields = line.split()
            if fields[0] == f"cpu{self._core}":
                return int(fields[_STEAL]) / _TICKS_PER_S
        return 0.0
