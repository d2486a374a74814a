"""Makes sure that nothing outlives the launcher: agents, engines, orphans, shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from data_plane.autoscaler.local_process import LocalProcessActuator
from deploy.local.programs import Site

AGENT_GRACE_S = 12.0
"""An agent finishes requests for up to 3 s, then ends its tritonserver, which takes up to 5 s."""
_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")
_SHARED_MEMORY = Path("/dev/shm")
_POLL_S = 0.05


def adopt_orphans() -> None:
    """Asks the kernel to hand descendants whose parent died to this process instead of to init (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def reap_orphans(own: Callable[[], Collection[int]]) -> None:
    """Collects adopted processes that have ended, until cancelled.

    Args:
        own: Says which process ids somebody else waits for.
    """
    while True:
        for pid, state in children_of(os.getpid()):
            if state == "Z" and pid not in own():
                _collect(pid)
        await asyncio.sleep(1.0)


def children_of(parent: int) -> Iterator[tuple[int, str]]:
    """Process id and state of each child, where /proc tells."""
    for stat in _PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == parent:
                yield int(stat.parent.name), fields[0]


async def stop_replicas(site: Site) -> None:
    """Ends every replica agent of this run directory, also of a launcher that was killed, and clears the seats."""
    actuator = LocalProcessActuator(
        state_dir=site.seats_dir,
        log_dir=site.log_dir,
        command=lambda _model, _slot: [],
        working_dir=site.run_dir,
        stop_grace_s=AGENT_GRACE_S,
    )
    async with asyncio.TaskGroup() as tasks:
        for seat in await actuator.seats():
            if seat.alive:
                tasks.create_task(actuator.stop(seat.model_id, seat.slot))
    shutil.rmtree(site.seats_dir, ignore_errors=True)


async def sweep(grace_s: float, own: Callable[[], Collection[int]]) -> None:
    """Kills whatever descends from this process and is still there after `grace_s` seconds, and collects it.

    Args:
        grace_s: Seconds to end by itself.
        own: Says which process ids somebody else waits for.
    """

    def lives(pid: int, state: str) -> bool:
        return state != "Z" or (pid not in own() and _collect(pid))

    deadline_s = asyncio.get_running_loop().time() + grace_s
    while alive := [pid for pid, state in children_of(os.getpid()) if lives(pid, state)]:
        if asyncio.get_running_loop().time() >= deadline_s:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(_POLL_S)


def remove_shared_memory() -> None:
    """Removes Triton's shared memory of agents that are gone; usually their guards have, unless they were killed too.

    Regions are named `fairlead-{process id of the agent}-...`.
    """
    for region in _SHARED_MEMORY.glob("fairlead-[0-9]*-*"):
        if not _PROC.joinpath(region.name.split("-")[1]).exists():
            region.unlink(missing_ok=True)


def _collect(pid: int) -> bool:
    """Collects a zombie; says whether it is still there."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False
