"""fairlead explain: what was decided about a request, and why."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

import click
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from fairlead.cli.app import Invocation, pass_invocation, root
from fairlead.cli.candidates import tenant_ids
from fairlead.cli.output import Output, mu
from fairlead.errors import NotFoundError
from fairlead.inference.v1 import decision_pb2
from fairlead.sdk import explaining
from fairlead.sdk.decisions import Attempt, Decision, Explanation, Outcome, explanation_from

_COLOURS = {
    Outcome.IN_FLIGHT: "cyan",
    Outcome.COMPLETED: "green",
    Outcome.FAILED: "red",
    Outcome.REFUSED: "yellow",
    Outcome.CANCELLED: "magenta",
}


@root.command("explain")
@click.argument("request_id")
@click.option(
    "--tenant",
    shell_complete=tenant_ids,
    help="Whose request, where two tenants used one id; without admin token: key.",
)
@pass_invocation
def explain(invocation: Invocation, request_id: str, tenant: str | None) -> None:
    """Explain a request: units, quota and lease at that moment, why it was refused, why that replica.

    REQUEST_ID is in every answer and error. Routers remember their newest requests, those in flight too. With an admin
    token the control plane asks all routers, about any tenant's request; with an API key only, the routers of --address
    are asked about the tenant's own.
    """
    try:
        explanation = _ask(invocation, request_id, tenant)
    except NotFoundError as error:
        raise NotFoundError(
            f"{error.message}: check the id, and ask soon after the request",
            reason=error.reason,
            metadata=error.metadata,
        ) from None
    output = invocation.output
    if not output.for_people:
        output.data(_row(explanation))
        return
    for number, decision in enumerate(explanation.decisions):
        if number:
            output.console.print()
        _show(output, decision)
    if explanation.silent_routers:
        output.note(explaining.silence(explanation.silent_routers))


def _ask(invocation: Invocation, request_id: str, tenant: str | None) -> Explanation:
    if not invocation.settings.values.get("admin_token_file"):
        with invocation.client(tenant) as client:
            return client.explain(request_id)
    request = decision_pb2.GetDecisionRequest(request_id=request_id, tenant_id=tenant or "")
    with invocation.admin() as connection:
        answer = connection.call(connection.decisions.GetDecision, request)
    return explanation_from(answer.decisions, answer.silent_router_ids)


def _row(explanation: Explanation) -> Any:
    """JSON-ready: the SDK's names, times as ISO 8601 to the millisecond."""
    return _plain(asdict(explanation))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(held) for key, held in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(held) for held in value]
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return value.value if isinstance(value, Outcome) else value


def _show(output: Output, decision: Decision) -> None:
    colour = _COLOURS[decision.outcome]
    output.console.print(f"[bold {colour}]{escape(explaining.headline(decision))}[/]")
    output.console.print(f"[dim]{escape(explaining.whence(decision))}[/]")
    parts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    parts.add_column(no_wrap=True)
    parts.add_column(overflow="fold")
    for title, lines in explaining.sections(decision):
        parts.add_row(f"[bold]{title}[/]", "\n".join(map(escape, lines)))
    for number, attempt in enumerate(decision.attempts, 1):
        words = escape(explaining.attempt_line(attempt, number))
        cell = Group(words, _scores(attempt)) if len(attempt.candidates) > 1 else words
        parts.add_row("[bold]tries[/]" if number == 1 else "", cell)
    output.console.print(parts)


def _scores(attempt: Attempt) -> Table:
    """The candidates; the winner is marked."""
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("replica", overflow="fold")
    for title in ("score", "prefill waiting MU", "decode left MU", "queued MU", "cached tokens", "MU/min"):
        table.add_column(title, justify="right")
    table.add_column("health")
    for candidate in attempt.candidates:
        won = candidate.replica_id == attempt.replica_id
        table.add_row(
            "▶" if won else "",
            escape(candidate.replica_id),
            explaining.score(attempt, candidate),
            explaining.mu(candidate.pending_prefill_milli_mu),
            explaining.mu(candidate.decode_milli_mu),
            explaining.mu(candidate.queued_decode_milli_mu),
            f"{candidate.cached_tokens:,}",
            mu(candidate.capacity_milli_mu_per_minute),
            candidate.health,
            style="bold" if won else None,
        )
    return table
