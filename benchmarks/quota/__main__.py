"""bench-quota: does the quota hold, is all of it usable, how fast does it follow, and what do other rules do?

Live: real etcd, rate limiter, allocator, control plane and three router processes, simulated engines behind real
agents; then the cores by themselves: isolation in the simulator, the router's decision, the allocator's round. Every
bar that is missed is reported as missed; nothing stops at one.

    make bench-quota [TRACES=DIR]
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.quota import cores, follow, neighbours, rivals, steady
from benchmarks.quota.bench import TENANTS, Bench
from benchmarks.quota.remote import client
from benchmarks.quota.site import MODEL, site
from benchmarks.report import Bar, Report

_PHASES: Final = ("live", *cores.CORES)


async def _live(report: Report, console: Console, progress: Progress) -> None:
    """Everything that runs on the live set-up."""
    task = progress.add_task("starting", total=None)
    async with site((*TENANTS, *follow.OWNERS)) as running:
        await running.start_routers()
        async with client(running.keys, MODEL.model_id, running.log_dir / "client.log") as tenants:
            progress.remove_task(task)
            bench = Bench(running, tenants, report, console, progress)
            await _phases(bench)


async def _phases(bench: Bench) -> None:
    """Every phase, whatever becomes of those before it."""
    request_milli_mu = 50.0

    async def steadily() -> None:
        nonlocal request_milli_mu
        request_milli_mu = await steady.measure(bench)

    async def close_books() -> None:
        steady.close_books(bench, await bench.site.snapshots())

    phases: tuple[Callable[[], Awaitable[None]], ...] = (
        lambda: follow.capacity(bench),
        steadily,
        lambda: neighbours.measure(bench, request_milli_mu),
        lambda: follow.owners(bench),
        close_books,
        lambda: rivals.measure(bench),
    )
    for phase in phases:
        try:
            await phase()
        except Exception:  # noqa: BLE001  # what a phase could not measure must not hide what the others do
            _failed(bench.report, bench.console)
            await bench.drain((*TENANTS, *follow.OWNERS))


def _failed(report: Report, console: Console) -> None:
    """Says why a phase could not be measured, and counts it."""
    console.print(f"[red]{escape(traceback.format_exc())}[/]")
    report.add("phases_failed", report.metrics.get("phases_failed", 0.0) + 1, Bar(0.0))


def main() -> None:
    """Measures what is named on the command line (everything when nothing is), prints and writes the report."""
    wanted = sys.argv[1:] or _PHASES
    unknown = set(wanted) - set(_PHASES)
    if unknown:
        sys.exit(f"{', '.join(sorted(unknown))}: unknown; known: {', '.join(_PHASES)}")
    console = Console() if sys.stdout.isatty() else Console(width=140)
    report, start_s = Report("quota"), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for name in (name for name in _PHASES if name in wanted):
            task = progress.add_task(name, total=None)
            try:
                if name == "live":
                    asyncio.run(_live(report, console, progress))
                else:
                    cores.measure(name, report, console)
            except Exception:  # noqa: BLE001  # what has been measured is reported whatever happens to the rest
                _failed(report, console)
            progress.remove_task(task)
    report.add("wall_s", time.monotonic() - start_s)
    console.print(f"written to {report.publish(console)}")


if __name__ == "__main__":
    main()
