"""fairlead assignments: which replicas serve which tenant, how hot they are, what moved and why."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import Group
from rich.live import Live

from fairlead.cli.app import Invocation, pass_invocation, root
from fairlead.cli.assignments import (
    MOVES,
    REPLICAS,
    SLICES,
    assignment_rows,
    heading,
    more_slices,
    move_rows,
    screen,
    slice_rows,
    with_heat,
)
from fairlead.cli.candidates import model_ids, tenant_ids
from fairlead.cli.connection import AdminConnection
from fairlead.cli.failures import show_error
from fairlead.cli.quotas import check_names
from fairlead.errors import FairleadError
from fairlead.sharding.v1 import sharding_pb2

EMPTY = "no assignments: the sharder makes them when replicas are ready, see fairlead replicas list"

model_option = click.option("--model", default="", help="Only this model's.", shell_complete=model_ids)
tenant_option = click.option(
    "--tenant", default="", help="Only slices with keys of this tenant.", shell_complete=tenant_ids
)


@root.group("assignments", invoke_without_command=True)
@model_option
@click.pass_context
def assignments(context: click.Context, model: str) -> None:
    """Show which replicas serve which tenant, how hot they are, and what moved. Alone, it is `show`."""
    if context.invoked_subcommand is None:
        context.invoke(show, model=model, tenant="", moves=False)
    elif model:
        context.default_map = {context.invoked_subcommand: {"model": model}}


@assignments.command("show")
@model_option
@tenant_option
@click.option("--moves", is_flag=True, help="Also what changed with the newest assignment, and why.")
@pass_invocation
def show(invocation: Invocation, model: str, tenant: str, moves: bool) -> None:
    """Show the assignments in force: slices of the key space, their load, their replicas."""
    with invocation.admin() as connection:
        rows = _read(connection, model, tenant)
        if not rows or tenant:
            check_names(connection, tenant, model)
    output = invocation.output
    if not output.for_people:
        output.data(rows)
        return
    if not rows:
        output.console.print(f"[dim]{EMPTY}[/]")
    for row in rows:
        output.console.print(heading(row))
        output.rows(slice_rows(row), SLICES, empty="written before assignments had slices: the sharder replaces it")
        if more := more_slices(row):
            output.note(more)
        output.console.print()
        output.rows([with_heat(each) for each in row["replicas"]], REPLICAS, empty="no replicas")
        output.console.print()
        if moves:
            output.rows(move_rows([row]), MOVES[1:], empty="nothing moved with this assignment")
            output.console.print()


@assignments.command("moves")
@model_option
@tenant_option
@pass_invocation
def moves(invocation: Invocation, model: str, tenant: str) -> None:
    """Show what the newest assignments changed, and why: the largest moves first."""
    with invocation.admin() as connection:
        rows = _read(connection, model, tenant)
        if not rows or tenant:
            check_names(connection, tenant, model)
    shown = [move for row in rows for move in row["moves"]]
    if not invocation.output.for_people:
        invocation.output.data(shown)
        return
    invocation.output.rows(move_rows(rows), MOVES, empty="nothing moved with the newest assignments")


@assignments.command("watch")
@model_option
@tenant_option
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between looks.")
@click.option("--count", type=click.IntRange(1), help="Stop after so many looks.")
@pass_invocation
def watch(invocation: Invocation, model: str, tenant: str, interval: float, count: int | None) -> None:
    """Show assignments and heat as they change, until Ctrl-C. With -o json, one line per look.

    Once it runs, a look that fails is said, and the last one stays.
    """
    output = invocation.output
    with invocation.admin() as connection:
        rows, notes = _read(connection, model, tenant), list[str]()
        if not rows or tenant:
            check_names(connection, tenant, model)
        with Live(console=output.console, auto_refresh=False) as live:
            looks, fresh = 1, True
            while True:
                if output.for_people:
                    live.update(Group(*screen(rows, notes if rows else [EMPTY])), refresh=True)
                elif fresh:
                    output.line(rows)
                if looks == count:
                    return
                time.sleep(interval)
                looks += 1
                try:
                    rows, notes, fresh = _read(connection, model, tenant), [], True
                except FairleadError as error:
                    notes, fresh = [f"as it was at the last look that succeeded; now: {error.message}"], False
                    if not output.for_people:
                        show_error(error, output.form)


def _read(connection: AdminConnection, model_id: str, tenant_id: str) -> list[dict[str, Any]]:
    request = sharding_pb2.ListAssignmentsRequest(model_id=model_id, tenant_id=tenant_id)
    return assignment_rows(connection.call(connection.sharding.ListAssignments, request), tenant_id, time.time())
