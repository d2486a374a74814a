"""Runs a scenario: `python -m simulation simulation/scenarios/steady_chat.toml --report report.html`."""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fairlead.errors import FairleadError
from simulation.arrivals import Workloads
from simulation.fleet import Simulation
from simulation.report import render
from simulation.result import Result, Summary
from simulation.scenario import Scenario, overridden, read_scenario

_REPLICAS_SHOWN = 16
_NOTES_SHOWN = 12

# What the command that passes its arguments on puts in the program's place.
_COMMAND = "fairlead simulate"

# Most objects of a simulation live long, and hardly any are in cycles: looking for garbage often only costs time.
_GC_THRESHOLDS = (200_000, 50, 100)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenario", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--seed", type=int, help="Instead of the scenario's.")
@click.option("--duration-s", type=float, help="Instead of the scenario's, seconds.")
@click.option(
    "--traces",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the trace files it names.",
)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML report here.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def main(
    scenario: Path,
    seed: int | None,
    duration_s: float | None,
    traces: Path | None,
    report: Path | None,
    output: str,
    quiet: bool,
) -> None:
    """Runs SCENARIO in virtual time and prints what came out."""
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        wanted = _overridden(read_scenario(scenario), seed, duration_s)
        simulation = Simulation(wanted, Workloads(traces))
    except FairleadError as error:
        raise click.ClickException(error.message) from None
    began_s = time.perf_counter()
    result = _run(simulation, shown=not quiet and sys.stderr.isatty())
    wall_s = time.perf_counter() - began_s
    if report is not None:
        try:
            report.write_text(render(result, wall_s), encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"cannot write {report}: {error.strerror}") from None
    if output == "json":
        click.echo(json.dumps({**result.as_json(), "wall_s": wall_s}, indent=2))
    else:
        _print(result, wall_s)


def _overridden(scenario: Scenario, seed: int | None, duration_s: float | None) -> Scenario:
    given = {"seed": seed, "duration_s": duration_s}
    return overridden(scenario, {name: value for name, value in given.items() if value is not None})


def _run(simulation: Simulation, *, shown: bool) -> Result:
    if not shown:
        return simulation.run()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[simulated]}  {task.fields[requests]:,} requests  {task.fields[speed]}"),
        TimeElapsedColumn(),
    )
    settings = simulation.scenario.settings
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(settings.name, total=settings.duration_s, simulated="", requests=0, speed="")
        began_s = time.perf_counter()

        def show(simulated_s: float) -> None:
            speed = max(0.0, simulated_s) / max(1e-9, time.perf_counter() - began_s)
            bar.update(
                task,
                completed=min(max(0.0, simulated_s), settings.duration_s),
                simulated=f"{max(0.0, simulated_s):,.0f} s",
                requests=simulation.requests,
                speed=f"{speed:,.1f} x real time",
            )

        return simulation.run(show)


def _print(result: Result, wall_s: float) -> None:
    console = Console(width=None if sys.stdout.isatty() else 180)
    table = Table(title=result.scenario.settings.name, title_justify="left")
    names = ("tenant", "received", "admitted", "refused", "completed", "failed", "cancelled", "TTFT p50/p95/p99 s")
    for name in (*names, "TPOT p50/p95/p99 ms", "MU", "of quota", "cached"):
        table.add_column(name, justify="left" if name == "tenant" else "right")
    for summary in result.summaries():
        table.add_row(*_cells(summary))
    console.print(table)
    for note in result.notes[:_NOTES_SHOWN]:
        console.print(f"  * {note}", style="dim", markup=False, highlight=False)
    if len(result.notes) > _NOTES_SHOWN:
        console.print(
            f"  ... and {len(result.notes) - _NOTES_SHOWN} notes more, in the report and in JSON", style="dim"
        )
    replicas = Table(title="replicas", title_justify="left")
    for name in ("replica", "utilization", "requests", "preemptions", "lived s"):
        replicas.add_column(name, justify="left" if name == "replica" else "right")
    shown = sorted(result.tracks, key=lambda track: -track.served_milli_mu)
    for track in shown[:_REPLICAS_SHOWN]:
        utilization = _percent(result.utilization(track))
        replicas.add_row(
            track.replica_id, utilization, f"{track.requests:,}", f"{track.preemptions:,}", f"{track.lived_s:,.0f}"
        )
    console.print(replicas)
    if len(shown) > _REPLICAS_SHOWN:
        console.print(f"... and {len(shown) - _REPLICAS_SHOWN} replicas that served less")
    _print_sharding(console, result)
    simulated_s = result.end_s - result.start_s
    console.print(
        f"{result.requests:,} requests in {simulated_s:,.0f} simulated seconds took {wall_s:,.1f} s: "
        f"{result.requests * 60 / wall_s:,.0f} requests per minute, {simulated_s / wall_s:,.1f} x real time"
    )


def _print_sharding(console: Console, result: Result) -> None:
    view = result.sharding()
    shares = sorted(view.footprints.values())
    if not shares:
        return
    churn = view.churn()
    console.print(
        f"max/mean utilization: median {_number(view.worst(0.5), 2)}, p99 {_number(view.worst(0.99), 2)}; "
        f"a tenant met {_percent(shares[len(shares) // 2])} of the replicas in the median, "
        f"{_percent(shares[-1])} at most; misrouted: {100 * view.misrouted_share:.3f} %",
        highlight=False,
    )
    console.print(
        f"{len(churn)} new assignments moved {_percent(sum(churn))} of the load in all, "
        f"{_percent(max(churn, default=0.0))} at most at once; refused for their deadline: {result.too_late:,}",
        highlight=False,
    )


def _cells(summary: Summary) -> list[str]:
    ttft, tpot = summary.ttft, summary.tpot
    return [
        summary.name,
        f"{summary.received:,}",
        f"{summary.admitted:,}",
        _reasons(summary.refused),
        f"{summary.completed:,}",
        _reasons(summary.failed),
        f"{summary.cancelled:,}",
        " / ".join(_number(value, 3) for value in (ttft.p50_s, ttft.p95_s, ttft.p99_s)),
        " / ".join(_number(1_000 * value, 1) for value in (tpot.p50_s, tpot.p95_s, tpot.p99_s)),
        f"{summary.settled_mu:,.1f}",
        _percent(summary.quota_used),
        _percent(summary.cached_share),
    ]


def _reasons(counts: Mapping[str, int]) -> str:
    return "\n".join(f"{count:,} {reason.lower()}" for reason, count in counts.items()) or "0"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"


if __name__ == "__main__":
    main(prog_name=_COMMAND if sys.argv[0] == _COMMAND else None)
