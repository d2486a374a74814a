"""fairlead quota apply and export: policy files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from rich.markup import escape

from fairlead.admin.v1 import admin_pb2
from fairlead.cli.amounts import decimal
from fairlead.cli.app import Invocation, confirm, dry_run_option, pass_invocation, stdin_text, yes_option
from fairlead.cli.candidates import model_ids
from fairlead.cli.commands.quota import oversell_option, quota
from fairlead.cli.connection import AdminConnection, new_request_id
from fairlead.cli.output import Output, message_row
from fairlead.cli.policy_files import PolicyFile, read_policies
from fairlead.cli.policy_forms import form_of, policy_text
from fairlead.cli.quotas import check_names
from fairlead.cli.whole_files import whole_file
from fairlead.errors import FairleadError, InvalidArgumentError
from fairlead.reservation_limits import TIER_DEFAULT, WEIGHT_DEFAULT

# A hundred thousand quotas are written in some two thousand transactions, one after the other.
APPLY_TIMEOUT_S: Final = 300.0
# A terminal's worth: -o json has all.
_CHANGES_SHOWN_MAX: Final = 200
_NAMED_MAX: Final = 5

Key = tuple[str, str]


@quota.command("apply")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--delete-others", is_flag=True, help="Delete quotas that the file lacks, on the models it names.")
@click.option("--overwrite", is_flag=True, help="Replace what others changed since the file was exported.")
@oversell_option
@yes_option
@dry_run_option
@pass_invocation
def apply(
    invocation: Invocation, file: Path, delete_others: bool, overwrite: bool, oversell: bool, yes: bool, dry_run: bool
) -> None:
    """Make quotas as a policy file says: TOML, JSON or YAML; - for standard input.

    Everything is checked before anything is written. With --dry-run, only shows what would change.
    """
    output = invocation.output
    policies = _read(file)
    with invocation.admin() as connection:
        _check(policies, file, connection, output)
        before = _reservations(connection)
        if overwrite:
            for reservation in policies.reservations:
                reservation.ClearField("etag")
        request = admin_pb2.ApplyReservationsRequest(
            reservations=policies.reservations,
            complete_model_ids=sorted({r.model_id for r in policies.reservations}) if delete_others else (),
            allow_oversell=oversell,
        )
        if delete_others and not yes and not dry_run:
            _confirm_deletions(connection, request)
        request.validate_only, request.request_id = dry_run, new_request_id()
        changes = connection.call(connection.admin.ApplyReservations, request, APPLY_TIMEOUT_S)
    _show(changes, {(r.model_id, r.tenant_id): r for r in before}, output, dry_run=dry_run)


@quota.command("export")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--model", default="", help="Only this model's.", shell_complete=model_ids)
@pass_invocation
def export(invocation: Invocation, file: Path | None, model: str) -> None:
    """Write all quotas as a policy file that `quota apply` takes back: TOML, or what FILE's name or -o says."""
    output = invocation.output
    with invocation.admin() as connection:
        reservations = _reservations(connection, model)
        if not reservations:
            check_names(connection, model_id=model)
    if file is None:
        click.echo(policy_text(reservations, "toml" if output.for_people else output.form), nl=False)
        return
    with whole_file(file) as opened:
        opened.write(policy_text(reservations, form_of(file.name, "")))
    output.note(f"{len(reservations):,} quotas written to {file}")


def _read(file: Path) -> PolicyFile:
    if str(file) == "-":
        text = stdin_text()
    else:
        try:
            text = file.read_bytes().decode("utf-8")
        except OSError as error:
            raise InvalidArgumentError(f"cannot read {file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InvalidArgumentError(f"{file} is not UTF-8 text") from None
    return read_policies(text, form_of(file.name, text))


def _check(policies: PolicyFile, file: Path, connection: AdminConnection, output: Output) -> None:
    """Refuses a file with problems, after saying each of them.

    Raises:
        InvalidArgumentError: There are some.
    """
    try:
        tenants, models = connection.tenants(), connection.models()
    except FairleadError:
        if not policies.problems:
            raise
    else:
        policies.check_names((t.tenant_id for t in tenants), (m.model_id for m in models))
    if not policies.problems:
        return
    said = [problem.said("-" if str(file) == "-" else str(file)) for problem in policies.problems]
    if len(said) == 1:
        raise InvalidArgumentError(f"{said[0]}; nothing was changed", field=policies.problems[0].field)
    if output.for_people:
        for line in said:
            output.side.print(f"[red]✗[/] {escape(line)}", soft_wrap=True)
    raise InvalidArgumentError(
        f"{file} has {len(said):,} problems, nothing was changed",
        metadata={f"problem_{number}": line for number, line in enumerate(said, 1)},
    )


def _confirm_deletions(connection: AdminConnection, request: admin_pb2.ApplyReservationsRequest) -> None:
    """Asks before tenants lose access.

    Raises:
        click.Abort: The user said no.
        FairleadError: The request would be refused, or nobody is there to ask.
    """
    tried = admin_pb2.ApplyReservationsRequest(validate_only=True)
    tried.MergeFrom(request)
    gone = [_title(r) for r in connection.call(connection.admin.ApplyReservations, tried, APPLY_TIMEOUT_S).deleted]
    if gone:
        named = ", ".join(gone[:_NAMED_MAX]) + (
            f" and {len(gone) - _NAMED_MAX:,} more" if len(gone) > _NAMED_MAX else ""
        )
        confirm(f"Delete the quotas of {named}? These tenants lose access.", yes=False, dry_run=False)


def _reservations(connection: AdminConnection, model_id: str = "") -> Sequence[admin_pb2.Reservation]:
    request = admin_pb2.ListReservationsRequest(model_id=model_id)
    return connection.call(connection.admin.ListReservations, request).reservations


def _show(
    changes: admin_pb2.ApplyReservationsResponse,
    before: Mapping[Key, admin_pb2.Reservation],
    output: Output,
    *,
    dry_run: bool,
) -> None:
    if not output.for_people:
        changed = [
            {"tenant_id": r.tenant_id, "model_id": r.model_id, "from": _policy(before.get(_key(r))), "to": _policy(r)}
            for r in changes.updated
        ]
        output.data(
            {
                "dry_run": dry_run,
                "created": [_row(r) for r in changes.created],
                "changed": changed,
                "deleted": [_row(r) for r in changes.deleted],
                "unchanged": changes.unchanged,
            }
        )
        return
    lines = [f"[green]+ {_title(r)}[/]: {_values(_policy(r))}" for r in changes.created]
    lines += [f"[yellow]~ {_title(r)}[/]: {_differences(before.get(_key(r)), r)}" for r in changes.updated]
    lines += [f"[red]- {_title(r)}[/]: {_values(_policy(r))}" for r in changes.deleted]
    for line in lines[:_CHANGES_SHOWN_MAX]:
        output.console.print(line, soft_wrap=True)
    if len(lines) > _CHANGES_SHOWN_MAX:
        output.console.print(f"[dim]and {len(lines) - _CHANGES_SHOWN_MAX:,} more changes; -o json shows all[/]")
    output.console.print(
        f"[green]{len(changes.created):,} created[/], [yellow]{len(changes.updated):,} changed[/], "
        f"[red]{len(changes.deleted):,} deleted[/], [dim]{changes.unchanged:,} unchanged[/]"
    )
    output.done("quotas applied", dry_run=dry_run)


def _key(reservation: admin_pb2.Reservation) -> Key:
    return reservation.model_id, reservation.tenant_id


def _title(reservation: admin_pb2.Reservation) -> str:
    return f"{reservation.tenant_id} on {reservation.model_id}"


def _row(reservation: admin_pb2.Reservation) -> dict[str, Any]:
    row = message_row(reservation)
    del row["model_shortfall_milli_mu_per_minute"]  # only in the answer to one change
    return row


def _policy(reservation: admin_pb2.Reservation | None) -> dict[str, int] | None:
    """What a reservation means; None where it was not there at the last look."""
    if reservation is None:
        return None
    reserved = reservation.reserved_milli_mu_per_minute
    return {
        "reserved_milli_mu_per_minute": reserved,
        "burst_ceiling_milli_mu_per_minute": max(reserved, reservation.burst_ceiling_milli_mu_per_minute),
        "tier": reservation.tier or TIER_DEFAULT,
        "weight": reservation.weight or WEIGHT_DEFAULT,
    }


_TITLES: Final = {
    "reserved_milli_mu_per_minute": "reserved",
    "burst_ceiling_milli_mu_per_minute": "burst",
    "tier": "tier",
    "weight": "weight",
}


def _value(field: str, value: int) -> str:
    return decimal(value) if field.endswith("milli_mu_per_minute") else str(value)


def _values(policy: Mapping[str, int] | None) -> str:
    return ", ".join(f"{_TITLES[field]} {_value(field, value)}" for field, value in (policy or {}).items())


def _differences(before: admin_pb2.Reservation | None, after: admin_pb2.Reservation) -> str:
    old, new = _policy(before), _policy(after) or {}
    if old is None:
        return _values(new)
    parts: Iterable[str] = (
        f"{_TITLES[field]} {_value(field, old[field])} → [bold]{_value(field, value)}[/]"
        for field, value in new.items()
        if value != old[field]
    )
    return ", ".join(parts)
