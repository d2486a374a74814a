"""Does the quota hold and is all of it usable: with every router healthy, and after one is killed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

from benchmarks.quota import rates
from benchmarks.quota.after_kill import SHORT_S, SURE_S, Kill
from benchmarks.quota.after_kill import WINDOW_S as WINDOW_S_AFTER_KILL
from benchmarks.quota.bars import LEASE_S, REPORT_S, ROUNDING_PERCENT, SLACK_S, WHOLE_AGAIN_S
from benchmarks.quota.bench import QUOTA, STREAMS, TENANTS, Bench, Machine
from benchmarks.quota.books import percentile
from benchmarks.quota.remote import Sample
from benchmarks.quota.site import MODEL, ROUTERS
from model_units.cost import CostProfile, cost
from model_units.profiles import built_in_profiles

WINDOW_S: Final = 90.0
EVERY_S: Final = 2.0
_AFTER_KILL_S: Final = 40.0
QUOTAS: Final = dict.fromkeys(TENANTS, QUOTA)

DEFINITIONS: Final = f"""\
[bold]Steady[/]: {ROUTERS} routers, {len(TENANTS)} tenants x {STREAMS} streams, buckets begun empty, {WINDOW_S:g} s.
  admitted over quota  slope over time of (settled at true cost + held in flight), over the quota, - 1; bar <= 0.5 %
  usable share         the same slope over the quota; bar >= 98 %
  truncated            answers that ended without every token they were to bring; bar 0
  books                sum of costs told to clients = settled by the routers = costs of the true lengths, which clients
                       know (cached tokens as reported); bar 0
[bold]A router killed[/]: SIGKILL under the same load; its streams move to the others.
  over after the kill  slope of what the others admit, with the dead router's leases counted as spent, over the
                       quota, - 1; bar <= 2 %. All tenants in the {SURE_S:g} s that those are sure to run; the worst
                       tenant in {WINDOW_S_AFTER_KILL:g} s (a request is 3 % of a tenant's {SURE_S:g} s); all once the
                       others have the whole quota. Without a bar, since requests are whole: the worst {SHORT_S:g} s
  whole again          until the others' leases add up to every tenant's quota; bar a lease ({LEASE_S:g} s), two
                       reports ({REPORT_S:g} s each) and {SLACK_S:g} s for reading them
  leaked               part of the quota that nobody is leased after that, worst tenant; bar 0, and
                       {ROUNDING_PERCENT:g} % for rounding"""


async def measure(bench: Bench) -> None:
    """Runs both phases."""
    bench.console.print(DEFINITIONS)
    await bench.load()
    machine, begun = Machine(bench), len(bench.samples)
    readings = await bench.readings("steady", WINDOW_S, EVERY_S)
    bench.steady = readings
    busy, own = machine.shares()
    ended = await bench.collect()
    _steady(bench, readings, bench.samples[begun:], ended.refused)
    bench.add("steady_machine_busy_percent", 100 * busy)
    bench.add("steady_own_cpu_percent", 100 * own)
    await _killed(bench)


def _steady(bench: Bench, readings: rates.Readings, samples: Sequence[Sample], refused: Counter[str]) -> None:
    admitted, settled = rates.admitted_shares(readings, QUOTAS), rates.settled_shares(readings, QUOTAS)
    done = [sample for sample in samples if sample.outcome == "ok"]
    bench.add("admitted_over_quota_worst_tenant_percent", 100 * (rates.greatest(admitted.values()) - 1))
    bench.add("admitted_over_quota_total_percent", 100 * (rates.total(admitted, QUOTAS) - 1))
    bench.add("usable_share_worst_tenant_percent", 100 * rates.least(admitted.values()))
    bench.add("usable_share_total_percent", 100 * rates.total(admitted, QUOTAS))
    bench.add("settled_over_quota_total_percent", 100 * (rates.total(settled, QUOTAS) - 1))
    worst = rates.worst_window(readings, QUOTAS, 60.0)
    bench.add("settled_over_quota_worst_tenant_and_minute_percent", 100 * (rates.greatest(worst.values()) - 1))
    bench.add("truncated_streams", sum(not sample.complete for sample in done))
    bench.add("failed_streams", len(samples) - len(done))
    bench.add("steady_requests", len(done))
    bench.add("steady_refused", sum(refused.values()))
    bench.add("steady_output_tokens_per_s", sum(sample.output_tokens for sample in done) / WINDOW_S)
    bench.add("steady_ttft_p95_ms", 1e3 * percentile((s.ttft_s for s in done if s.ttft_s is not None), 0.95))
    bench.add("estimated_over_settled", sum(s.estimated for s in done) / max(1, sum(s.settled for s in done)))


async def _killed(bench: Bench) -> None:
    site, victim = bench.site, ROUTERS - 1
    await bench.collect()
    before = await site.snapshots()
    killed_s = time.monotonic()
    await site.routers[victim].kill()
    close = await bench.readings("a router killed", WINDOW_S_AFTER_KILL, 0.5)
    _add_kill(bench, Kill(killed_s, before[victim], QUOTAS, close))
    rest = await bench.readings("a router killed, the others have it all", _AFTER_KILL_S - WINDOW_S_AFTER_KILL, EVERY_S)
    # The half-second readings would weigh their few seconds four times as much.
    whole = [*(books for books in close[::4] if rates.at_s(books) >= killed_s + WHOLE_AGAIN_S), *rest]
    later = rates.admitted_shares(whole, QUOTAS)
    bench.add("over_after_kill_whole_again_total_percent", 100 * (rates.total(later, QUOTAS) - 1))
    bench.add("usable_after_kill_worst_tenant_percent", 100 * rates.least(later.values()))
    lost = [sample for sample in (await bench.collect()).samples if sample.outcome != "ok"]
    bench.add("streams_moved_by_kill", len(lost))
    bench.add("streams_broken_by_kill", sum(bool(sample.output_tokens) for sample in lost))
    await bench.drain()
    # Its books died with it: what its clients were told cannot be held against anything any more.
    bench.samples = [sample for sample in bench.samples if sample.router != victim]
    site.routers[victim].start()
    await site.until_router(victim)


def _add_kill(bench: Bench, kill: Kill) -> None:
    """What the first twenty seconds show."""
    first, both = kill.shares(SURE_S), kill.shares(WINDOW_S_AFTER_KILL)
    bench.add("over_after_kill_worst_tenant_percent", 100 * (rates.greatest(both.values()) - 1))
    bench.add("over_after_kill_total_percent", 100 * (rates.total(first, QUOTAS) - 1))
    bench.add("over_after_kill_worst_5_s_percent", 100 * (kill.worst_short_share() - 1))
    bench.add("whole_again_s", kill.whole_again_s())
    leaked = kill.leaked(WHOLE_AGAIN_S, WHOLE_AGAIN_S + 2 * REPORT_S)
    bench.add("leaked_after_kill_worst_tenant_percent", 100 * leaked)


async def close_books(bench: Bench) -> None:
    """Closes the books of the routers that still run, against what clients were told and what engines counted.

    Args:
        bench: The run, with every sample since those routers started, and nothing in flight.
    """
    after = await bench.site.snapshots()
    profile = built_in_profiles().resolve("", MODEL.engine.hardware)
    told = [sample for sample in bench.samples if sample.router in after]
    settled = sum(sum(book.settled.values()) for book in after.values())
    done = [sample for sample in told if sample.outcome == "ok"]
    recomputed = sum(_true_cost(profile, sample) for sample in done)
    bench.add("settled_milli_mu", settled)
    bench.add("settled_minus_told_milli_mu", abs(settled - sum(s.settled for s in told)))
    bench.add("token_counts_that_differ", sum(_miscounted(sample) for sample in done))
    bench.add("settled_minus_true_costs_milli_mu", abs(settled - recomputed))
    ended = sum(sum(book.ended.values()) for book in after.values())
    bench.add("received_minus_ended", abs(sum(b.received for b in after.values()) - ended))
    bench.add("open_holds", sum(book.open_holds for book in after.values()))
    bench.add("held_milli_mu_at_end", sum(sum(book.held.values()) for book in after.values()))
    completed = sum(book.ended.get("completed", 0) for book in after.values())
    bench.add("completed_minus_told", abs(completed - sum(s.outcome == "ok" for s in told)))


def _true_cost(profile: CostProfile, sample: Sample) -> int:
    """The price of what was asked and answered; only what a prefix cache held nobody but the engine can know."""
    return cost(
        profile,
        input_tokens=sample.true_input_tokens,
        output_tokens=sample.true_output_tokens,
        cached_input_tokens=sample.cached_input_tokens,
    ).total_milli_mu


def _miscounted(sample: Sample) -> bool:
    reported = (sample.input_tokens, sample.output_tokens)
    return reported != (sample.true_input_tokens, sample.true_output_tokens)
