"""fairlead capacity: have, sold, used; and whether more can be sold."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.table import Table

from fairlead.capacity.v1 import capacity_pb2
from fairlead.cli.app import Invocation, pass_invocation, root
from fairlead.cli.output import Column, Row, bar, message_row, mu

PLAN = (
    Column("sellable", "sellable"),
    Column("have_milli_mu_per_minute", "have MU/min", mu),
    Column("sold_milli_mu_per_minute", "sold with it", mu),
    Column("headroom_milli_mu_per_minute", "headroom", mu),
    Column("explanation", "why"),
)


@root.group()
def capacity() -> None:
    """Show capacity, and plan what could be sold."""


@capacity.command("show")
@click.option("--model", default="", help="Only this model's.")
@pass_invocation
def show(invocation: Invocation, model: str) -> None:
    """Show have, sold and used per model, with each tenant's quota in the JSON."""
    with invocation.admin() as connection:
        answer = connection.call(connection.capacity.ListCapacity, capacity_pb2.ListCapacityRequest(model_id=model))
    rows = [message_row(entry) for entry in answer.models]
    output = invocation.output
    if not output.for_people:
        output.data(rows)
    elif not rows:
        output.console.print("[dim]no capacity: fairlead models list, fairlead replicas list[/]")
    else:
        output.console.print(capacity_table(rows))


def capacity_table(rows: Sequence[Row]) -> Table:
    """Lays the ledger out with bars: sold and used as parts of have.

    Args:
        rows: Models as in the JSON output.
    """
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("model")
    for title in ("ready", "have MU/min", "sold"):
        table.add_column(title, justify="right")
    table.add_column("of have")
    table.add_column("used", justify="right")
    table.add_column("of have")
    table.add_column("shortfall", justify="right")
    for row in rows:
        have, sold, used = (row[f"{name}_milli_mu_per_minute"] for name in ("have", "sold", "used"))
        short = row["shortfall_milli_mu_per_minute"]
        table.add_row(
            row["model_id"],
            str(row["replicas_ready"]),
            mu(have),
            mu(sold),
            bar(sold, have),
            mu(used),
            bar(used, have),
            f"[red]{mu(short)}[/]" if short else "-",
        )
    return table


@capacity.command("plan")
@click.argument("tenant_id")
@click.argument("model_id")
@click.option("--reserved", type=click.FloatRange(0, min_open=True), required=True, help="MU/min to test.")
@pass_invocation
def plan(invocation: Invocation, tenant_id: str, model_id: str, reserved: float) -> None:
    """Ask whether a reservation could be sold, without selling it."""
    request = capacity_pb2.PlanReservationRequest(
        tenant_id=tenant_id, model_id=model_id, reserved_milli_mu_per_minute=round(reserved * 1000)
    )
    with invocation.admin() as connection:
        answer = connection.call(connection.capacity.PlanReservation, request)
    invocation.output.row({"tenant_id": tenant_id, "model_id": model_id, **message_row(answer)}, PLAN)
