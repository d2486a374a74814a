"""A router that decides with the wall clock."""

from __future__ import annotations

import time

from common.clock import MonotonicNs, SystemClock
from tests.faults import mutants

if __name__ == "__main__":
    SystemClock.monotonic_ns = lambda self: MonotonicNs(time.time_ns())  # type: ignore[method-assign]
    mutants.run("data_plane.router")
