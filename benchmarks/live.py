"""bench-live: three minutes of recorded traffic through the whole platform, on real Triton and on simulated replicas.

What is measured: how much succeeded, how long it took, and whether the books close on both sides: every request the
clients sent was received, every request received ended in exactly one outcome, and the routers charged exactly what the
clients were told. A second, shorter phase runs with one tenant's quota cut, so that refusals are counted too, and a
third walks away from streams.

    make bench-live [TRACES=DIR] [DURATION_S=180]
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.platform import LivePlatform, platform
from benchmarks.report import Bar, Report
from benchmarks.traces import merged, request_traces
from fairlead import AsyncClient
from fairlead.errors import FairleadError
from fairlead.replay import (
    ReplayOptions,
    ReplayProgress,
    ReplayReport,
    ReplayTarget,
    TraceRequest,
    footnotes,
    replay,
    report_table,
)

# (engine, replicas, most requests per second): what the whole platform, its clients and its engines can carry on two
# cores; above it the machine is measured, not the platform.
FLEETS = (("triton", 2, 4.0), ("sim", 8, 8.0))
CANCELLED_REQUESTS = 20
OVERLOAD_S = 30.0
QUOTA_IN_FORCE_S = 3.0
RECEIVED = "fairlead_router_requests_received_total"
FINISHED = "fairlead_router_requests_finished_total"
SETTLED = "fairlead_router_settled_milli_mu_total"


async def measure(engine: str, replicas: int, requests_per_s_max: float, report: Report, console: Console) -> None:
    """Replays the traces against one fleet and adds its metrics, prefixed with the engine."""
    duration_s = float(os.environ.get("DURATION_S") or "180")
    requests = merged(request_traces(duration_s), requests_per_s_max, duration_s)
    console.print(f"[bold]{engine}[/] x {replicas}: {len(requests)} requests over {duration_s:g} s")
    async with platform(engine, replicas) as live:
        result = await _phase(live, engine, requests, report, console)
        _latencies(engine, report, result)
        await _overload(live, engine, requests, result, report, console)
        before = live.scrape()
        cancelled = await _cancel_some(live)
        await _quiet(live)
        _cancellations(engine, report, cancelled, before, live.scrape())


async def _phase(
    live: LivePlatform, name: str, requests: Sequence[TraceRequest], report: Report, console: Console
) -> ReplayReport:
    """Replays requests, shows the table, and closes the books of both sides."""
    before = live.scrape()
    targets = [ReplayTarget(tenant, key, live.model) for tenant, key in live.tenants.items()]
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(f"replaying: {name}", total=len(requests))

        def show(progress: ReplayProgress) -> None:
            bars.update(task, completed=progress.due)

        result = await replay(requests, targets, ReplayOptions([live.grpc]), show)
    await _quiet(live)
    console.print(report_table(result))
    for note in footnotes(result):
        console.print(f"  {note}", style="dim")
    _books(name, report, result, before, live.scrape())
    return result


async def _overload(
    live: LivePlatform,
    engine: str,
    requests: Sequence[TraceRequest],
    result: ReplayReport,
    report: Report,
    console: Console,
) -> None:
    """Cuts one tenant's quota to a tenth of what it used and replays the beginning again: refusals are counted too."""
    tenant = result.tenants[-1]
    await live.set_quota(tenant.tenant, max(1, round(tenant.settled_milli_mu * 60 / result.wall_s / 10)))
    await asyncio.sleep(QUOTA_IN_FORCE_S)
    part = [request for request in requests if request.arrival_s < OVERLOAD_S]
    await _phase(live, f"{engine}_overload", part, report, console)


def _change(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after.get(name, 0.0) - before.get(name, 0.0)


def _books(
    engine: str, report: Report, result: ReplayReport, before: dict[str, float], after: dict[str, float]
) -> None:
    total, zero = result.total, Bar(0.0)
    received, finished = _change(before, after, RECEIVED), _change(before, after, FINISHED)
    settled_told = sum(sample.settled_milli_mu for sample in result.samples)
    report.add(f"{engine}_requests", total.received)
    report.add(f"{engine}_success_share", total.ok / max(1, total.received))
    report.add(f"{engine}_refused", sum(total.refused.values()))
    report.add(f"{engine}_failed", sum(total.failed.values()), zero)
    report.add(f"{engine}_not_sent", total.not_sent)
    report.add(f"{engine}_sent_minus_received", abs(total.received - received), zero)
    report.add(f"{engine}_received_minus_finished", abs(received - finished), zero)
    report.add(f"{engine}_client_books_difference", abs(total.difference), zero)
    report.add(f"{engine}_refused_difference", _refused_difference(total.refused, before, after), zero)
    ended = sum(_change(before, after, f"{FINISHED}:{way}") for way in ("completed", "failed", "refused", "cancelled"))
    report.add(f"{engine}_received_minus_ended", abs(received - ended), zero)
    report.add(f"{engine}_settled_milli_mu", _change(before, after, SETTLED))
    report.add(f"{engine}_settled_difference_milli_mu", abs(settled_told - _change(before, after, SETTLED)), zero)


def _refused_difference(told: dict[str, int], before: dict[str, float], after: dict[str, float]) -> float:
    """Refusals the clients saw against those the routers counted: the sum of the differences reason by reason."""
    mark = f"{FINISHED}:refused:"
    counted = {name.removeprefix(mark): _change(before, after, name) for name in after if name.startswith(mark)}
    return sum(abs(told.get(reason, 0) - counted.get(reason, 0.0)) for reason in {*told, *counted})


def _latencies(engine: str, report: Report, result: ReplayReport) -> None:
    for name, values in (("ttft", result.total.ttft), ("tpot", result.total.tpot)):
        for share in ("p50_ms", "p95_ms", "p99_ms"):
            value = getattr(values, share)
            report.add(f"{engine}_{name}_{share}", float("nan") if value is None else value)
    report.add(f"{engine}_output_tokens_per_s", result.total.output_tokens_per_s)
    report.add(f"{engine}_sending_lag_p99_ms", result.lag_p99_ms or 0.0)


async def _cancel_some(live: LivePlatform) -> int:
    """Opens streams and leaves after the first piece; returns how many were left so."""
    left = 0
    key = next(iter(live.tenants.values()))
    async with AsyncClient(live.grpc, api_key=key) as client:
        for number in range(CANCELLED_REQUESTS):
            prompt = f"A story nobody will finish, number {number}."
            try:
                async with client.stream_generate(prompt, model=live.model, max_tokens=200) as stream:
                    async for _ in stream:
                        left += 1
                        break
            except FairleadError:
                continue
    return left


async def _quiet(live: LivePlatform) -> None:
    for _ in range(100):
        if live.scrape().get("fairlead_router_requests_in_flight", 0.0) == 0:
            return
        await asyncio.sleep(0.1)


def _cancellations(
    engine: str, report: Report, cancelled: int, before: dict[str, float], after: dict[str, float]
) -> None:
    seen = _change(before, after, f"{FINISHED}:cancelled")
    report.add(f"{engine}_cancelled_by_client", cancelled)
    report.add(f"{engine}_cancelled_difference", abs(cancelled - seen), Bar(0.0))
    report.add(f"{engine}_open_holds_after", after.get("fairlead_router_open_holds", 0.0), Bar(0.0))


async def main() -> None:
    """Measures every fleet, prints and writes the report."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    report = Report("live")
    for engine, replicas, requests_per_s_max in FLEETS:
        await measure(engine, replicas, requests_per_s_max, report, console)
    console.print(f"written to {report.publish(console)}")


if __name__ == "__main__":
    asyncio.run(main())
