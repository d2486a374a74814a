"""fairlead profiles: what requests cost, and since when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from fairlead.admin.v1 import calibration_pb2
from fairlead.cli.app import Invocation, dry_run_option, pass_invocation, root, stdin_text
from fairlead.cli.candidates import model_ids, profile_ids
from fairlead.cli.connection import AdminConnection, new_request_id
from fairlead.cli.cost_profiles import (
    amount,
    coefficient_rows,
    compare,
    from_file,
    percent,
    signed_percent,
    to_file,
)
from fairlead.cli.output import Column, Output, message_row, plain, table_of
from fairlead.errors import InvalidArgumentError


def _text(value: Any) -> str:
    return escape(plain(value))


PROFILES = (
    Column("profile_id", "cost profile", _text),
    Column("engine", "engine", _text, wraps=True),
    Column("tpot_objective_ms", "TPOT ms", amount, number=True),
    Column("ttft_objective_ms", "TTFT ms", lambda value: amount(value or None), number=True),
    Column("hold_out_error", "hold-out error", percent, number=True),
    Column("active_for", "in force for", _text, wraps=True),
    Column("built_in", "ships"),
    Column("create_time", "measured"),
)
COEFFICIENTS = (
    Column("name", "coefficient"),
    Column("value", "value", amount, number=True),
    Column("low", "95 % from", amount, number=True),
    Column("high", "to", amount, number=True),
    Column("uncertainty", "±", percent, number=True),
    Column("meaning", "unit"),
)
_SHOWN = (
    *(Column(name, name.replace("_", " "), _text) for name in ("profile_id", "engine", "form")),
    Column("tpot_objective_ms", "TPOT objective ms", amount),
    Column("ttft_objective_ms", "TTFT p95 objective ms", lambda value: amount(value or None)),
    Column("image_s", "replica-seconds per image", lambda value: amount(value or None)),
    Column("hold_out_error", "hold-out error", percent),
    Column("points", "measured lengths"),
    Column("engine_s", "engine time s", amount),
    Column("create_time", "measured"),
    Column("provenance", "provenance", _text),
)
_CHANGES = (
    Column("before", "before", amount, number=True),
    Column("after", "after", amount, number=True),
    Column("change", "change", signed_percent, number=True),
)
_REQUESTS = (
    Column("name", "request"),
    Column("input_tokens", "input", number=True),
    Column("output_tokens", "output", number=True),
    Column("before", "MU before", amount, number=True),
    Column("after", "MU after", amount, number=True),
    Column("change", "change", signed_percent, number=True),
)
_MODEL = (
    Column("model_id", "model"),
    Column("profile_id", "cost profile", _text),
    Column("previous_profile_id", "before", _text),
)


def _drift_state(value: Any) -> str:
    colour = {"true": "green", "drifts": "red", "replicas slow": "yellow"}.get(value, "dim")
    return f"[{colour}]{value}[/]"


DRIFT = (
    Column("model_id", "model"),
    Column("profile_id", "cost profile", _text),
    Column("says", "state", _drift_state),
    Column("change", "time against profile", signed_percent, number=True),
    Column("tolerance", "tolerance", percent, number=True),
    Column("replicas", "replicas", number=True),
    Column("replicas_drifting", "beyond", number=True),
    Column("drift_since", "since"),
)


@root.group()
def profiles() -> None:
    """List, compare and activate cost profiles: what a request costs.

    The profiles of the configuration file (option --profile) are something else.
    """


@profiles.command("list")
@click.option("--model", default="", help="Only those measured on this model, such as llama-3.1-8b.")
@click.option("--hardware", default="", help="Only this hardware's, such as h100.")
@pass_invocation
def list_(invocation: Invocation, model: str, hardware: str) -> None:
    """List cost profiles, those that ship with the platform included."""
    request = calibration_pb2.ListProfilesRequest(model=model, hardware=hardware)
    with invocation.admin() as connection:
        answer = connection.call(connection.calibration.ListProfiles, request)
    rows = [
        {**message_row(listed.profile), "built_in": listed.built_in, "active_for": list(listed.active_for)}
        for listed in answer.profiles
    ]
    if invocation.output.for_people:
        rows = [{**row, **_known(listed.profile)} for row, listed in zip(rows, answer.profiles, strict=True)]
    invocation.output.rows(rows, PROFILES, empty="no such cost profile: fairlead calibrate MODEL measures one")


@profiles.command("show")
@click.argument("profile_id", shell_complete=profile_ids)
@pass_invocation
def show(invocation: Invocation, profile_id: str) -> None:
    """Show one cost profile with what is known of its quality."""
    with invocation.admin() as connection:
        profile = _read(connection, profile_id)
    show_profile(invocation.output, profile)


@profiles.command("diff")
@click.argument("before", metavar="PROFILE_A", shell_complete=profile_ids)
@click.argument("after", metavar="PROFILE_B", shell_complete=profile_ids)
@pass_invocation
def diff(invocation: Invocation, before: str, after: str) -> None:
    """Show what changes from one cost profile to another, in coefficients and in prices."""
    with invocation.admin() as connection:
        old, new = _read(connection, before), _read(connection, after)
    found, output = compare(old, new), invocation.output
    if not output.for_people:
        output.data({"before": old.profile_id, "after": new.profile_id, **found})
        return
    output.console.print(f"{escape(old.profile_id)} → {escape(new.profile_id)}", soft_wrap=True)
    output.console.print(table_of(found["coefficients"], (Column("name", "constant"), *_CHANGES)))
    output.console.print(table_of(found["requests"], _REQUESTS))


@profiles.command("export")
@click.argument("profile_id", shell_complete=profile_ids)
@pass_invocation
def export(invocation: Invocation, profile_id: str) -> None:
    """Print a cost profile as the JSON file that import reads, whatever the form of the output."""
    with invocation.admin() as connection:
        click.echo(to_file(_read(connection, profile_id)))


@profiles.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@dry_run_option
@pass_invocation
def import_(invocation: Invocation, file: Path, dry_run: bool) -> None:
    """Store a cost profile from a FILE (- for standard input) as a new version; it is not put into force."""
    try:
        text = stdin_text() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidArgumentError(f"cannot read {file}: {reason}") from None
    request = calibration_pb2.ImportProfileRequest(
        profile=from_file(text, str(file)), validate_only=dry_run, request_id=new_request_id()
    )
    with invocation.admin() as connection:
        stored = connection.call(connection.calibration.ImportProfile, request)
    show_profile(invocation.output, stored)
    invocation.output.done(
        f"cost profile {stored.profile_id} stored; next: fairlead profiles activate MODEL {stored.profile_id}",
        dry_run=dry_run,
    )


@profiles.command("activate")
@click.argument("model_id", shell_complete=model_ids)
@click.argument("profile_id", shell_complete=profile_ids)
@dry_run_option
@pass_invocation
def activate(invocation: Invocation, model_id: str, profile_id: str, dry_run: bool) -> None:
    """Price a model's requests with another cost profile from now on."""
    request = calibration_pb2.ActivateProfileRequest(
        model_id=model_id, profile_id=profile_id, validate_only=dry_run, request_id=new_request_id()
    )
    with invocation.admin() as connection:
        model = connection.call(connection.calibration.ActivateProfile, request)
    _show_model(invocation.output, model, dry_run)


@profiles.command("rollback")
@click.argument("model_id", shell_complete=model_ids)
@dry_run_option
@pass_invocation
def rollback(invocation: Invocation, model_id: str, dry_run: bool) -> None:
    """Put a model's previous cost profile back into force. A second rollback undoes the first."""
    request = calibration_pb2.RollbackProfileRequest(
        model_id=model_id, validate_only=dry_run, request_id=new_request_id()
    )
    with invocation.admin() as connection:
        model = connection.call(connection.calibration.RollbackProfile, request)
    _show_model(invocation.output, model, dry_run)


@profiles.command("drift")
@click.argument("model_id", required=False, default="", shell_complete=model_ids)
@pass_invocation
def drift(invocation: Invocation, model_id: str) -> None:
    """Show whether production still takes the time the cost profiles say."""
    request = calibration_pb2.ListDriftRequest(model_id=model_id)
    with invocation.admin() as connection:
        answer = connection.call(connection.calibration.ListDrift, request)
    output = invocation.output
    if not output.for_people:
        output.data([message_row(status) for status in answer.drift])
        return
    rows = [
        {
            **message_row(status),
            "says": _says(status),
            "change": status.ratio - 1 if status.ratio else None,
        }
        for status in answer.drift
    ]
    output.rows(rows, DRIFT, empty="nothing is known yet: a model shows after some minutes of traffic")
    for status in answer.drift:
        if status.HasField("proposal"):
            output.note(
                f"{status.model_id}: a cost profile that fits is proposed; `fairlead profiles accept "
                f"{status.model_id}` puts it into force, `fairlead calibrate {status.model_id}` measures afresh"
            )


@profiles.command("accept")
@click.argument("model_id", shell_complete=model_ids)
@dry_run_option
@pass_invocation
def accept(invocation: Invocation, model_id: str, dry_run: bool) -> None:
    """Store the cost profile that the drift watch proposes for a model and put it into force."""
    request = calibration_pb2.AcceptProposalRequest(
        model_id=model_id, validate_only=dry_run, request_id=new_request_id()
    )
    with invocation.admin() as connection:
        model = connection.call(connection.calibration.AcceptProposal, request)
    _show_model(invocation.output, model, dry_run)


def show_profile(output: Output, profile: calibration_pb2.CostProfile) -> None:
    """Prints a cost profile.

    Args:
        output: Where to.
        profile: The profile.
    """
    row = message_row(profile)
    if not output.for_people:
        output.data(row)
        return
    output.row({**row, **_known(profile)}, _SHOWN)
    output.console.print(table_of(coefficient_rows(profile), COEFFICIENTS))
    if profile.evidence.class_errors:
        output.console.print(class_table(profile))


def class_table(profile: calibration_pb2.CostProfile) -> Any:
    """The errors of the traffic classes as a table.

    Args:
        profile: One with evidence.
    """
    errors = profile.evidence.class_errors
    rows = [{"name": name, "error": errors[name]} for name in sorted(errors)]
    columns = (Column("name", "traffic class", _text), Column("error", "error", signed_percent, number=True))
    return table_of(rows, columns)


def _known(profile: calibration_pb2.CostProfile) -> dict[str, Any]:
    if not profile.HasField("evidence"):
        return {"hold_out_error": None, "points": None, "engine_s": None}
    evidence = profile.evidence
    return {"hold_out_error": evidence.hold_out_error, "points": evidence.points, "engine_s": evidence.engine_s}


def _says(status: calibration_pb2.DriftStatus) -> str:
    if not status.ratio:
        return "not known yet"
    if status.HasField("drift_since"):
        return "drifts"
    return "replicas slow" if status.replicas_drifting else "true"


def _show_model(output: Output, model: Any, dry_run: bool) -> None:
    output.row(message_row(model), _MODEL)
    output.done(
        f"requests to {model.model_id} are priced with {model.profile_id}; "
        f"back: fairlead profiles rollback {model.model_id}",
        dry_run=dry_run,
    )


def _read(connection: AdminConnection, profile_id: str) -> calibration_pb2.CostProfile:
    request = calibration_pb2.GetProfileRequest(profile_id=profile_id)
    return connection.call(connection.calibration.GetProfile, request)
