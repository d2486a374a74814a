"""fairlead calibrate, fairlead calibrations: what requests cost on a replica, measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from rich.markup import escape

from fairlead.admin.v1 import calibration_pb2
from fairlead.admin.v1.calibration_pb2 import Calibration
from fairlead.cli.app import Invocation, confirm, dry_run_option, pass_invocation, root, yes_option
from fairlead.cli.calibrations import find, follow, state_of, state_text, times, under_way, view_for
from fairlead.cli.candidates import model_ids
from fairlead.cli.commands.profiles import COEFFICIENTS, class_table
from fairlead.cli.connection import AdminConnection, new_request_id
from fairlead.cli.cost_profiles import coefficient_rows, percent
from fairlead.cli.failures import EXIT_INTERRUPTED, EXIT_WRONG
from fairlead.cli.output import Column, Output, message_row, plain, table_of
from fairlead.cli.remedies import remedies
from fairlead.errors import FailedPreconditionError, InvalidArgumentError

REPORT_TIMEOUT_S = 60.0
"""Figures are drawn when they are asked for."""

BUDGET_MAX_S = 7 * 86_400.0
"""Longest budget that is taken for meant, seconds; the platform has its own limit."""


def _text(value: Any) -> str:
    return escape(plain(value))


_HEAD = (
    Column("calibration_id", "calibration", _text),
    Column("model_id", "model"),
    Column("state", "state", state_text),
    Column("replica_id", "replica", _text),
    Column("hardware", "hardware", _text),
    Column("engine", "engine", _text),
    Column("measured", "loads measured"),
    Column("times", "time"),
    Column("hold_out_error", "hold-out error", percent),
    Column("profile_id", "cost profile", _text),
    Column("detail", "detail", _text),
)
_LIST = (
    *_HEAD[:5],
    Column("progress", "done", lambda value: percent(value, 0), number=True),
    Column("engine_s", "engine s", lambda value: f"{value:.0f}", number=True),
    Column("update_time", "changed"),
    Column("detail", "detail", _text, wraps=True),
)


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|)", value.strip().lower())
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not 0 < seconds <= BUDGET_MAX_S:
        raise click.BadParameter(f"{value!r} is not a duration such as 15m, 900s or 1h", context, parameter)
    return seconds


def _part(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(%|)", value.strip())
    part = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not 0 < part <= 1:
        raise click.BadParameter(f"{value!r} is not a part such as 5% or 0.05", context, parameter)
    return part


@root.command("calibrate")
@click.argument("model_id", metavar="MODEL", required=False, default="", shell_complete=model_ids)
@click.option("--replica", "replica_id", default="", help="Measure on this one.  [default: the least busy]")
@click.option(
    "--tpot-ms",
    "tpot_objective_ms",
    type=click.FloatRange(0, min_open=True),
    help="Objective: mean time per output token.  [default: that of the cost profile in force]",
)
@click.option(
    "--ttft-ms",
    "ttft_objective_ms",
    type=click.FloatRange(0, min_open=True),
    help="Objective: 95th percentile of the time to first token.  [default: none]",
)
@click.option(
    "--budget",
    callback=_seconds,
    metavar="DURATION",
    help="Most engine time, such as 15m; one too small for the tests of the result cannot publish.  [default: 15m]",
)
@click.option(
    "--error-max",
    callback=_part,
    metavar="PERCENT",
    help="Worst hold-out error that is published. Traffic classes may be off by one percent more: two measurements of "
    "one mix differ by about that.  [default: 5%]",
)
@click.option("--form", type=click.Choice(["attention", "product"]), default="attention", help="Terms to fit.")
@click.option("--force", is_flag=True, help="Publish whatever the error is.")
@click.option("--keep-active", is_flag=True, help="Store the cost profile, leave the one in force.")
@click.option("--take-last-replica", is_flag=True, help="Even if tenants get nothing meanwhile.")
@click.option("--fresh", is_flag=True, help="Forget what a paused calibration has measured.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of lengths and words.  [default: 1]")
@click.option(
    "--report",
    "report_file",
    metavar="FILE",
    help="Write a report, HTML, to FILE. `fairlead calibrations report MODEL` writes one later.",
)
@click.option("--detach", is_flag=True, help="Start it and leave.")
@dry_run_option
@click.pass_context
@pass_invocation
def calibrate(
    invocation: Invocation,
    context: click.Context,
    /,
    model_id: str,
    report_file: str | None,
    detach: bool,
    fresh: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    """Measure on a live replica what requests to MODEL cost, and put the cost profile into force.

    The replica takes no requests meanwhile. Ctrl-C pauses; the same command goes on. Ends with 1 when the cost profile
    was refused, or the measurement failed or was paused.
    """
    if not model_id:
        taken = "" if report_file is None else f"; --report has taken {report_file!r} for its FILE"
        raise click.UsageError(f"the MODEL is missing{taken}")
    if detach and report_file is not None:
        raise click.UsageError("--report needs the end of the calibration, and --detach does not wait for it")
    file = None if report_file is None else _writable(report_file, model_id)
    request = calibration_pb2.StartCalibrationRequest(
        model_id=model_id,
        options=_options(given),
        fresh=fresh,
        validate_only=dry_run,
        request_id=new_request_id(),
    )
    output = invocation.output
    with invocation.admin() as connection:
        started = connection.call(connection.calibration.StartCalibration, request)
        if dry_run or detach:
            show_calibration(output, started)
            named = started.calibration_id
            done = f"calibration {named} started; follow it with: fairlead calibrations follow {named}"
            output.done(f"{model_id} can be calibrated" if dry_run else done, dry_run=dry_run)
            return
        if started.experiments:
            output.note(f"goes on with {started.calibration_id}: {len(started.experiments)} loads are measured already")
        context.exit(_to_the_end(connection, output, started, file))


def _options(given: dict[str, Any]) -> calibration_pb2.CalibrationOptions:
    forms = {"attention": calibration_pb2.COST_FORM_ATTENTION, "product": calibration_pb2.COST_FORM_PRODUCT}
    budget_s = given.pop("budget")
    options = calibration_pb2.CalibrationOptions(form=forms[given.pop("form")])
    for name, value in given.items():
        if value is not None:
            setattr(options, name, value)
    if budget_s is not None:
        options.budget.CopyFrom(Duration(seconds=int(budget_s), nanos=round(budget_s % 1 * 1e9)))
    return options


def _to_the_end(connection: AdminConnection, output: Output, started: Calibration, file: Path | None) -> int:
    """Follows a calibration that this command started; returns the exit code."""
    interrupted = False
    try:
        with view_for(output, "Ctrl-C pauses it") as view:
            ended = follow(connection, started, view)
    except KeyboardInterrupt:
        interrupted = True
        ended = _pause_and_wait(connection, output, started)
    show_calibration(output, ended)
    if file is not None:
        _write_report(connection, output, ended.calibration_id, file)
    if ended.state == calibration_pb2.CALIBRATION_STATE_PUBLISHED:
        return 0
    paused = ended.state == calibration_pb2.CALIBRATION_STATE_PAUSED
    return EXIT_INTERRUPTED if interrupted and paused else EXIT_WRONG


def _pause_and_wait(connection: AdminConnection, output: Output, started: Calibration) -> Calibration:
    """Pauses; a second Ctrl-C gets out of here at once."""
    output.note("pausing: the replica goes back to work; Ctrl-C again leaves at once")
    try:
        paused = _pause(connection, started.calibration_id)
        with view_for(output, "Ctrl-C leaves at once") as view:
            return follow(connection, paused, view)
    except KeyboardInterrupt:
        output.note(f"left at once; `fairlead calibrations show {started.calibration_id}` says whether it is paused")
        raise


def _pause(connection: AdminConnection, calibration_id: str) -> Calibration:
    request = calibration_pb2.PauseCalibrationRequest(calibration_id=calibration_id, request_id=new_request_id())
    try:
        return connection.call(connection.calibration.PauseCalibration, request)
    except FailedPreconditionError:
        # It may have ended just now: then there is nothing to pause, and its end is what counts.
        ended = find(connection, calibration_id)
        if under_way(ended):
            raise
        return ended


@root.group()
def calibrations() -> None:
    """List, follow, pause and publish calibrations."""


@calibrations.command("list")
@click.option("--model", default="", help="Only this model's.")
@pass_invocation
def list_(invocation: Invocation, model: str) -> None:
    """List calibrations, newest first."""
    request = calibration_pb2.ListCalibrationsRequest(model_id=model)
    with invocation.admin() as connection:
        answer = connection.call(connection.calibration.ListCalibrations, request)
    rows = [message_row(calibration) for calibration in answer.calibrations]
    invocation.output.rows(rows, _LIST, empty="no calibrations yet: fairlead calibrate MODEL")


@calibrations.command("show")
@click.argument("target", metavar="CALIBRATION|MODEL")
@pass_invocation
def show(invocation: Invocation, target: str) -> None:
    """Show one calibration, or a model's newest, with everything it has measured in the JSON."""
    with invocation.admin() as connection:
        show_calibration(invocation.output, find(connection, target))


@calibrations.command("follow")
@click.argument("target", metavar="CALIBRATION|MODEL")
@click.pass_context
@pass_invocation
def follow_(invocation: Invocation, context: click.Context, target: str) -> None:
    """Follow a calibration to its end. Ctrl-C leaves; the calibration goes on."""
    output = invocation.output
    with invocation.admin() as connection:
        found = find(connection, target)
        try:
            with view_for(output, "Ctrl-C leaves; it goes on") as view:
                ended = follow(connection, found, view)
        except KeyboardInterrupt:
            output.note(f"it goes on; `fairlead calibrations pause {found.calibration_id}` pauses it")
            raise
    show_calibration(output, ended)
    context.exit(0 if ended.state == calibration_pb2.CALIBRATION_STATE_PUBLISHED else EXIT_WRONG)


@calibrations.command("pause")
@click.argument("target", metavar="CALIBRATION|MODEL")
@pass_invocation
def pause(invocation: Invocation, target: str) -> None:
    """Let the replica go back to work; `fairlead calibrate MODEL` goes on where it stopped."""
    with invocation.admin() as connection:
        found = find(connection, target)
        request = calibration_pb2.PauseCalibrationRequest(
            calibration_id=found.calibration_id, request_id=new_request_id()
        )
        paused = connection.call(connection.calibration.PauseCalibration, request)
    invocation.output.row({**message_row(paused), **_facts(paused)}, _HEAD)
    invocation.output.note(f"to go on: fairlead calibrate {paused.model_id}")


@calibrations.command("publish")
@click.argument("target", metavar="CALIBRATION|MODEL")
@click.option("--keep-active", is_flag=True, help="Store the cost profile, leave the one in force.")
@yes_option
@dry_run_option
@pass_invocation
def publish(invocation: Invocation, target: str, keep_active: bool, yes: bool, dry_run: bool) -> None:
    """Publish the cost profile of a refused calibration all the same."""
    with invocation.admin() as connection:
        found = find(connection, target)
        error = percent(found.profile.evidence.hold_out_error) if found.HasField("profile") else "an unknown part"
        confirm(
            f"Price {found.model_id} with a cost profile that is off by {error} on lengths it was not fitted on?",
            yes=yes,
            dry_run=dry_run,
        )
        request = calibration_pb2.PublishCalibrationRequest(
            calibration_id=found.calibration_id,
            keep_active=keep_active,
            validate_only=dry_run,
            request_id=new_request_id(),
        )
        published = connection.call(connection.calibration.PublishCalibration, request)
    show_calibration(invocation.output, published)
    invocation.output.done(f"calibration {found.calibration_id} published", dry_run=dry_run)


@calibrations.command("report")
@click.argument("target", metavar="CALIBRATION|MODEL")
@click.argument("file", default="", metavar="[FILE]")
@pass_invocation
def report(invocation: Invocation, target: str, file: str) -> None:
    """Write a calibration's report, HTML, to FILE (calibration-MODEL.html where it is left out)."""
    output = invocation.output
    with invocation.admin() as connection:
        found = find(connection, target)
        path = _writable(file, found.model_id)
        _write_report(connection, output, found.calibration_id, path)
    if not output.for_people:
        output.data({"calibration_id": found.calibration_id, "file": str(path)})


def show_calibration(output: Output, calibration: Calibration) -> None:
    """Prints a calibration: coefficients, errors, and what became of it.

    Args:
        output: Where to.
        calibration: The calibration.
    """
    row = message_row(calibration)
    if not output.for_people:
        output.data(row)
        return
    output.row({**row, **_facts(calibration)}, _HEAD)
    if calibration.HasField("profile"):
        output.console.print(table_of(coefficient_rows(calibration.profile), COEFFICIENTS))
        if calibration.profile.evidence.class_errors:
            output.console.print(class_table(calibration.profile))
    if advice := _advice(calibration):
        output.note(advice)


def _facts(calibration: Calibration) -> dict[str, Any]:
    evidence = calibration.profile.evidence
    return {
        "measured": len(calibration.experiments),
        "times": times(calibration),
        "hold_out_error": evidence.hold_out_error if evidence.points else None,
        # Before it is published it has no number of its own.
        "profile_id": calibration.profile.profile_id if state_of(calibration) == "published" else None,
    }


def _advice(calibration: Calibration) -> str:
    model, named = calibration.model_id, calibration.calibration_id
    helps = "".join(f"; {remedy}" for remedy in remedies(calibration.detail))
    return {
        "paused": f"paused; to go on: fairlead calibrate {model}",
        "refused": f"not published, prices stay as they were{helps}; "
        f"to publish it all the same: fairlead calibrations publish {named}",
        "failed": f"nothing was published{helps}; to try again: fairlead calibrate {model}",
        "published": "published, not in force"
        if calibration.options.keep_active
        else f"requests to {model} are priced with it; back: fairlead profiles rollback {model}",
    }.get(state_of(calibration), "")


def _writable(given: str, model_id: str) -> Path:
    """The file of a report, checked before minutes of measuring depend on it."""
    path = Path(given or f"calibration-{model_id}.html")
    problem = "it is a folder" if path.is_dir() else ""
    if given.startswith("-"):
        problem = "that is an option, and a FILE is wanted"
    elif not path.parent.is_dir():
        problem = f"there is no folder {path.parent}"
    if problem:
        raise InvalidArgumentError(f"cannot write the report to {path}: {problem}", field="report")
    return path


def _write_report(connection: AdminConnection, output: Output, calibration_id: str, path: Path) -> None:
    request = calibration_pb2.GetCalibrationRequest(calibration_id=calibration_id)
    page = connection.call(connection.calibration.GetCalibrationReport, request, REPORT_TIMEOUT_S)
    try:
        path.write_text(page.html, encoding="utf-8")
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot write the report to {path}: {error.strerror}; "
            f"`fairlead calibrations report {calibration_id} FILE` writes it elsewhere"
        ) from None
    output.note(f"report: {path.resolve()}")
