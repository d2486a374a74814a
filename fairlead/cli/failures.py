"""How commands fail: one red line that says what to do, an exit code, never a traceback for the expected."""

from __future__ import annotations

import json
import shlex
from typing import Any

import click
import grpc
from rich.console import Console
from rich.markup import escape

from fairlead.errors import FairleadError, Reason

EXIT_WRONG, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_EXITS = {
    grpc.StatusCode.INVALID_ARGUMENT: 2,
    grpc.StatusCode.UNAVAILABLE: 3,
    grpc.StatusCode.DEADLINE_EXCEEDED: 3,
    grpc.StatusCode.UNAUTHENTICATED: 4,
    grpc.StatusCode.PERMISSION_DENIED: 4,
    grpc.StatusCode.NOT_FOUND: 5,
    grpc.StatusCode.ALREADY_EXISTS: 6,
    grpc.StatusCode.ABORTED: 6,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 7,
}
_HINTS = {
    Reason.UNKNOWN_KEY: "check the key or token; `fairlead doctor` tells which one is refused",
    Reason.TENANT_SUSPENDED: "`fairlead tenants resume TENANT` lets it in again",
    Reason.MODEL_NOT_ALLOWED: "`fairlead quota set TENANT MODEL --reserved MU` gives a tenant access to a model",
    Reason.UNKNOWN_TENANT: "`fairlead tenants list` shows those that exist",
    Reason.UNKNOWN_MODEL: "`fairlead models list` shows those that exist",
    Reason.UNKNOWN_REPLICA: "`fairlead replicas list` shows those that live",
    Reason.CONFLICT: "read it again and repeat the change",
    Reason.QUOTA_USED_UP: "wait, or raise the quota: `fairlead quota get TENANT MODEL` shows it",
    Reason.QUOTA_HELD: "requests in flight hold the quota: wait for them to end",
    Reason.QUOTA_TOO_SMALL: "ask for fewer tokens, or raise the quota with `fairlead quota set`",
    Reason.NO_REPLICA: "`fairlead replicas list` shows what is there",
    Reason.NOT_READY: "`fairlead doctor` says what is wrong",
    Reason.STORE_UNAVAILABLE: "etcd is not reachable from the control plane: check that it runs",
    Reason.NOT_LEADER: "`fairlead services` shows who leads",
}
# What a router decided about a request, and remembers for a while.
_EXPLAINED = frozenset(
    {
        Reason.QUOTA_USED_UP,
        Reason.QUOTA_HELD,
        Reason.QUOTA_TOO_SMALL,
        Reason.QUEUE_FULL,
        Reason.NO_REPLICA,
        Reason.REPLICA_LOST,
        Reason.STREAM_BROKEN,
        Reason.ENGINE_FAILED,
        Reason.DEADLINE_EXCEEDED,
        Reason.DEADLINE_TOO_SHORT,
        Reason.REQUEST_QUARANTINED,
    }
)


def exit_code_of(error: FairleadError) -> int:
    """The exit code of an error."""
    return _EXITS.get(error.code, EXIT_WRONG)


def hint_of(error: FairleadError) -> str:
    """What to do about an error, where its own message does not say it; empty where nothing is known."""
    hint = _HINTS.get(error.reason, "")
    commands = hint.split("`")[1::2]
    return "" if any(command.split(" TENANT")[0] in error.message for command in commands) else hint


def explanation_of(error: FairleadError) -> str:
    """What explains a request that failed; empty where no router decided about one."""
    request_id = error.metadata.get("request_id", "")
    if not request_id or error.reason not in _EXPLAINED:
        return ""
    return f"`fairlead explain {shlex.quote(request_id)}` says why"


def show_error(error: FairleadError, form: str) -> None:
    """Prints an error to standard error.

    Args:
        error: Any error of the tree.
        form: "table" for one red line; "json" and "yaml" for an object.
    """
    if form == "table":
        later = f" (come back in {error.retry_after_s:.1f} s)" if error.retry_after_s is not None else ""
        _red("; ".join(filter(None, (f"{error.message}{later}", hint_of(error), explanation_of(error)))))
        return
    body: dict[str, Any] = {
        "code": error.code.name,
        "reason": error.reason.value,
        "message": error.message,
        "hint": "; ".join(filter(None, (hint_of(error), explanation_of(error)))),
        "field": error.field,
        "retry_after_s": error.retry_after_s,
        "metadata": error.metadata,
    }
    click.echo(json.dumps({"error": body}, ensure_ascii=False), err=True)


def show_usage_error(error: click.ClickException, form: str) -> None:
    """Prints a mistake in the command line to standard error.

    Args:
        error: What click found.
        form: As for `show_error`.
    """
    context = getattr(error, "ctx", None)
    if form != "table":
        body = {"code": "USAGE", "reason": "USAGE", "message": error.format_message(), "hint": ""}
        click.echo(json.dumps({"error": body}, ensure_ascii=False), err=True)
        return
    message = error.format_message().rstrip(".")
    if context is not None:
        message += f"{' See' if message.endswith('?') else '; see'} `{context.command_path} --help`"
    _red(message)


def _red(text: str) -> None:
    # soft_wrap: one line is one line, whatever the width of the terminal.
    line = " ".join(text.split())
    Console(stderr=True, highlight=False).print(f"[red]error:[/] [red]{escape(line)}[/]", soft_wrap=True)
