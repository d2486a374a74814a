"""The same load on the same set-up under two other rules."""

from __future__ import annotations

import os
from typing import Final

from rich.table import Table

from benchmarks.quota import rates
from benchmarks.quota.bench import STREAMS, TENANTS, Bench
from benchmarks.quota.remote import Ended
from benchmarks.quota.rival_router import COUNTER, RULES
from benchmarks.quota.steady import EVERY_S, QUOTAS

WINDOW_S: Final = 62.0
_SETTLING_S: Final = 3.0

DEFINITIONS: Final = f"""\
[bold]Other rules[/], same load, {WINDOW_S:g} s each, no bars:
  count_after  admitted while what all routers settled in the last minute is below the quota; what is in flight is not
               counted. The counter is shared, a router's copy of it at most 0.1 s old.
  max_tokens   every request holds its price at max_tokens (four times the mean answer) until it ends."""


async def measure(bench: Bench) -> None:
    """Runs the load under each rule; the routers are started anew."""
    bench.console.print(DEFINITIONS)
    for rule in RULES:
        counter = bench.site.log_dir.parent / f"counter-{rule}"
        counter.touch()
        os.environ[COUNTER] = str(counter)
        await bench.site.start_routers(f"benchmarks.quota.rival_router {rule}")
        bench.samples = []
        if rule == "count_after":
            # It has no bucket that could be full at first: its counter starts at 0 as it does in every new minute.
            await bench.reserve(QUOTAS)
            await bench.wait("quotas in force", _SETTLING_S)
            await bench.client.routers([address.grpc for address in bench.site.addresses])
            await bench.client.streams(dict.fromkeys(TENANTS, STREAMS))
        else:
            await bench.load(_SETTLING_S)
        readings = await bench.readings(f"rule {rule}", WINDOW_S, EVERY_S)
        ended = await bench.collect()
        _add(bench, rule, readings, ended)
        await bench.drain()
    bench.console.print(_side_by_side(bench))


def _side_by_side(bench: Bench) -> Table:
    """Fairlead, where it was measured in this run, and the rivals."""
    table = Table(title="rules of admission, percent", title_justify="left")
    for column in (
        "rule",
        "settled over quota, all",
        "worst tenant and minute",
        "usable share, worst tenant",
        "truncated",
    ):
        table.add_column(column, justify="left" if column == "rule" else "right")
    names = (
        "settled_over_quota_total_percent",
        "settled_over_quota_worst_tenant_and_minute_percent",
        "usable_share_worst_tenant_percent",
        "truncated_streams",
    )
    for rule, prefix in (("fairlead", ""), *((rule, f"{rule}_") for rule in RULES)):
        values = [bench.report.metrics.get(prefix + name) for name in names]
        table.add_row(rule, *("-" if value is None else f"{value:,.1f}" for value in values))
    return table


def _add(bench: Bench, rule: str, readings: rates.Readings, ended: Ended) -> None:
    admitted = rates.mean_shares(readings, QUOTAS)
    worst = rates.worst_window(readings, QUOTAS, 60.0)
    report = bench.report
    report.add(f"{rule}_settled_over_quota_total_percent", 100 * (rates.total(admitted, QUOTAS) - 1))
    report.add(f"{rule}_settled_over_quota_worst_tenant_and_minute_percent", 100 * (max(worst.values()) - 1))
    report.add(f"{rule}_usable_share_worst_tenant_percent", 100 * min(admitted.values()))
    report.add(f"{rule}_truncated_streams", sum(each.outcome == "ok" and not each.complete for each in ended.samples))
    report.add(f"{rule}_refused", sum(ended.refused.values()))
