"""A replay's report as a table for people."""

from __future__ import annotations

from rich.table import Table

from fairlead.replay.report import Percentiles, ReplayReport, TenantReport


def report_table(report: ReplayReport) -> Table:
    """Lays a report out: one row per tenant, then all together.

    Args:
        report: What came of a replay.
    """
    table = Table(title=f"{report.wall_s:.0f} s at speed {report.speed:g}", title_justify="left")
    table.add_column("tenant")
    for name in ("sent", "ok", "refused", "failed", "cancelled"):
        table.add_column(name, justify="right")
    for name in ("TTFT ms", "TPOT ms"):
        table.add_column(f"{name}\np50 / p95 / p99", justify="right")
    for name in ("tokens/s", "MU settled\n(estimated)"):
        table.add_column(name, justify="right")
    for tenant in report.tenants:
        table.add_row(*_row(tenant))
    if len(report.tenants) > 1:
        table.add_section()
        table.add_row(*_row(report.total), style="bold")
    return table


def footnotes(report: ReplayReport) -> list[str]:
    """Says what the table does not: scaling, reasons, what was lost.

    Args:
        report: What came of a replay.
    """
    notes = list(report.notes)
    for tenant in report.tenants:
        for kind, reasons in (("refused", tenant.refused), ("failed", tenant.failed)):
            if reasons:
                counts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
                notes.append(f"{tenant.tenant}: {kind} by reason: {counts}")
    total = report.total
    balance = "as it must be" if total.difference == 0 else "something was lost"
    notes.append(
        f"received {total.received} = admitted {total.admitted} + refused {sum(total.refused.values())} + cancelled "
        f"{total.cancelled}; difference {total.difference}: {balance}"
    )
    if total.not_sent:
        notes.append(f"{total.not_sent} requests were not sent: too many were in flight (raise in_flight_max)")
    if total.cost_unknown:
        notes.append(f"the charge of {total.cost_unknown} requests is not known here: they ended before they were told")
    if report.lag_p99_ms is not None and report.lag_p99_ms > 100:
        notes.append(f"requests were sent up to {report.lag_p99_ms:.0f} ms late (p99): this machine was the bottleneck")
    if report.interrupted:
        notes.append("interrupted: the rest of the trace was not sent")
    return notes


def _row(tenant: TenantReport) -> list[str]:
    return [
        tenant.tenant,
        str(tenant.received),
        str(tenant.ok),
        str(sum(tenant.refused.values())),
        str(sum(tenant.failed.values())),
        str(tenant.cancelled),
        _percentiles(tenant.ttft),
        _percentiles(tenant.tpot),
        f"{tenant.output_tokens_per_s:,.1f}",
        f"{tenant.settled_milli_mu / 1000:,.3f}\n({tenant.estimated_milli_mu / 1000:,.3f})",
    ]


def _percentiles(values: Percentiles) -> str:
    shown = (values.p50_ms, values.p95_ms, values.p99_ms)
    return " / ".join("-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in shown)
