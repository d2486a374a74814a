"""Does the quota hold and is all of it usable: with every router healthy, and after one is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from benchmarks.quota import rates
from benchmarks.quota.bench import QUOTA, STREAMS, TENANTS, Bench, Machine
from benchmarks.quota.books import lease_sums, percentile, shares
from benchmarks.quota.remote import Sample
from benchmarks.quota.site import MODEL, ROUTERS
from benchmarks.report import Bar
from model_units.cost import CostProfile, cost
from model_units.profiles import built_in_profiles

WINDOW_S: Final = 90.0
EVERY_S: Final = 2.0
LEASE_S: Final = 10.0
"""ratelimiter's lease_s."""
_SETTLING_S: Final = 10.0
_AFTER_KILL_S: Final = 36.0
_WHOLE: Final = 0.99
QUOTAS: Final = dict.fromkeys(TENANTS, QUOTA)

DEFINITIONS: Final = f"""\
[bold]Steady[/]: {ROUTERS} routers, {len(TENANTS)} tenants x {STREAMS} streams, buckets begun empty, {WINDOW_S:g} s.
  admitted over quota  slope over time of (settled at true cost + held in flight), over the quota, - 1; bar <= 0.5 %
  usable share         the same slope over the quota; bar >= 98 %
  truncated            answers that ended without every token they were to bring; bar 0
  books                sum of costs told to clients = settled by the routers = costs of the engines' counts; bar 0
[bold]A router killed[/]: SIGKILL under the same load; its streams move to the others.
  over after the kill  admitted by the others from the kill to two lease times later, over quota x time, - 1; bar <= 2 %
  leaked               part of the quota not admitted in the {_AFTER_KILL_S:g} s that begin one lease time (and two
                       reports) after the kill; bar <= 2 %: what is missing there for good is 0 (whole_again_s)"""


async def measure(bench: Bench) -> None:
    """Runs both phases."""
    bench.console.print(DEFINITIONS)
    await bench.load(_SETTLING_S)
    machine, begun = Machine(bench), len(bench.samples)
    readings = await bench.readings("steady", WINDOW_S, EVERY_S)
    busy, own = machine.shares()
    ended = await bench.collect()
    _steady(bench, readings, bench.samples[begun:], ended.refused)
    bench.report.add("steady_machine_busy_percent", 100 * busy)
    bench.report.add("steady_own_cpu_percent", 100 * own, Bar(80.0))
    await _killed(bench)


def _steady(bench: Bench, readings: rates.Readings, samples: Sequence[Sample], refused: Counter[str]) -> None:
    report = bench.report
    admitted, settled = rates.admitted_shares(readings, QUOTAS), rates.settled_shares(readings, QUOTAS)
    done = [sample for sample in samples if sample.outcome == "ok"]
    report.add("admitted_over_quota_worst_tenant_percent", 100 * (max(admitted.values()) - 1), Bar(0.5))
    report.add("admitted_over_quota_total_percent", 100 * (rates.total(admitted, QUOTAS) - 1), Bar(0.5))
    report.add("usable_share_worst_tenant_percent", 100 * min(admitted.values()), Bar(98.0, at_most=False))
    report.add("usable_share_total_percent", 100 * rates.total(admitted, QUOTAS), Bar(98.0, at_most=False))
    report.add("settled_over_quota_total_percent", 100 * (rates.total(settled, QUOTAS) - 1))
    worst = rates.worst_window(readings, QUOTAS, 60.0)
    report.add("settled_over_quota_worst_tenant_and_minute_percent", 100 * (max(worst.values()) - 1))
    report.add("truncated_streams", sum(not sample.complete for sample in done), Bar(0.0))
    report.add("failed_streams", len(samples) - len(done), Bar(0.0))
    report.add("steady_requests", len(done))
    report.add("steady_refused", sum(refused.values()))
    report.add("steady_output_tokens_per_s", sum(sample.output_tokens for sample in done) / WINDOW_S)
    report.add("steady_ttft_p95_ms", 1e3 * percentile((s.ttft_s for s in done if s.ttft_s is not None), 0.95))
    report.add("estimated_over_settled", sum(s.estimated for s in done) / max(1, sum(s.settled for s in done)))


async def _killed(bench: Bench) -> None:
    report, site, victim = bench.report, bench.site, ROUTERS - 1
    await bench.collect()
    before = await site.snapshots()
    await site.routers[victim].kill()
    del before[victim]
    first = await bench.readings("a router killed", LEASE_S + EVERY_S, 0.5)
    second = await bench.readings("a router killed, leases expired", LEASE_S - EVERY_S, 1.0)
    over = shares(before, second[-1], QUOTAS)
    report.add("over_after_kill_worst_tenant_percent", 100 * (max(s.admitted for s in over.values()) - 1), Bar(2.0))
    total = sum(share.admitted for share in over.values()) / len(over)
    report.add("over_after_kill_total_percent", 100 * (total - 1), Bar(2.0))
    report.add("whole_again_s", _whole_again_s(before[0].at_s, [*first, *second]))
    rest = await bench.readings("a router killed, the others have it all", _AFTER_KILL_S - len(second), EVERY_S)
    later = rates.admitted_shares([*second, *rest], QUOTAS)
    report.add("leaked_after_kill_total_percent", max(0.0, 100 * (1 - rates.total(later, QUOTAS))), Bar(2.0))
    report.add("usable_after_kill_worst_tenant_percent", 100 * min(later.values()), Bar(98.0, at_most=False))
    lost = [sample for sample in (await bench.collect()).samples if sample.outcome != "ok"]
    broken = [sample for sample in lost if sample.output_tokens]
    report.add("streams_moved_by_kill", len(lost))
    report.add("streams_broken_by_kill", len(broken))
    await bench.drain()
    # Its books died with it: what its clients were told cannot be held against anything any more.
    bench.samples = [sample for sample in bench.samples if sample.router != victim]
    site.routers[victim].start()
    await site.until_router(victim)


def _whole_again_s(killed_s: float, readings: rates.Readings) -> float:
    """How long until the leases of the routers that are left add up to every tenant's quota again."""
    for found in readings:
        sums = lease_sums(found.values())
        if all(sums[tenant] >= _WHOLE * quota for tenant, quota in QUOTAS.items()):
            return max(book.at_s for book in found.values()) - killed_s
    return float("nan")


async def close_books(bench: Bench) -> None:
    """Closes the books of the routers that still run, against what clients were told and what engines counted.

    Args:
        bench: The run, with every sample since those routers started, and nothing in flight.
    """
    after = await bench.site.snapshots()
    report, profile = bench.report, built_in_profiles().resolve("", MODEL.engine.hardware)
    told = [sample for sample in bench.samples if sample.router in after]
    settled = sum(sum(book.settled.values()) for book in after.values())
    recomputed = sum(_true_cost(profile, sample) for sample in told if sample.outcome == "ok")
    report.add("settled_milli_mu", settled)
    report.add("settled_minus_told_milli_mu", abs(settled - sum(s.settled for s in told)), Bar(0.0))
    report.add("settled_minus_true_costs_milli_mu", abs(settled - recomputed), Bar(0.0))
    ended = sum(sum(book.ended.values()) for book in after.values())
    report.add("received_minus_ended", abs(sum(b.received for b in after.values()) - ended), Bar(0.0))
    report.add("open_holds", sum(book.open_holds for book in after.values()), Bar(0.0))
    report.add("held_milli_mu_at_end", sum(sum(book.held.values()) for book in after.values()), Bar(0.0))
    completed = sum(book.ended.get("completed", 0) for book in after.values())
    report.add("completed_minus_told", abs(completed - sum(s.outcome == "ok" for s in told)), Bar(0.0))


def _true_cost(profile: CostProfile, sample: Sample) -> int:
    return cost(
        profile,
        input_tokens=sample.input_tokens,
        output_tokens=sample.output_tokens,
        cached_input_tokens=sample.cached_input_tokens,
    ).total_milli_mu
