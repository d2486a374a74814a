"""What a router reports as wanted, case by case; tests/stateful/test_demand_model.py has the rest."""

from __future__ import annotations

import random

import pytest

from data_plane.router.core.demand import Demand, WantRow
from data_plane.router.core.holds import BucketKey

SECOND = 1_000_000_000
A: BucketKey = ("a", "m")
B: BucketKey = ("b", "m")


def report(demand: Demand, now_ns: int) -> dict[BucketKey, WantRow]:
    return {(row.tenant_id, row.model_id): row for row in demand.report(now_ns, held={}, waiting={})}


def wants(demand: Demand, now_ns: int) -> int:
    return report(demand, now_ns)[A].wants_milli_mu_per_minute


def test_wants_rise_within_two_seconds_and_fall_slowly() -> None:
    """A tenant that returns is seen at most of its demand in 2 s; ten seconds of silence do not erase it."""
    demand = Demand()
    for tick in range(20):
        demand.wanted(A, 100, tick * SECOND // 10)
    assert wants(demand, 2 * SECOND) > 0.55 * 60_000
    assert wants(demand, 12 * SECOND) > 2_000


@pytest.mark.parametrize("interval_s", [0.2, 1.0])
def test_steady_demand_is_reported_as_it_is_however_often(interval_s: float) -> None:
    """100 per tenth of a second are 60,000 per minute; settled work likewise."""
    demand = Demand()
    next_ns, row = 0, None
    for tick in range(1_200):
        now_ns = tick * SECOND // 10
        if now_ns >= next_ns:
            row = report(demand, now_ns).get(A)
            next_ns = now_ns + int(interval_s * SECOND)
        demand.wanted(A, 100, now_ns)
        demand.used(A, 50, now_ns)
    assert row is not None
    assert row.wants_milli_mu_per_minute == pytest.approx(60_000, rel=0.01)
    assert row.used_milli_mu_per_minute == pytest.approx(30_000, rel=0.01)


def test_reports_hold_what_matters_and_forget_the_rest() -> None:
    """Waiting and held work is reported without any fresh demand; a tenant long quiet is not."""
    demand = Demand()
    demand.wanted(A, 100, 0)
    demand.used(A, 80, 0)
    rows = demand.report(0, held={A: 7}, waiting={B: 50})
    assert [(row.tenant_id, row.held_milli_mu) for row in rows] == [("a", 7), ("b", 0)]
    assert rows[1].wants_milli_mu_per_minute == 100
    assert demand.report(3600 * SECOND, held={}, waiting={}) == ()
    assert [row.tenant_id for row in demand.report(3600 * SECOND, held={A: 1}, waiting={})] == ["a"]


def test_rows_are_sorted_by_model_then_tenant() -> None:
    """However they came, and after some have gone."""
    demand = Demand()
    for key in (("b", "n"), ("a", "n"), ("z", "m"), ("c", "m")):
        demand.wanted(key, 10, 0)
    assert list(report(demand, 0)) == [("c", "m"), ("z", "m"), ("a", "n"), ("b", "n")]
    later_ns = 3600 * SECOND
    assert report(demand, later_ns) == {}
    demand.wanted(("d", "m"), 10, later_ns)
    demand.wanted(("a", "n"), 10, later_ns)
    demand.wanted(("e", "n"), 0, later_ns)
    assert list(report(demand, later_ns + SECOND)) == [("d", "m"), ("a", "n")]


def returned(demand: Demand, *, short: bool, per_second: int, seconds: float) -> int:
    """Wants seen after an owner of 60,000 per minute returned, with reports each second and, when notable, 0.2 s."""
    amount, now_ns, reported_ns = 1_000 // per_second, 0, 0
    report(demand, 0)
    seen = 0
    while now_ns <= seconds * SECOND:
        demand.wanted(A, amount, now_ns)
        if short:
            demand.short(A, now_ns)
        if now_ns - reported_ns >= (SECOND // 5 if demand.notable else SECOND):
            seen, reported_ns = wants(demand, now_ns), now_ns
        now_ns += SECOND // per_second
    return max(seen, wants(demand, now_ns))


def test_an_owner_short_of_quota_is_seen_at_nearly_all_it_wants_within_half_a_second() -> None:
    """A step from nothing to 60,000 per minute: 80 % of it after half a second, a fifth of it without the surge."""
    assert 0.8 * 60_000 < returned(Demand(), short=True, per_second=50, seconds=0.5) <= 1.1 * 60_000
    assert 0.7 * 60_000 < returned(Demand(), short=True, per_second=10, seconds=0.5) <= 1.25 * 60_000
    assert returned(Demand(), short=False, per_second=50, seconds=0.5) < 0.3 * 60_000


def test_a_tenant_that_never_was_quiet_is_seen_too() -> None:
    """From a tenth of its reservation to all of it: most of it within 0.8 s, thanks to the reports it makes notable."""
    demand = Demand()
    now_ns, reported_ns, risen_ns = 0, 0, 5 * SECOND
    while now_ns <= risen_ns + 8 * SECOND // 10:
        if now_ns - reported_ns >= (SECOND // 5 if demand.notable else SECOND):
            report(demand, now_ns)
            reported_ns = now_ns
        demand.wanted(A, 20 if now_ns >= risen_ns else 2, now_ns)
        if now_ns >= risen_ns:
            demand.short(A, now_ns)
        now_ns += SECOND // 50
    assert 0.7 * 60_000 < wants(demand, now_ns) <= 1.1 * 60_000


def test_a_rise_is_notable_once_until_the_next_report() -> None:
    """Short of quota and more than an eighth over the last report wakes the router; the report puts it to rest."""
    demand = Demand()
    woken: list[int] = []
    demand.on_notable(lambda: woken.append(1))
    report(demand, 0)
    demand.wanted(A, 1_000, SECOND)
    assert not demand.notable
    for _ in range(3):
        demand.short(A, SECOND)
    assert demand.notable
    assert woken == [1]
    report(demand, SECOND)
    assert not demand.notable


def test_what_is_steady_or_covered_is_not_notable() -> None:
    """A tenant refused all the time at the same demand needs no early report, nor does one whose quota is enough."""
    demand = Demand()
    for tick in range(3_000):
        now_ns = tick * SECOND // 100
        if tick % 100 == 0:
            report(demand, now_ns)
        demand.wanted(A, 100, now_ns)
        if tick > 1_000:
            demand.short(A, now_ns)
            assert not demand.notable
    demand.wanted(B, 10**9, 30 * SECOND)
    assert not demand.notable


def test_the_surge_does_not_overstate_random_traffic() -> None:
    """Ten requests per second at random times, short of quota all along: wants are 0 to 15 % too high on average."""
    demand, chance = Demand(), random.Random(3)
    seen, now_s, next_s = [], 0.0, 1.0
    while now_s < 600.0:
        now_s += chance.expovariate(10.0)
        while next_s <= now_s:
            row = report(demand, int(next_s * SECOND)).get(A)
            if next_s > 60.0 and row is not None:
                seen.append(row.wants_milli_mu_per_minute)
            next_s += 1.0
        demand.wanted(A, 100, int(now_s * SECOND))
        demand.short(A, int(now_s * SECOND))
    mean = sum(seen) / len(seen)
    assert 60_000 <= mean <= 1.15 * 60_000
