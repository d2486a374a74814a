"""fairlead usage: what tenants were charged, shown and exported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from fairlead.admin.v1 import usage_pb2
from fairlead.cli.app import Invocation, pass_invocation, root
from fairlead.cli.candidates import model_ids, tenant_ids
from fairlead.cli.output import Column, Output, Row, bar
from fairlead.cli.periods import period
from fairlead.cli.usage_rows import FORMATS, UsageExport, by_tenant_and_model, mu_of, share, write
from fairlead.cli.whole_files import whole_file
from fairlead.errors import InvalidArgumentError

SHOWN = "24h"
"""What `usage show` shows where no start is given."""
PROGRESS_ROWS = 500
"""Rows between two looks at how far an export is."""


def _mu(value: int) -> str:
    """A charge to the last digit: small ones would vanish."""
    return f"{value / 1000:,.3f}"


COLUMNS = (
    Column("tenant_id", "tenant"),
    Column("model_id", "model"),
    Column("requests", "requests", number=True),
    Column("input_tokens", "tokens in", number=True),
    Column("cached_input_tokens", "cached", number=True),
    Column("output_tokens", "tokens out", number=True),
    Column("prefill_milli_mu", "prefill MU", _mu, number=True),
    Column("decode_milli_mu", "decode MU", _mu, number=True),
    Column("milli_mu", "MU", _mu, number=True),
    Column("share", "share", lambda value: "" if value is None else bar(value, 1.0, 12)),
)

_start = click.option("--start", metavar="TIME", help="From: a date, a time (UTC), or how long ago: 24h, 7d.")
_end = click.option("--end", metavar="TIME", help="Until, likewise; whole hours count.  [default: now]")
_tenant = click.option("--tenant", default="", shell_complete=tenant_ids, help="Only this tenant's.")
_model = click.option("--model", default="", shell_complete=model_ids, help="Only this model's.")


@root.group()
def usage() -> None:
    """Show and export what tenants were charged, per hour, model and tenant; it adds up exactly."""


@usage.command("show")
@_start
@_end
@_tenant
@_model
@pass_invocation
def show(invocation: Invocation, start: str | None, end: str | None, tenant: str, model: str) -> None:
    """Show usage per tenant and model, by default of the last 24 hours."""
    request = _request(start or SHOWN, end, tenant, model)
    with invocation.admin() as connection:
        export = UsageExport(connection, request)
        found = by_tenant_and_model(_watched(invocation.output, export))
    output = invocation.output
    if not output.for_people:
        output.data({"rows": found, "totals": export.totals, "complete_until_time": export.complete_until})
        return
    rows: list[Row] = [{**row, "share": share(row, found)} for row in found]
    if len(rows) > 1:
        rows.append({"tenant_id": "total", "model_id": "", **export.totals})
    output.rows(rows, COLUMNS, empty="nothing was charged in this period")
    output.note(_completeness(export))


@usage.command("export")
@_start
@_end
@_tenant
@_model
@click.option(
    "--format", "form", type=click.Choice(FORMATS), help="Form of the file.  [default: csv; json with -o json]"
)
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write here, whole or not at all; - is stdout.",
)
@pass_invocation
def export_(
    invocation: Invocation,
    start: str | None,
    end: str | None,
    tenant: str,
    model: str,
    form: str | None,
    file: Path | None,
) -> None:
    """Export usage per hour, model and tenant; without --start, everything that is kept.

    An export that would not be exact fails: nothing is written to FILE then. The last hour may still grow: what is
    complete is said at the end.
    """
    output = invocation.output
    if form is None and output.form == "yaml":
        raise InvalidArgumentError("usage is not exported as yaml: add --format csv, json or jsonl", field="format")
    form = form or ("json" if output.form == "json" else "csv")
    request = _request(start, end, tenant, model)
    with invocation.admin() as connection:
        export = UsageExport(connection, request)
        if file is None or str(file) == "-":
            write(export, _watched(output, export, quiet=sys.stdout.isatty()), form, sys.stdout)
        else:
            with whole_file(file) as opened:
                write(export, _watched(output, export), form, opened)
    where = "" if file is None or str(file) == "-" else f" to {file}"
    output.note(
        f"{export.rows:,} rows{where}: {export.totals['requests']:,} requests, {mu_of(export.totals['milli_mu'])} MU "
        f"(prefill {mu_of(export.totals['prefill_milli_mu'])}, decode {mu_of(export.totals['decode_milli_mu'])}); "
        f"{_completeness(export)}"
    )


def _request(start: str | None, end: str | None, tenant: str, model: str) -> usage_pb2.ExportUsageRequest:
    first, last = period(start, end, datetime.now(UTC))
    request = usage_pb2.ExportUsageRequest(tenant_id=tenant, model_id=model)
    if first is not None:
        request.start_time.FromDatetime(first)
    if last is not None:
        request.end_time.FromDatetime(last)
    return request


def _watched(output: Output, export: UsageExport, *, quiet: bool = False) -> Iterator[Row]:
    """The rows, with a line on the terminal that says how far they are."""
    if quiet or not output.for_people or not output.side.is_terminal:
        yield from export
        return
    with output.side.status("asking for usage") as line:
        for number, row in enumerate(export):
            if number % PROGRESS_ROWS == 0:
                line.update(f"{number:,} rows, up to {row['hour']}")
            yield row


def _completeness(export: UsageExport) -> str:
    return (
        f"complete until {export.complete_until}" if export.complete_until else "nobody says up to when it is complete"
    )
