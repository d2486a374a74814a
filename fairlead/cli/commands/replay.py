"""fairlead replay: send a recorded trace and see what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fairlead.cli.app import Invocation, pass_invocation, root
from fairlead.cli.output import Output
from fairlead.errors import InvalidArgumentError
from fairlead.replay import (
    ReplayOptions,
    ReplayProgress,
    ReplayReport,
    ReplayTarget,
    Trace,
    footnotes,
    read_trace,
    replay,
    report_table,
)
from fairlead.sdk.settings import DEFAULT_DEADLINE_S


@root.command("replay")
@click.argument("trace", required=False, type=click.Path(path_type=Path))
@click.option(
    "--speed", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="2: twice as fast."
)
@click.option("--start", type=click.FloatRange(0), default=0.0, help="Begin so many seconds into the trace.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), help="Replay so many seconds of the trace.")
@click.option("--model", default="", help="Model to ask; may be left out where a tenant may use only one.")
@click.option("--tenant", "tenants", multiple=True, help="Only these tenants of the local platform; may be repeated.")
@click.option(
    "--targets", "targets_file", type=click.Path(path_type=Path), help="YAML list of name, key, model, weight."
)
@click.option("--length-factor", type=click.FloatRange(0, min_open=True), help="Scale lengths.  [default: so they fit]")
@click.option("--in-flight-max", type=click.IntRange(1), default=512, show_default=True, help="Safety valve.")
@click.option("--attempts", type=click.IntRange(1), default=1, show_default=True, help="Tries of each request.")
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds each request may take.",
)
@click.option("--priority", type=click.Choice(["interactive", "batch"]), default="interactive", show_default=True)
@click.option(
    "--samples", "samples_file", type=click.Path(path_type=Path), help="Write every request here, JSON Lines."
)
@pass_invocation
def replay_command(
    invocation: Invocation,
    /,
    trace: Path | None,
    start: float,
    duration: float | None,
    model: str,
    tenants: tuple[str, ...],
    targets_file: Path | None,
    samples_file: Path | None,
    **given: Any,
) -> None:
    """Replay a recorded TRACE through the SDK; without one, the two minutes that ship with Fairlead.

    Requests go out at the recorded times whatever the answers are, dealt to the tenants by client or conversation.
    Traces hold lengths, not text: prompts are made-up words, scaled to the model's context.
    """
    settings, output = invocation.settings, invocation.output
    targets = _targets(invocation, model, tenants, targets_file)
    read = read_trace(trace, start_s=start, duration_s=duration)
    options = ReplayOptions(
        settings.addresses,
        speed=given["speed"],
        length_factor=given["length_factor"],
        in_flight_max=given["in_flight_max"],
        deadline_s=given["deadline_s"] or DEFAULT_DEADLINE_S,
        priority=given["priority"],
        attempts_max=given["attempts"],
        tls=settings.tls or False,
    )
    names = ", ".join(target.name for target in targets)
    output.note(f"{read.name}: {len(read.requests)} requests over {read.duration_s:.0f} s, dealt to {names}")
    report = asyncio.run(_run(output, read, targets, options))
    if samples_file is not None:
        _write_samples(samples_file, report)
    if not output.for_people:
        output.data({"trace": read.name, **report.to_dict()})
        return
    output.console.print(report_table(report))
    for note in footnotes(report):
        output.console.print(f"[dim]- {note}[/]")


async def _run(output: Output, trace: Trace, targets: list[ReplayTarget], options: ReplayOptions) -> ReplayReport:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    # The first Ctrl-C ends the replay and shows what there is; a second one ends the program.
    def interrupted() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupted)
    columns = (
        TextColumn("replay"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[counts]}"),
    )
    with Progress(*columns, console=output.side, disable=not output.for_people) as bars:
        task = bars.add_task("replay", total=len(trace.requests), counts="")

        def show(progress: ReplayProgress) -> None:
            bars.update(task, completed=progress.due, counts=counts_line(progress))

        try:
            return await replay(trace.requests, targets, options, show, stop=stop, notes=trace.notes)
        finally:
            with contextlib.suppress(ValueError):
                loop.remove_signal_handler(signal.SIGINT)


def counts_line(progress: ReplayProgress) -> str:
    """Says where a replay stands, in one line."""
    ended = ", ".join(f"{count} {outcome}" for outcome, count in progress.ended.items() if count)
    rate = progress.output_tokens / progress.elapsed_s if progress.elapsed_s > 0 else 0.0
    return f"{progress.in_flight} in flight; {ended or 'none ended'}; {rate:,.0f} tokens/s"


def _targets(
    invocation: Invocation, model: str, tenants: tuple[str, ...], targets_file: Path | None
) -> list[ReplayTarget]:
    settings = invocation.settings
    if targets_file is not None:
        return _read_targets(targets_file, model)
    if settings.platform is not None and "api_key" not in settings.values:
        known = settings.platform.tenants
        chosen = tenants or tuple(known)
        if chosen:
            return [ReplayTarget(name, settings.api_key(name), model or known[name].model) for name in chosen]
    if tenants:
        settings.api_key(tenants[0])
    return [ReplayTarget("default", settings.api_key(), model)]


def _read_targets(path: Path, model: str) -> list[ReplayTarget]:
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InvalidArgumentError(f"{path} is not YAML") from None
    fields = {"name", "key", "model", "weight"}
    if not isinstance(data, list) or not all(isinstance(entry, dict) and entry.get("key") for entry in data):
        raise InvalidArgumentError(f"{path} must hold a list of targets, each with name and key")
    targets = []
    for number, entry in enumerate(data):
        if set(entry) - fields:
            raise InvalidArgumentError(f"{path}: unknown field {min(set(entry) - fields)}; fields: {sorted(fields)}")
        if not isinstance(entry.get("weight", 1), int | float):
            raise InvalidArgumentError(f"{path}: weight must be a number")
        name, of_model = str(entry.get("name", f"target-{number + 1}")), str(model or entry.get("model", ""))
        targets.append(ReplayTarget(name, str(entry["key"]), of_model, float(entry.get("weight", 1))))
    return targets


def _write_samples(path: Path, report: ReplayReport) -> None:
    with path.open("w") as lines:
        for sample in report.samples:
            lines.write(json.dumps(asdict(sample)) + "\n")
