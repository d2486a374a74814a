"""fairlead events: what an operator wants to know."""

from __future__ import annotations

from typing import Any

import click
from rich.markup import escape

from fairlead.admin.v1 import calibration_pb2
from fairlead.cli.app import Invocation, pass_invocation, root
from fairlead.cli.output import Column, message_row


def _severity(value: Any) -> str:
    return f"[{'yellow' if value == 'warning' else 'white'}]{value}[/]"


COLUMNS = (
    Column("time", "time"),
    Column("severity", "severity", _severity),
    Column("kind", "kind", escape),
    Column("model_id", "model", escape),
    Column("message", "what, and what to do", escape, wraps=True),
)


@root.command("events")
@click.option("--model", default="", help="Only this model's.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Most to show.")
@pass_invocation
def events(invocation: Invocation, model: str, limit: int) -> None:
    """Show what happened lately, newest first: drift, slow replicas, new cost profiles. Kept for seven days."""
    request = calibration_pb2.ListEventsRequest(model_id=model, page_size=limit)
    with invocation.admin() as connection:
        answer = connection.call(connection.calibration.ListEvents, request)
    rows = [message_row(event) for event in answer.events]
    invocation.output.rows(rows, COLUMNS, empty="nothing happened in the last seven days")
