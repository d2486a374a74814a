"""fairlead top: tenants and replicas, live."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fairlead.cli.app import Invocation, pass_invocation, root
from fairlead.cli.ledgers import LEDGER, ledger_rows
from fairlead.cli.output import bar, drift, mu, state, table_of
from fairlead.cli.snapshot import Loads, Snapshot, look
from fairlead.errors import FairleadError


@root.command("top")
@click.option("--interval", type=click.FloatRange(0.2), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Take one look and end.")
@pass_invocation
def top(invocation: Invocation, interval: float, once: bool) -> None:
    """Watch capacity, quotas and replicas until Ctrl-C. With -o json, one line per look."""
    output = invocation.output
    with invocation.admin() as connection, Loads() as loads:
        if once or not output.for_people:
            while True:
                snapshot = look(connection, loads)
                if output.for_people:
                    output.console.print(screen(snapshot))
                else:
                    output.line(asdict(snapshot))
                if once:
                    return
                time.sleep(interval)
        shown = look(connection, loads)  # what is wrong at the start is an error, not a blank screen
        with Live(screen(shown), console=output.console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                try:
                    shown = look(connection, loads)
                    live.update(screen(shown), refresh=True)
                except FairleadError as error:
                    live.update(Group(Text(error.message, style="red"), screen(shown)), refresh=True)


def screen(snapshot: Snapshot) -> Group:
    """Lays one look out.

    Args:
        snapshot: The look.
    """
    parts: list[Any] = [Text(time.strftime("fairlead top  %H:%M:%S"), style="bold")]
    parts += [Text(problem, style="yellow") for problem in snapshot.problems]
    if snapshot.capacity:
        parts += ["", table_of(ledger_rows(snapshot.capacity), LEDGER)]
    parts += ["", _quotas(snapshot.quotas), "", _replicas(snapshot.replicas)]
    return Group(*parts)


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="right" if title.endswith(" ") else "left")
    return table


def _quotas(rows: list[dict[str, Any]]) -> Table:
    table = _table("tenant", "model", "reserved ", "granted ", "wants ", "used ", "of granted", "leases")
    for row in rows:
        granted, used = row["granted_milli_mu_per_minute"], row["used_milli_mu_per_minute"]
        leases = row["leases"]
        table.add_row(
            row["tenant_id"],
            row["model_id"],
            mu(row["reserved_milli_mu_per_minute"]),
            mu(granted),
            mu(row["wants_milli_mu_per_minute"]),
            mu(used),
            bar(used, granted),
            "-" if leases is None else str(len(leases)),
        )
    return table


def _replicas(rows: list[dict[str, Any]]) -> Table:
    table = _table(
        "replica", "model", "state", "load", "running ", "queued ", "prefill MU ", "decode MU ", "drift ", "restarts "
    )
    for row in rows:
        load = row["load"] or {}
        table.add_row(
            row["replica_id"],
            row["model_id"],
            state(row["state"]),
            bar(load.get("utilization"), 1.0) if load else "-",
            str(load.get("running_requests", "-")),
            str(load.get("queued_requests", "-")),
            mu(load.get("pending_prefill_milli_mu")),
            mu(load.get("decode_milli_mu")),
            drift(row["drift_ratio"]),
            str(row["engine_restarts"]),
        )
    return table
