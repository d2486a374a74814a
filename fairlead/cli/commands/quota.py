"""fairlead quota: what tenants bought, what they are granted now, who holds the leases."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from fairlead.admin.v1 import admin_pb2
from fairlead.cli.amounts import ModelUnits
from fairlead.cli.app import Invocation, confirm, dry_run_option, pass_invocation, root, yes_option
from fairlead.cli.candidates import model_ids, tenant_ids
from fairlead.cli.connection import AdminConnection, new_request_id
from fairlead.cli.failures import show_error
from fairlead.cli.output import Column, Row, message_row, mu, table_of
from fairlead.cli.quotas import check_names, read_quotas, reservation_of
from fairlead.errors import FairleadError, NotFoundError
from fairlead.reservation_limits import TIER_DEFAULT, TIER_MAX, WEIGHT_DEFAULT, WEIGHT_MAX

Function = TypeVar("Function", bound=Callable[..., Any])

RESERVATION = (
    Column("tenant_id", "tenant"),
    Column("model_id", "model"),
    Column("reserved_milli_mu_per_minute", "reserved MU/min", mu),
    Column("burst_ceiling_milli_mu_per_minute", "ceiling", mu),
    Column("tier", "tier"),
    Column("weight", "weight"),
)
LEASES = (
    Column("router_id", "router"),
    Column("rate_milli_mu_per_minute", "rate MU/min", mu),
    Column("burst_milli_mu", "saves up MU", mu),
    Column("safe_rate_milli_mu_per_minute", "safe rate", mu),
)


def _leases(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(f"{lease['router_id']} {mu(lease['rate_milli_mu_per_minute'])}" for lease in value) or "none"


COLUMNS = (
    *RESERVATION[:3],
    Column("guaranteed_milli_mu_per_minute", "guaranteed", mu),
    Column("granted_milli_mu_per_minute", "granted", mu),
    Column("burst_ceiling_milli_mu_per_minute", "ceiling", mu),
    Column("wants_milli_mu_per_minute", "wants", mu),
    Column("used_milli_mu_per_minute", "used", mu),
    Column("leases", "leases", _leases),
)


@root.group()
def quota() -> None:
    """Set, show and watch quotas. All figures are model units per minute (MU/min)."""


def reservation_options(function: Function) -> Function:
    """Adds what makes up a reservation beside what is guaranteed."""
    options = [
        click.option(
            "--burst", type=ModelUnits(), help="Ceiling including lent capacity, MU/min.  [default: reserved]"
        ),
        click.option(
            "--tier", type=click.IntRange(1, TIER_MAX), help="1 is served first in a shortfall.  [default: 5]"
        ),
        click.option("--weight", type=click.IntRange(1, WEIGHT_MAX), help="Weight among equals.  [default: 1]"),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def oversell_option(function: Function) -> Function:
    """Adds --oversell: the model's capacity is no limit."""
    return click.option("--oversell", is_flag=True, help="Sell more than the model's capacity covers.")(function)


@quota.command("set")
@click.argument("tenant_id", shell_complete=tenant_ids)
@click.argument("model_id", shell_complete=model_ids)
@click.option("--reserved", type=ModelUnits(), help="Guaranteed MU/min; 0 is best effort only.")
@reservation_options
@oversell_option
@dry_run_option
@pass_invocation
def set_(
    invocation: Invocation,
    tenant_id: str,
    model_id: str,
    reserved: int | None,
    burst: int | None,
    tier: int | None,
    weight: int | None,
    oversell: bool,
    dry_run: bool,
) -> None:
    """Reserve MU/min of a model for a tenant, or change what it has; what is not given stays."""
    with invocation.admin() as connection:
        found = reservation_of(connection, tenant_id, model_id)
        if found is None and reserved is None:
            raise click.UsageError(f"{tenant_id} has no quota on {model_id} yet: give --reserved MU")
        wanted = found or admin_pb2.Reservation(tenant_id=tenant_id, model_id=model_id)
        change(wanted, reserved, burst, tier, weight)
        request = admin_pb2.SetReservationRequest(
            reservation=wanted, validate_only=dry_run, request_id=new_request_id(), allow_oversell=oversell
        )
        row = message_row(connection.call(connection.admin.SetReservation, request))
    invocation.output.row(row, RESERVATION)
    invocation.output.done(f"quota of {tenant_id} on {model_id} set", dry_run=dry_run)
    short = row["model_shortfall_milli_mu_per_minute"]
    if short:
        invocation.output.note(
            f"{mu(short)} MU/min more is sold of {model_id} than its live capacity covers: fairlead capacity show"
        )


def change(
    reservation: admin_pb2.Reservation, reserved: int | None, burst: int | None, tier: int | None, weight: int | None
) -> None:
    """Changes a reservation; what is None stays, and what was never set becomes what the platform takes.

    Args:
        reservation: To change.
        reserved: Guaranteed, milli-MU per minute.
        burst: Ceiling, milli-MU per minute; left out, it is raised to what is guaranteed.
        tier: 1 to 9.
        weight: 1 to 1000.
    """
    if reserved is not None:
        reservation.reserved_milli_mu_per_minute = reserved
    if burst is not None:
        reservation.burst_ceiling_milli_mu_per_minute = burst
    elif reservation.burst_ceiling_milli_mu_per_minute < reservation.reserved_milli_mu_per_minute:
        reservation.burst_ceiling_milli_mu_per_minute = reservation.reserved_milli_mu_per_minute
    reservation.tier = tier or reservation.tier or TIER_DEFAULT
    reservation.weight = weight or reservation.weight or WEIGHT_DEFAULT


@quota.command("get")
@click.argument("tenant_id", shell_complete=tenant_ids)
@click.argument("model_id", shell_complete=model_ids)
@pass_invocation
def get(invocation: Invocation, tenant_id: str, model_id: str) -> None:
    """Show one quota with its leases."""
    output = invocation.output
    with invocation.admin() as connection:
        rows = _read(invocation, connection, tenant_id, model_id)
    if not rows:
        raise NotFoundError(f"{tenant_id} has no quota on {model_id}: fairlead quota set {tenant_id} {model_id}")
    output.row(rows[0], COLUMNS[:-1])
    if output.for_people and rows[0]["leases"]:
        output.console.print(table_of(rows[0]["leases"], LEASES))


@quota.command("list")
@click.option("--tenant", default="", help="Only this tenant's.", shell_complete=tenant_ids)
@click.option("--model", default="", help="Only this model's.", shell_complete=model_ids)
@pass_invocation
def list_(invocation: Invocation, tenant: str, model: str) -> None:
    """List quotas: reserved, guaranteed, granted, wanted, used, and the leases of each router."""
    with invocation.admin() as connection:
        rows = _read(invocation, connection, tenant, model)
        if not rows:
            check_names(connection, tenant, model)
    invocation.output.rows(rows, COLUMNS, empty="no quotas: fairlead quota set TENANT MODEL --reserved MU")


@quota.command("watch")
@click.option("--tenant", default="", help="Only this tenant's.", shell_complete=tenant_ids)
@click.option("--model", default="", help="Only this model's.", shell_complete=model_ids)
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--count", type=click.IntRange(1), help="Stop after so many looks.")
@pass_invocation
def watch(invocation: Invocation, tenant: str, model: str, interval: float, count: int | None) -> None:
    """Show quotas as they change, until Ctrl-C. With -o json, one line per look.

    Once it runs, a look that fails is said, and the last one stays.
    """
    output = invocation.output
    with invocation.admin() as connection:
        rows, notes = read_quotas(connection, tenant, model)
        if not rows:
            check_names(connection, tenant, model)
        with Live(console=output.console, auto_refresh=False) as live:
            looks, fresh = 1, True
            while True:
                if output.for_people:
                    live.update(Group(table_of(rows, COLUMNS), *(Text(note, "dim") for note in notes)), refresh=True)
                elif fresh:
                    output.line(rows)
                if looks == count:
                    return
                time.sleep(interval)
                looks += 1
                try:
                    (rows, notes), fresh = read_quotas(connection, tenant, model), True
                except FairleadError as error:
                    notes, fresh = [f"as it was at the last look that succeeded; now: {error.message}"], False
                    if not output.for_people:
                        show_error(error, output.form)


@quota.command("delete")
@click.argument("tenant_id", shell_complete=tenant_ids)
@click.argument("model_id", shell_complete=model_ids)
@yes_option
@dry_run_option
@pass_invocation
def delete(invocation: Invocation, tenant_id: str, model_id: str, yes: bool, dry_run: bool) -> None:
    """Delete a quota: the tenant loses access to the model."""
    confirm(f"Delete the quota of {tenant_id} on {model_id}? It loses access to the model.", yes=yes, dry_run=dry_run)
    request = admin_pb2.DeleteReservationRequest(
        tenant_id=tenant_id, model_id=model_id, validate_only=dry_run, request_id=new_request_id()
    )
    with invocation.admin() as connection:
        connection.call(connection.admin.DeleteReservation, request)
    invocation.output.row({"tenant_id": tenant_id, "model_id": model_id, "dry_run": dry_run}, RESERVATION[:2])
    invocation.output.done(f"quota of {tenant_id} on {model_id} deleted", dry_run=dry_run)


def _read(invocation: Invocation, connection: AdminConnection, tenant_id: str, model_id: str) -> Sequence[Row]:
    rows, missing = read_quotas(connection, tenant_id, model_id)
    for problem in missing if rows else ():
        invocation.output.note(problem)
    return rows
