"""Which worker runs which file: files that wait for processes and files that only compute run beside each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

# What takes minutes, longest first; it mostly waits: for processes, leases, timeouts. All other files compute.
LONG = (
    "docker",
    "e2e",
    "faults",
    "integration/router",
    "integration/control",
    "integration/sharding",
    "integration/triton",
    "integration/engines",
    "integration",
)
NICE = 5
"""Of the worker that computes, so that the others' processes find a free core at once."""


def rank(file: Path) -> int:
    """The place of a file, relative to the folder of all tests, in the order of files."""
    return next((place for place, room in enumerate(LONG) if file.is_relative_to(room)), len(LONG))


def step_back(config: pytest.Config) -> None:
    """Lowers the priority of the worker that computes; does nothing elsewhere."""
    known = getattr(config, "workerinput", None)
    if known and known["workerid"] == _computing(known["workercount"]):
        os.nice(NICE)


class FromBothEnds(LoadFileScheduling):
    """Hands the files out in their order, to the last worker from the end of the list, until all meet.

    So the cores have something to do while the first workers wait, and the few who compete for them are known.
    """

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Gives a worker its next file."""
        if node.gateway.id == _computing(self.numnodes):
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def _computing(workers: int) -> str | None:
    """The worker that computes, where there are enough to spare one."""
    return f"gw{workers - 1}" if workers > 2 else None
