"""What all routers together want, use and hold, kept up to date report by report, and when a change is worth telling.

A report costs what it says and not what everybody says: sums are moved by the difference to the router's last report,
and only workloads that were touched since the allocator was told last are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.values import Want, Workload

# A change by an eighth of the larger value is notable: an owner that comes back must not wait for its turn.
_NOTABLE_PART: Final = 8
# Whatever part of a want it is, less than a hundredth of a replica waits for its turn.
_NOTABLE_MIN_MILLI_MU_PER_MINUTE: Final = 1_000


class DemandBook:
    """Sums over the live routers."""

    def __init__(self) -> None:
        self._sums: dict[Workload, tuple[int, int, int]] = {}
        self._told: dict[Workload, int] = {}
        self._touched: set[Workload] = set()

    def replace(self, before: Mapping[Workload, Want], after: Mapping[Workload, Want]) -> None:
        """One router wants something else than before; both by workload, empty for a router that came or went."""
        for workload, want in before.items():
            if workload not in after:
                self._move(workload, -want.wants, -want.used, -want.held)
        for workload, want in after.items():
            was = before.get(workload)
            if was is None:
                self._move(workload, want.wants, want.used, want.held)
            elif was != want:
                self._move(workload, want.wants - was.wants, want.used - was.used, want.held - was.held)

    def sums(self) -> dict[Workload, Want]:
        """Everything, by workload."""
        return {
            w: Want(Rate(wants), Rate(used), MilliModelUnits(held)) for w, (wants, used, held) in self._sums.items()
        }

    def tell(self) -> dict[Workload, Want]:
        """Everything, to be told now: later changes are measured against it."""
        told = self.sums()
        self._told = {workload: want.wants for workload, want in told.items()}
        self._touched.clear()
        return told

    @property
    def notable(self) -> bool:
        """Whether any workload's wanted rate has moved notably since it was told."""
        for workload in self._touched:
            before, after = self._told.get(workload, 0), self._sums.get(workload, (0, 0, 0))[0]
            moved = abs(after - before)
            if moved >= _NOTABLE_MIN_MILLI_MU_PER_MINUTE and moved * _NOTABLE_PART > max(before, after):
                return True
        return False

    def _move(self, workload: Workload, wants: int, used: int, held: int) -> None:
        old = self._sums.get(workload, (0, 0, 0))
        new = (old[0] + wants, old[1] + used, old[2] + held)
        if any(new):
            self._sums[workload] = new
        else:
            self._sums.pop(workload, None)
        if wants:
            self._touched.add(workload)
