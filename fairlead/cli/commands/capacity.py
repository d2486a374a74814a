"""fairlead capacity: have, sold, used; what if; what can be sold; and why a quota is what it is."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.markup import escape
from rich.table import Table

from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.cli.amounts import ModelUnits, TenantAmount, decimal
from fairlead.cli.app import Invocation, dry_run_option, pass_invocation, root
from fairlead.cli.candidates import model_ids, tenant_ids
from fairlead.cli.commands.models import HEADROOMS, headroom_of
from fairlead.cli.commands.quota import change, reservation_options
from fairlead.cli.connection import new_request_id
from fairlead.cli.ledgers import LEDGER, headroom, ledger_rows, moved_tenants, tenants_table, what_if_table
from fairlead.cli.output import Column, Output, Row, message_row, mu
from fairlead.cli.quotas import check_names, reservation_of
from fairlead.errors import FailedPreconditionError, InvalidArgumentError, Reason

SALE = (
    Column("change", "reserved MU/min"),
    Column("have_milli_mu_per_minute", "have MU/min", mu),
    Column("headroom_domain", "headroom"),
    Column("sellable_milli_mu_per_minute", "sellable", mu),
    Column("sold_milli_mu_per_minute", "sold with it", mu),
    Column("headroom_milli_mu_per_minute", "left then", mu),
    Column("reservable_milli_mu_per_minute", "most it could reserve", mu),
    Column("explanation", "why"),
)
QUOTA = (
    Column("reserved_milli_mu_per_minute", "reserved MU/min", mu),
    Column("guaranteed_milli_mu_per_minute", "guaranteed", mu),
    Column("wants_milli_mu_per_minute", "wants", mu),
    Column("used_milli_mu_per_minute", "used", mu),
    Column("burst_ceiling_milli_mu_per_minute", "ceiling", mu),
)
PARTS = (
    Column("tier", "tier"),
    Column("weight", "weight"),
    Column("counted_wants_milli_mu_per_minute", "wants as counted", mu),
    Column("kept_milli_mu_per_minute", "keeps of its guarantee", mu),
    Column("lent_milli_mu_per_minute", "lends to others", mu),
    Column("borrowed_milli_mu_per_minute", "is lent", mu),
    Column("idle_share_milli_mu_per_minute", "share of what is idle", mu),
)


@root.group()
def capacity() -> None:
    """Show capacity, plan what-ifs, sell, and explain quotas. All figures are model units per minute (MU/min)."""


@capacity.command("show")
@click.option("--model", default="", help="Only this model's.", shell_complete=model_ids)
@pass_invocation
def show(invocation: Invocation, model: str) -> None:
    """Show have, sellable, sold and used per model, with each tenant's quota in the JSON."""
    with invocation.admin() as connection:
        answer = connection.call(connection.capacity.ListCapacity, capacity_pb2.ListCapacityRequest(model_id=model))
        if not answer.models:
            check_names(connection, model_id=model)
    rows = [message_row(entry) for entry in answer.models]
    output = invocation.output
    if output.for_people:
        output.rows(ledger_rows(rows), LEDGER, empty="no capacity: fairlead models list, fairlead replicas list")
    else:
        output.data(rows)


@capacity.command("plan")
@click.argument("model_id", metavar="MODEL", shell_complete=model_ids)
@click.option("--lose-replica", multiple=True, metavar="REPLICA", help="Lose this replica; may be given again.")
@click.option("--lose-host", multiple=True, metavar="HOST", help="Lose all replicas of this host.")
@click.option("--lose-rack", multiple=True, metavar="RACK", help="Lose all replicas of this rack.")
@click.option("--add-replicas", type=click.IntRange(1, 10_000), help="Add so many replicas, each on its own host.")
@click.option(
    "--replica-capacity",
    type=ModelUnits(above_zero=True),
    help="Capacity of each of them, MU/min.  [default: that of the largest there is]",
)
@click.option("--reserve", multiple=True, type=TenantAmount(), help="Sell a tenant so much; may be given again.")
@click.option(
    "--without", multiple=True, metavar="TENANT", help="End a tenant's reservation.", shell_complete=tenant_ids
)
@click.option("--target-utilization", type=float, help="Promise this share of live capacity, up to 1.")
@click.option("--headroom", type=click.Choice(HEADROOMS), help="Hold back what this policy says.")
@pass_invocation
def plan(
    invocation: Invocation,
    model_id: str,
    lose_replica: Sequence[str],
    lose_host: Sequence[str],
    lose_rack: Sequence[str],
    add_replicas: int | None,
    replica_capacity: int | None,
    reserve: Sequence[tuple[str, int]],
    without: Sequence[str],
    target_utilization: float | None,
    headroom: str | None,
) -> None:
    """Show what the ledger of a model would be if something were different. Changes nothing; changes add up."""
    if replica_capacity is not None and add_replicas is None:
        raise click.UsageError("--replica-capacity says how large the replicas of --add-replicas are: give both")
    if target_utilization is not None and not 0 < target_utilization <= 1:  # NaN is in no range
        raise click.UsageError(f"--target-utilization {target_utilization:g} must be above 0, up to 1")
    if twice := {tenant for tenant, _ in reserve} & set(without):
        raise click.UsageError(f"{', '.join(sorted(twice))} cannot be both in --reserve and in --without")
    request = capacity_pb2.PlanCapacityRequest(
        model_id=model_id,
        without_tenant_ids=without,
        without_replica_ids=lose_replica,
        without_hosts=lose_host,
        without_racks=lose_rack,
        add_replicas=add_replicas or 0,
        add_replica_capacity_milli_mu_per_minute=replica_capacity or 0,
        target_utilization=target_utilization or 0.0,
        headroom=admin_pb2.HEADROOM_UNSPECIFIED if headroom is None else headroom_of(headroom),
    )
    with invocation.admin() as connection:
        for tenant_id, reserved in reserve:
            found = reservation_of(connection, tenant_id, model_id)
            request.reservations.append(_changed(found, tenant_id, model_id, reserved))
        answer = message_row(connection.call(connection.capacity.PlanCapacity, request))
    _show_plan(invocation.output, answer)


def _show_plan(output: Output, answer: Row) -> None:
    if not output.for_people:
        output.data(answer)
        return
    before, after = answer["before"], answer["after"]
    output.console.print(what_if_table(before, after))
    moved = moved_tenants(before, after)
    if moved:
        output.console.print()
        output.console.print(tenants_table(moved))
    output.console.print()
    for finding in answer["findings"]:
        output.console.print(f"• {escape(finding)}", soft_wrap=True)
    verdict = (
        "[green]every reservation is covered[/]" if answer["covered"] else "[red]not every reservation is covered[/]"
    )
    kept = ", also after the loss of the largest failure domain" if after["largest_domain"]["name"] else ""
    output.console.print(f"{verdict}{kept if answer['covered'] else ''}")


@capacity.command("sell")
@click.argument("tenant_id", metavar="TENANT", shell_complete=tenant_ids)
@click.argument("model_id", metavar="MODEL", shell_complete=model_ids)
@click.option("--reserved", type=ModelUnits(above_zero=True), help="MU/min to guarantee in all.")
@click.option("--more", type=ModelUnits(above_zero=True), help="MU/min to guarantee beyond what it has.")
@reservation_options
@dry_run_option
@pass_invocation
def sell(
    invocation: Invocation,
    tenant_id: str,
    model_id: str,
    reserved: int | None,
    more: int | None,
    burst: int | None,
    tier: int | None,
    weight: int | None,
    dry_run: bool,
) -> None:
    """Sell a reservation if live capacity covers it, less the model's headroom; ends with 1 if it does not.

    `fairlead quota set` also sells what replicas that are yet to come will cover, and lowers a reservation.
    """
    if (reserved is None) == (more is None):
        raise click.UsageError("give either --reserved, how much it is to have, or --more, how much beyond what it has")
    output = invocation.output
    with invocation.admin() as connection:
        found = reservation_of(connection, tenant_id, model_id)
        now = found.reserved_milli_mu_per_minute if found is not None else 0
        then = now + (more or 0) if reserved is None else reserved
        if then < now:
            raise InvalidArgumentError(
                f"{tenant_id} has {mu(now)} MU/min of {model_id}, and {mu(then)} is less: "
                f"`fairlead quota set {tenant_id} {model_id} --reserved {decimal(then)}` lowers it",
                field="reserved",
            )
        asked = capacity_pb2.PlanReservationRequest(
            model_id=model_id, tenant_id=tenant_id, reserved_milli_mu_per_minute=then
        )
        wanted = _changed(found, tenant_id, model_id, then, burst, tier, weight)
        # Whatever else is wrong with it, a person wants to know before the capacity.
        tried = admin_pb2.SetReservationRequest(reservation=wanted, validate_only=True, allow_oversell=True)
        connection.call(connection.admin.SetReservation, tried)
        answer = connection.call(connection.capacity.PlanReservation, asked)
        if answer.sellable and not dry_run:
            request = admin_pb2.SetReservationRequest(
                reservation=wanted, request_id=new_request_id(), live_capacity_only=True
            )
            connection.call(connection.admin.SetReservation, request)
    row = {
        "tenant_id": tenant_id,
        "model_id": model_id,
        "reserved_now_milli_mu_per_minute": now,
        "reserved_then_milli_mu_per_minute": then,
        **message_row(answer),
        "sold": answer.sellable and not dry_run,
    }
    shown = {**row, "change": f"{mu(now)} → {mu(then)}", "headroom_domain": headroom(row)}
    output.row(shown if output.for_people else row, SALE)
    if not answer.sellable:
        raise FailedPreconditionError(
            f"{mu(then - now)} MU/min of {model_id} cannot be sold to {tenant_id}: at most "
            f"{mu(max(0, answer.reservable_milli_mu_per_minute - now))} can; "
            f"`fairlead capacity plan {model_id} --add-replicas 1` shows what would help",
            reason=Reason.CAPACITY_EXCEEDED,
            metadata={"reservable_milli_mu_per_minute": str(answer.reservable_milli_mu_per_minute)},
        )
    output.done(f"{mu(then - now)} MU/min of {model_id} sold to {tenant_id}, {mu(then)} in all", dry_run=dry_run)


@capacity.command("explain")
@click.argument("tenant_id", metavar="TENANT", shell_complete=tenant_ids)
@click.argument("model_id", metavar="MODEL", shell_complete=model_ids)
@pass_invocation
def explain(invocation: Invocation, tenant_id: str, model_id: str) -> None:
    """Explain why a tenant's quota is what it is: every number, step by step."""
    request = capacity_pb2.ExplainQuotaRequest(tenant_id=tenant_id, model_id=model_id)
    with invocation.admin() as connection:
        row = message_row(connection.call(connection.capacity.ExplainQuota, request))
    output = invocation.output
    if not output.for_people:
        output.data(row)
        return
    granted = mu(row["quota"]["granted_milli_mu_per_minute"])
    output.console.print(f"[bold]{escape(tenant_id)}[/] may use [green]{granted} MU/min[/] of {escape(model_id)} now")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    for source, columns in ((row["quota"], QUOTA), (row, PARTS)):
        for column in columns:
            table.add_row(f"[bold]{column.title}[/]", column.show(source[column.field]))
    output.console.print(table)
    for number, step in enumerate(row["steps"], 1):
        output.console.print(f"[dim]{number}.[/] {escape(step)}", soft_wrap=True)
    output.rows(ledger_rows([row["model"]]), LEDGER, empty="")


def _changed(
    found: admin_pb2.Reservation | None,
    tenant_id: str,
    model_id: str,
    reserved: int,
    burst: int | None = None,
    tier: int | None = None,
    weight: int | None = None,
) -> admin_pb2.Reservation:
    """What a tenant has of a model, changed.

    Raises:
        InvalidArgumentError: The ceiling would be below what is reserved.
    """
    if burst is not None and burst < reserved:
        raise InvalidArgumentError(f"--burst {mu(burst)} must be at least the {mu(reserved)} reserved", field="burst")
    wanted = found or admin_pb2.Reservation(tenant_id=tenant_id, model_id=model_id)
    change(wanted, reserved, burst, tier, weight)
    return wanted
