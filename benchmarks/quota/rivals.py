"""The same load on the same set-up under two other rules, measured alike."""

from __future__ import annotations

import os
from typing import Final

from rich.table import Table

from benchmarks.quota import rates
from benchmarks.quota.bench import Bench
from benchmarks.quota.rival_router import COUNTER, RULES
from benchmarks.quota.site import ROUTER
from benchmarks.quota.steady import EVERY_S, QUOTAS

WINDOW_S: Final = 62.0
FAIRLEAD: Final = "fairlead"
_COLUMNS: Final = {
    "settled over quota, all": "settled_over_quota_total_percent",
    "worst tenant and minute": "settled_over_quota_worst_tenant_and_minute_percent",
    "settled of its quota, worst tenant": "settled_of_quota_worst_tenant_percent",
}

DEFINITIONS: Final = f"""\
[bold]Other rules[/], same load, same warm-up with empty buckets, {WINDOW_S:g} s each from its end, same formulas (work
settled in the window over quota x time), no bars; Fairlead's figures are from the steady phase where that ran:
  count_after  admitted while what all routers settled in the sixty seconds before is below the quota (a window that
               slides); what is in flight is not counted. The counter is shared, a router's copy of it is at most
               0.1 s old.
  max_tokens   every request holds its price at max_tokens (four times the mean answer) until it ends."""


async def measure(bench: Bench) -> None:
    """Runs the load under each rule; the routers are started anew."""
    bench.console.print(DEFINITIONS)
    if bench.steady:
        begin_s = rates.at_s(bench.steady[0])
        same = [books for books in bench.steady if rates.at_s(books) <= begin_s + WINDOW_S + EVERY_S / 2]
        _add(bench, FAIRLEAD, same)
    for rule in RULES if bench.steady else (FAIRLEAD, *RULES):
        counter = bench.site.log_dir.parent / f"counter-{rule}"
        counter.touch()
        os.environ[COUNTER] = str(counter)
        await bench.site.start_routers(ROUTER if rule == FAIRLEAD else f"benchmarks.quota.rival_router {rule}")
        bench.samples = []
        await bench.load()
        readings = await bench.readings(f"rule {rule}", WINDOW_S, EVERY_S)
        ended = await bench.collect()
        _add(bench, rule, readings)
        truncated = sum(each.outcome == "ok" and not each.complete for each in ended.samples)
        bench.add(f"{rule}_truncated_streams", truncated)
        bench.add(f"{rule}_refused", sum(ended.refused.values()))
        await bench.drain()
    bench.console.print(_side_by_side(bench))


def _side_by_side(bench: Bench) -> Table:
    """Fairlead, where it was measured in this run, and the rivals."""
    table = Table(title="rules of admission, percent", title_justify="left")
    for column in ("rule", *_COLUMNS):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for rule in (FAIRLEAD, *RULES):
        values = [bench.report.metrics.get(f"{rule}_{name}") for name in _COLUMNS.values()]
        table.add_row(rule, *("-" if value is None else f"{value:,.1f}" for value in values))
    return table


def _add(bench: Bench, rule: str, readings: rates.Readings) -> None:
    """The same formulas for every rule."""
    settled = rates.mean_shares(readings, QUOTAS)
    worst = rates.worst_window(readings, QUOTAS, 60.0)
    bench.add(f"{rule}_settled_over_quota_total_percent", 100 * (rates.total(settled, QUOTAS) - 1))
    bench.add(f"{rule}_settled_over_quota_worst_tenant_and_minute_percent", 100 * (rates.greatest(worst.values()) - 1))
    bench.add(f"{rule}_settled_of_quota_worst_tenant_percent", 100 * rates.least(settled.values()))
