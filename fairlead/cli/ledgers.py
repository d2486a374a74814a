"""The ledger drawn: have, sold, sellable and used of models, and what-ifs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fairlead.cli.output import Column, Row, bar, mu

TENANTS_SHOWN_MAX = 20
"""A terminal's worth; -o json has all."""


def _bad(rate: Any) -> str:
    return f"[red]{mu(rate)}[/]" if rate else "-"


def _bar(pair: Any) -> str:
    part, whole = pair
    return bar(part, whole, 10)


LEDGER = (
    Column("model_id", "model"),
    Column("replicas_ready", "ready", number=True),
    Column("have_milli_mu_per_minute", "have MU/min", mu),
    Column("sellable_milli_mu_per_minute", "sellable", mu),
    Column("sold_milli_mu_per_minute", "sold", mu),
    Column("sold_of_sellable", "of sellable", _bar),
    Column("used_milli_mu_per_minute", "used", mu),
    Column("used_of_have", "of have", _bar),
    Column("headroom_domain", "headroom"),
    Column("shortfall_milli_mu_per_minute", "shortfall", _bad, number=True),
    Column("uncovered_after_loss_milli_mu_per_minute", "uncovered", _bad, number=True),
)


def ledger_rows(rows: Sequence[Row]) -> list[Row]:
    """Adds what LEDGER draws.

    Args:
        rows: Models as in the JSON output.
    """
    return [
        {
            **row,
            "sold_of_sellable": (row["sold_milli_mu_per_minute"], row["sellable_milli_mu_per_minute"]),
            "used_of_have": (row["used_milli_mu_per_minute"], row["have_milli_mu_per_minute"]),
            "headroom_domain": headroom(row),
        }
        for row in rows
    ]


def headroom(row: Row) -> str:
    """Shows a headroom policy with the failure domain it holds back now."""
    if row["headroom"] in ("none", "unspecified"):
        return "[dim]none[/]"
    domain = row["largest_domain"]
    name = domain["name"]
    return (
        f"{row['headroom']} [dim]({name}: {mu(domain['capacity_milli_mu_per_minute'])})[/]" if name else row["headroom"]
    )


def what_if_table(before: Row, after: Row) -> Table:
    """Lays the ledger of a model out as it is and as it would be.

    Args:
        before: The model as in the JSON output.
        after: Likewise.
    """
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(before["model_id"])
    for title in ("now", "then", "change"):
        table.add_column(title, justify="right")
    table.add_row("ready replicas", str(before["replicas_ready"]), str(after["replicas_ready"]), *_step(before, after))
    for title, field, good in _FIGURES:
        now, then = before[field], after[field]
        shown = _bad if good < 0 else mu
        table.add_row(title, shown(now), shown(then), _change(then - now, good))
    table.add_row("headroom", headroom(before), headroom(after), "")
    return table


# What a figure is called, and whether more of it is good news (1), bad news (-1) or neither.
_FIGURES = (
    ("have MU/min", "have_milli_mu_per_minute", 1),
    ("sellable", "sellable_milli_mu_per_minute", 1),
    ("sold", "sold_milli_mu_per_minute", 0),
    ("used", "used_milli_mu_per_minute", 0),
    ("shortfall", "shortfall_milli_mu_per_minute", -1),
    ("uncovered after a loss", "uncovered_after_loss_milli_mu_per_minute", -1),
)


def _step(before: Row, after: Row) -> tuple[str]:
    difference = after["replicas_ready"] - before["replicas_ready"]
    return (_coloured(f"{difference:+,}", difference),) if difference else ("",)


def _change(difference: int, good: int) -> str:
    return _coloured(f"{difference / 1000:+,.1f}", difference * good) if difference else ""


def _coloured(text: str, news: int) -> str:
    return f"[green]{text}[/]" if news > 0 else f"[red]{text}[/]" if news < 0 else text


def moved_tenants(before: Row, after: Row) -> list[dict[str, Any]]:
    """Tenants whose reservation or guarantee would be another one, greatest loss first.

    Args:
        before: The model as in the JSON output.
        after: Likewise.

    Returns:
        Rows with tenant_id, and reserved, guaranteed and granted before and after in milli-MU per minute.
    """
    old = {quota["tenant_id"]: quota for quota in before["quotas"]}
    new = {quota["tenant_id"]: quota for quota in after["quotas"]}
    rows = []
    for tenant_id in sorted(old.keys() | new.keys()):
        row: dict[str, Any] = {"tenant_id": tenant_id}
        for name in ("reserved", "guaranteed", "granted"):
            field = f"{name}_milli_mu_per_minute"
            row[f"{name}_before_milli_mu_per_minute"] = old.get(tenant_id, {}).get(field, 0)
            row[f"{name}_after_milli_mu_per_minute"] = new.get(tenant_id, {}).get(field, 0)
        if any(
            row[f"{name}_before_milli_mu_per_minute"] != row[f"{name}_after_milli_mu_per_minute"]
            for name in ("reserved", "guaranteed")
        ):
            rows.append(row)
    return sorted(rows, key=_gain)


def _gain(row: Row) -> int:
    gain: int = row["guaranteed_after_milli_mu_per_minute"] - row["guaranteed_before_milli_mu_per_minute"]
    return gain


def tenants_table(rows: Sequence[Row]) -> Table:
    """Lays out what tenants would gain and lose.

    Args:
        rows: From `moved_tenants`.
    """
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("tenant")
    for title in ("reserved now", "then", "guaranteed now", "then", "change"):
        table.add_column(title, justify="right")
    for row in rows[:TENANTS_SHOWN_MAX]:
        table.add_row(
            row["tenant_id"],
            mu(row["reserved_before_milli_mu_per_minute"]),
            mu(row["reserved_after_milli_mu_per_minute"]),
            mu(row["guaranteed_before_milli_mu_per_minute"]),
            mu(row["guaranteed_after_milli_mu_per_minute"]),
            _change(_gain(row), 1),
        )
    if len(rows) > TENANTS_SHOWN_MAX:
        table.add_row(f"[dim]and {len(rows) - TENANTS_SHOWN_MAX:,} more; -o json shows all[/]")
    return table
