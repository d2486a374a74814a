"""bench-quota: does the quota hold, is all of it usable, how fast does it follow, and what do other rules do?

Live: real etcd, rate limiter, allocator, control plane and three router processes, simulated engines behind real
agents; then the cores by themselves: isolation in the simulator, the router's decision, the allocator's round. Every
bar that is missed is reported as missed; nothing stops at one.

    make bench-quota [TRACES=DIR]
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.quota import bars, cores, follow, neighbours, rivals, steady
from benchmarks.quota.bench import TENANTS, Bench
from benchmarks.quota.remote import client
from benchmarks.quota.site import MODEL, site
from benchmarks.report import Bar, Report

LIVE: Final[Mapping[str, Callable[[Bench], Awaitable[None]]]] = {
    "capacity": follow.capacity,
    "steady": steady.measure,
    "neighbours": neighbours.measure,
    "owners": follow.owners,
    "books": steady.close_books,
    "rivals": rivals.measure,
}
"""Phases on the live set-up, in order."""
_PHASE_S_MAX: Final = 400.0
"""Well over what the longest takes: one that hangs must not keep the others from being measured."""


async def _live(wanted: Sequence[str], report: Report, console: Console, progress: Progress) -> None:
    """The phases that run on the live set-up, whatever becomes of those before."""
    task = progress.add_task("starting", total=None)
    async with site((*TENANTS, *follow.OWNERS)) as running:
        await running.start_routers()
        async with client(running.keys, MODEL.model_id, running.log_dir / "client.log") as tenants:
            progress.remove_task(task)
            bench = Bench(running, tenants, report, console, progress)
            for name in wanted:
                try:
                    async with asyncio.timeout(_PHASE_S_MAX):
                        await LIVE[name](bench)
                except Exception:  # noqa: BLE001  # what a phase could not measure must not hide what the others do
                    _failed(report, console)
                    await bench.recover((*TENANTS, *follow.OWNERS))


def _failed(report: Report, console: Console) -> None:
    """Says why a phase could not be measured, and counts it."""
    console.print(f"[red]{escape(traceback.format_exc())}[/]")
    report.add("phases_failed", report.metrics.get("phases_failed", 0.0) + 1, Bar(0.0))


def main() -> None:
    """Measures what is named on the command line (everything when nothing is), prints and writes the report."""
    known = (*LIVE, *cores.CORES)
    wanted = sys.argv[1:] or known
    if unknown := set(wanted) - set(known):
        sys.exit(f"{', '.join(sorted(unknown))}: unknown; known: {', '.join(known)}")
    console = Console() if sys.stdout.isatty() else Console(width=140)
    report, start_s = Report("quota"), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Ended from outside it still says what it knows.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            _measure(wanted, report, console, progress)
    except KeyboardInterrupt:
        sys.exit("interrupted: what had been measured is in the report, and what had not counts as missed")
    finally:
        bars.miss(report, (name for name in known if name in wanted))
        report.add("wall_s", time.monotonic() - start_s)
        console.print(f"written to {report.publish(console)}")


def _measure(wanted: Sequence[str], report: Report, console: Console, progress: Progress) -> None:
    """Every phase that is wanted."""
    live = [name for name in LIVE if name in wanted]
    if live:
        try:
            asyncio.run(_live(live, report, console, progress))
        except Exception:  # noqa: BLE001  # what has been measured is reported whatever happens to the rest
            _failed(report, console)
    for name in (name for name in cores.CORES if name in wanted):
        task = progress.add_task(name, total=None)
        try:
            cores.measure(name, report, console)
        except Exception:  # noqa: BLE001  # as above
            _failed(report, console)
        progress.remove_task(task)


if __name__ == "__main__":
    main()
