"""The arithmetic of bench-quota: books, rates, workload, and the rules it compares with."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path

import pytest

from benchmarks.quota import bars, cores, rates
from benchmarks.quota.__main__ import LIVE
from benchmarks.quota.after_kill import SURE_S, WINDOW_S, Kill
from benchmarks.quota.bars import BARS, LEASE_S, REPORT_S, WHOLE_AGAIN_S
from benchmarks.quota.books import Snapshot, lease_sums, parse, percentile, shares
from benchmarks.quota.rival_router import COUNTER, CountAfterHolds, MaxTokensPricing, SharedCounter
from benchmarks.quota.workload import MAX_TOKENS, OUTPUT_TOKENS_MEAN, lengths, pool
from benchmarks.report import Report
from data_plane.router.core.holds import Hold, LeaseTerms, Refusal, Refused
from engines.simulated.engine import BYTES_PER_TOKEN
from engines.simulated.text import OutputText
from model_units.length import OutputLengthEstimator
from model_units.profiles import built_in_profiles
from model_units.text import BytesPerToken

PAGE = """\
# HELP fairlead_router_requests_received_total Requests that arrived.
fairlead_router_requests_received_total 12.0
fairlead_router_requests_finished_total{tenant="a",model="m",outcome="completed",reason=""} 7.0
fairlead_router_requests_finished_total{tenant="b",model="m",outcome="refused",reason="QUOTA_HELD"} 3.0
fairlead_router_requests_finished_total{tenant="a",model="m",outcome="refused",reason="QUOTA_HELD"} 1.0
fairlead_router_settled_milli_mu_total{tenant="a",model="m"} 500.0
fairlead_router_held_milli_mu{tenant="a",model="m"} 40.0
fairlead_router_open_holds 1.0
fairlead_router_lease_milli_mu_per_minute{tenant="a",model="m"} 3e+03
"""


def test_a_metrics_page_becomes_the_routers_books() -> None:
    """Counters are read by tenant and by outcome; what is not of the router is passed over."""
    found = parse(PAGE, 5.0)
    assert (found.received, found.open_holds, found.at_s) == (12, 1, 5.0)
    assert dict(found.ended) == {"completed": 7, "refused": 4}
    assert found.admitted("a") == 540
    assert found.admitted("b") == 0
    assert lease_sums([found, found]) == {"a": 6000}


def _steady(rate_per_s: float, start: int, seconds: int, held: int = 0) -> list[dict[int, Snapshot]]:
    return [
        {r: Snapshot(float(t), {"a": round(start + rate_per_s * t / 2)}, {"a": held}) for r in (0, 1)}
        for t in range(seconds)
    ]


def test_a_steady_rate_at_the_quota_is_a_share_of_one() -> None:
    """Slope, mean and worst window agree on traffic without noise, whatever was settled before it."""
    readings, quotas = _steady(100.0, 7_000, 90), {"a": 6_000}
    assert rates.admitted_shares(readings, quotas)["a"] == pytest.approx(1.0)
    assert rates.settled_shares(readings, quotas)["a"] == pytest.approx(1.0)
    assert rates.mean_shares(readings, quotas)["a"] == pytest.approx(1.0)
    assert rates.worst_window(readings, quotas, 60.0)["a"] == pytest.approx(1.0)


def test_over_admission_shows() -> None:
    """A tenth above the quota is measured as a tenth above the quota, by every measure."""
    readings, quotas = _steady(110.0, 0, 90), {"a": 6_000}
    assert rates.admitted_shares(readings, quotas)["a"] == pytest.approx(1.1)
    assert rates.total(rates.admitted_shares(readings, quotas), quotas) == pytest.approx(1.1)
    assert rates.worst_window(readings, quotas, 60.0)["a"] == pytest.approx(1.1)
    assert shares(readings[0], readings[60], quotas)["a"].admitted == pytest.approx(1.1)


def test_a_burst_shows_in_the_worst_minute() -> None:
    """The worst minute is the worst one, not the mean of all."""
    readings = _steady(0.0, 0, 61) + [{0: Snapshot(61.0 + t, {"a": 9_000}), 1: Snapshot(61.0 + t)} for t in range(60)]
    assert rates.worst_window(readings, {"a": 6_000}, 60.0)["a"] == pytest.approx(1.5)
    assert rates.mean_shares(readings, {"a": 6_000})["a"] == pytest.approx(0.75)


_QUOTA = 18_000
"""mMU per minute: 300 a second, 100 of them leased to each of three routers."""


def _kill(of_leased: float, whole_at_s: float = LEASE_S, whole: int = _QUOTA) -> Kill:
    """A record of two survivors that admit so much of what they are leased while the dead router's lease runs, and from
    `whole_at_s` on are leased `whole` together and admit just that."""
    readings = []
    for half_s in range(61):
        at_s = half_s / 2
        early_s, late_s = min(at_s, whole_at_s), max(0.0, at_s - whole_at_s)
        admitted = 100 * of_leased * early_s + whole / 120 * late_s
        leased = _QUOTA // 3 if at_s < whole_at_s else whole // 2
        readings.append({r: Snapshot(at_s, {"a": round(admitted)}, {}, {"a": leased}) for r in (0, 1)})
    return Kill(0.0, Snapshot(0.0, lease_rates={"a": _QUOTA // 3}), {"a": _QUOTA}, readings)


def test_survivors_that_admit_what_they_are_leased_are_not_over() -> None:
    """Whether their leases grow when the dead router's has run out, or a little later."""
    for whole_at_s in (LEASE_S - REPORT_S, LEASE_S + REPORT_S):
        kill = _kill(1.0, whole_at_s)
        assert kill.shares(SURE_S)["a"] == pytest.approx(1.0, abs=1e-3)
        assert kill.shares(WINDOW_S)["a"] < 1.001
        assert kill.worst_short_share() < 1.001


def test_survivors_that_admit_130_percent_until_the_lease_expires_miss_the_bars() -> None:
    """Their excess shows although they hold two thirds of the quota only: the last third may have been spent."""
    kill, bars_ = _kill(1.3), BARS["steady"]
    assert kill.shares(SURE_S)["a"] == pytest.approx(1.2, abs=1e-3)
    assert not bars_["over_after_kill_total_percent"].holds(100 * (kill.shares(SURE_S)["a"] - 1))
    assert not bars_["over_after_kill_worst_tenant_percent"].holds(100 * (kill.shares(WINDOW_S)["a"] - 1))
    assert kill.worst_short_share() == pytest.approx(1.2, abs=1e-3)


def test_leases_that_are_given_away_before_they_expired_miss_the_bar() -> None:
    """Survivors that are leased the whole quota five seconds too early admit what the dead router may have spent."""
    kill = _kill(1.0, whole_at_s=LEASE_S / 2)
    assert not BARS["steady"]["over_after_kill_total_percent"].holds(100 * (kill.shares(SURE_S)["a"] - 1))


def test_what_nobody_is_leased_after_one_lease_time_is_leaked() -> None:
    """Nothing where the leases add up again; the part that stays away; no number, and no bar met, without readings."""
    window, bar = (WHOLE_AGAIN_S, WHOLE_AGAIN_S + 2), BARS["steady"]["leaked_after_kill_worst_tenant_percent"]
    good, late, leaky = _kill(1.0), _kill(1.0, whole_at_s=WHOLE_AGAIN_S + 5), _kill(1.0, whole=_QUOTA * 99 // 100)
    assert good.whole_again_s() == LEASE_S
    assert bar.holds(100 * good.leaked(*window))
    assert late.leaked(*window) == pytest.approx(1 / 3)
    assert not BARS["steady"]["whole_again_s"].holds(late.whole_again_s())
    assert not bar.holds(100 * leaky.leaked(*window))
    assert math.isnan(leaky.whole_again_s())
    assert not BARS["steady"]["whole_again_s"].holds(leaky.whole_again_s())
    assert math.isnan(good.leaked(100.0, 110.0))
    assert not bar.holds(100 * good.leaked(100.0, 110.0))


def test_what_was_not_measured_meets_no_bar() -> None:
    """A value that is no number is the greatest and the least of all, and a bar nobody measured is added as missed."""
    for values in ([1.0, math.nan], [math.nan, 1.0], []):
        assert math.isnan(rates.greatest(values))
        assert math.isnan(rates.least(values))
    assert (rates.greatest([1.0, 3.0]), rates.least([1.0, 3.0])) == (3.0, 1.0)
    assert math.isnan(rates.worst_window(_steady(100.0, 0, 10), {"a": 6_000}, 60.0)["a"])
    report = Report("quota")
    bars.add(report, "owner_back_max_s", 0.5)
    bars.miss(report, ["owners"])
    held = {name: bar.holds(report.metrics[name]) for name, bar in report.bars.items()}
    assert held == {"owner_back_max_s": True, "owner_admitted_in_2s_over_reservation_min": False}


def test_every_bar_belongs_to_a_phase() -> None:
    """So that a phase that is never reached leaves its bars in the report, as missed."""
    assert set(BARS) <= {*LIVE, *cores.CORES}


def test_what_is_in_flight_counts_as_admitted_and_a_dead_router_does_not_count() -> None:
    """Holds count at what they hold; a router that is gone leaves its time and its work out."""
    before = {0: Snapshot(0.0), 1: Snapshot(0.0, {"a": 100}, {"a": 50})}
    after = {0: Snapshot(60.0, {"a": 500}, {"a": 250})}
    found = shares(before, after, {"a": 1_000})["a"]
    assert (found.admitted, found.settled) == (pytest.approx(0.75), pytest.approx(0.5))


def test_percentile() -> None:
    """The smallest value that so many do not exceed, and no number without values."""
    assert percentile(range(1, 101), 0.95) == 95
    assert percentile([3.0], 0.95) == 3.0
    assert math.isnan(percentile([], 0.5))


def test_requests_end_where_they_should_and_nothing_tells_it_before() -> None:
    """The engine's own text gives every request exactly the length that is expected of it, below max_tokens."""
    items = pool(10, seed=3)
    assert items == pool(10, seed=3)
    for item in items:
        assert OutputText(item.prompt, max_tokens=MAX_TOKENS, seed=item.seed).tokens == item.output_tokens
        assert item.output_tokens < MAX_TOKENS
        assert len(item.prompt) == item.input_tokens * BYTES_PER_TOKEN
    assert len({item.prompt for item in items}) == len(items)


def test_lengths_are_log_normal() -> None:
    """Mean and spread of the drawn answers are those that the module states, but for the cut at max_tokens."""
    drawn = [out for _, out in lengths(4_000, random.Random(1))]
    assert statistics.mean(drawn) == pytest.approx(OUTPUT_TOKENS_MEAN, rel=0.1)
    assert statistics.stdev(map(math.log, drawn)) == pytest.approx(0.9, rel=0.1)


def test_the_shared_counter_counts_every_router(tmp_path: Path) -> None:
    """What one router settles, another one sees."""
    path = tmp_path / "counter"
    path.touch()
    one, other = SharedCounter(path), SharedCounter(path)
    one.add(("a", "m"), 30)
    one.add(("b", "m"), 5)
    assert other.used(("a", "m")) == 30


def test_count_after_admits_what_is_in_flight_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule's known fault: any number of requests in flight passes until the first of them is settled."""
    path = tmp_path / "counter"
    path.touch()
    monkeypatch.setenv(COUNTER, str(path))
    monkeypatch.setattr("benchmarks.quota.rival_router._COPY_AGE_S_MAX", 0.0)
    holds, key = CountAfterHolds(), ("a", "m")
    holds.apply({key: LeaseTerms(10, 5, 0, quota_milli_mu_per_minute=100)}, expires_ns=10**12, now_ns=0)
    taken = [holds.hold(key, 90, 0) for _ in range(50)]
    assert all(isinstance(hold, Hold) for hold in taken)
    for hold in taken[:2]:
        assert isinstance(hold, Hold)
        holds.settle(hold, 60, 1)
    refused = holds.hold(key, 90, 2)
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.USED_UP


def test_the_max_tokens_rule_holds_the_price_at_max_tokens() -> None:
    """Whatever was learnt, the estimate is the request's limit."""
    pricing = MaxTokensPricing(OutputLengthEstimator(), BytesPerToken())
    price = pricing.estimate(
        built_in_profiles().resolve("", "h100"),
        tenant_id="a",
        model_id="m",
        prompt_bytes=400,
        messages=0,
        max_tokens=777,
        runs_to_max=False,
        bytes_per_token_start=4.0,
    )
    assert price.output_tokens == 777
