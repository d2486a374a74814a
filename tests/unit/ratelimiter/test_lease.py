"""The limiter's state machine, case by case; the stateful test covers everything in between."""

from __future__ import annotations

import pytest

from common import keys
from common.clock import NS_PER_S
from fairlead.errors import ConflictError, InvalidArgumentError, NotLeaderError
from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.lease import SHARDS, Limiter, Terms
from ratelimiter.core.values import Quota, Report, Version, Workload
from tests.unit.ratelimiter.limiter_lab import LEASE_S, QUOTA, SHARD, Router, W, at, new_limiter, push


def test_one_router_gets_the_whole_quota() -> None:
    """Proves that a single router has everything, whether its tenant wants all of it or nothing."""
    limiter = new_limiter()
    router = Router(limiter, "a")
    assert router.report(0, 0) == QUOTA
    assert router.report(QUOTA, 1) == QUOTA


def test_a_router_with_all_the_demand_gets_nearly_everything() -> None:
    """Proves that one tenant on one of three routers can use 98 % of its quota within three reports."""
    limiter = new_limiter()
    a, b, c = Router(limiter, "a"), Router(limiter, "b"), Router(limiter, "c")
    for second in range(4):
        a.report(QUOTA, second)
        b.report(0, second)
        c.report(0, second)
    assert a.rate >= QUOTA * 98 // 100
    assert 0 < b.rate <= QUOTA // 100
    assert a.rate + b.rate + c.rate == QUOTA


def test_demand_that_moves_is_followed_within_three_reports() -> None:
    """Proves convergence and its order: A shrinks, acknowledges, and only then B grows; never more than the quota."""
    limiter = new_limiter()
    a, b = Router(limiter, "a"), Router(limiter, "b")
    for second in range(3):
        a.report(QUOTA, second)
        b.report(0, second)
    assert a.rate >= QUOTA * 98 // 100
    held_by_a = a.rate
    b.report(QUOTA, 3)
    assert b.rate <= QUOTA - held_by_a, "A holds it still"
    assert push(limiter, a, b, seconds=3.1) == ["a"]
    b.report(QUOTA, 4)
    assert b.rate <= QUOTA - held_by_a, "A has not acknowledged yet"
    a.report(QUOTA, 4.1)
    assert push(limiter, a, b, seconds=4.2) == ["b"]
    assert (a.rate, b.rate) == (QUOTA // 2, QUOTA // 2)


def test_without_acknowledgement_only_expiry_frees() -> None:
    """Proves that a router that vanished keeps its share out of reach for exactly one lease, guard included."""
    limiter = new_limiter()
    gone, b = Router(limiter, "a"), Router(limiter, "b")
    gone.report(QUOTA, 0)
    assert b.report(QUOTA, 1) == 0
    assert b.report(QUOTA, LEASE_S) == 0
    assert b.report(QUOTA, LEASE_S + 0.2) == QUOTA
    assert limiter.routers() == ["b"]
    assert limiter.tick(at(LEASE_S + 0.2)).routers_gone == ("a",)
    assert limiter.tick(at(LEASE_S + 0.3)).routers_gone == (), "told once"


def test_a_restarted_router_waits_for_its_own_old_lease() -> None:
    """Proves that a new process gets only what the old one does not hold, and the old one is refused from then on."""
    limiter = new_limiter()
    old = Router(limiter, "a", "old")
    old.report(QUOTA, 0)
    new = Router(limiter, "a", "new")
    assert new.report(QUOTA, 1) == 0
    with pytest.raises(ConflictError, match="replaced"):
        limiter.report(old.request(QUOTA), at(2))
    assert new.report(QUOTA, LEASE_S + 0.2) == QUOTA


def test_what_a_dead_router_holds_is_not_taken_from_the_others_twice() -> None:
    """Proves that live routers share what the dead process does not hold, in equal parts."""
    limiter = new_limiter()
    a, b = Router(limiter, "a", "old"), Router(limiter, "b")
    for second in range(3):
        a.report(QUOTA, second)
        b.report(QUOTA, second)
    assert (a.rate, b.rate) == (QUOTA // 2, QUOTA // 2)
    restarted = Router(limiter, "a", "new")
    for second in (3, 4, 5):
        restarted.report(QUOTA, second)
        b.report(QUOTA, second)
    assert (restarted.rate, b.rate) == (QUOTA // 4, QUOTA // 4)


def test_goodbye_frees_at_once_and_for_good() -> None:
    """Proves that a router that leaves gives its lease back, and that a late report of it brings nothing back."""
    limiter = new_limiter()
    a, b = Router(limiter, "a"), Router(limiter, "b")
    a.report(QUOTA, 0)
    late = a.request(QUOTA)
    limiter.leave("a", "1")
    assert limiter.outstanding(W) == 0
    with pytest.raises(ConflictError):
        limiter.report(late, at(1))
    assert b.report(QUOTA, 1) == QUOTA
    assert limiter.tick(at(1)).routers_gone == ("a",)


def test_a_smaller_quota_is_pushed_at_once() -> None:
    """Proves that routers learn of lost capacity without reporting, and grow again when it returns."""
    limiter = new_limiter()
    a, b = Router(limiter, "a"), Router(limiter, "b")
    for second in range(4):
        a.report(60_000, second - 2)
        b.report(40_000, second - 2)
    limiter.set_quotas({W: Quota(Rate(50_000), Rate(50_000))})
    assert push(limiter, a, b, seconds=2.1) == ["a", "b"]
    assert a.rate + b.rate <= 50_000
    assert limiter.outstanding(W) == QUOTA, "until they acknowledge"
    a.report(60_000, 3)
    b.report(40_000, 3)
    assert limiter.outstanding(W) <= 50_000
    limiter.set_quotas({})
    assert push(limiter, a, b, seconds=3.1) == ["a", "b"]
    assert (a.rate, b.rate) == (0, 0)


def test_small_changes_are_not_pushed() -> None:
    """Proves that noise in one router's wants writes no tables for the others."""
    limiter = new_limiter()
    a, b = Router(limiter, "a"), Router(limiter, "b")
    for second in range(3):
        a.report(50_000, second)
        b.report(40_000, second)
    push(limiter, a, b, seconds=2.5)
    a.report(52_000, 3)
    assert push(limiter, a, b, seconds=3.1) == []


def test_late_and_repeated_reports_change_nothing() -> None:
    """Proves that the network may reorder: an older report gets the newest table and extends nothing."""
    limiter = new_limiter()
    router = Router(limiter, "a")
    first = router.request(10)
    newest = limiter.report(router.request(QUOTA), at(1))
    late = limiter.report(first, at(5))
    assert (late.tables, late.report_number) == (newest.tables, 1)
    assert limiter.outstanding(W) == QUOTA
    limiter.tick(at(1 + LEASE_S + 0.2))
    assert limiter.outstanding(W) == 0, "the lease ran from the newer report, not from the late one"


def test_what_does_not_change_is_renewed_by_name() -> None:
    """Proves that a report that changes nothing makes no table, and that the leases run on all the same."""
    limiter = new_limiter()
    router = Router(limiter, "a")
    router.report(QUOTA, 0)
    table = router.table
    assert table is not None
    answer = limiter.report(router.request(QUOTA + 100), at(9))
    assert (answer.tables, answer.renewed) == ((), {SHARD: table.version})
    limiter.tick(at(15))
    assert limiter.outstanding(W) == QUOTA
    limiter.tick(at(9 + LEASE_S + 0.2))
    assert limiter.outstanding(W) == 0


def test_an_unacknowledged_table_is_sent_again() -> None:
    """Proves that a lost answer costs a second sending and no second table."""
    limiter = new_limiter()
    router = Router(limiter, "a")
    lost = limiter.report(router.request(QUOTA), at(0))
    again = limiter.report(router.request(QUOTA), at(1))
    assert again.tables == lost.tables
    assert again.report_number == 2


def test_only_the_shard_that_changes_is_made_anew() -> None:
    """Proves the cost of a change: one table of one shard, however many tenants there are."""
    limiter = Limiter(7, Terms(LEASE_S * NS_PER_S, burst_window_s=30, burst_min=MilliModelUnits(2000)))
    quotas = {Workload("m", f"t{number}"): Quota(Rate(QUOTA), Rate(QUOTA)) for number in range(500)}
    limiter.set_quotas(quotas)
    first = limiter.report(Report("a", "1", 1, {}, {}), at(0))
    assert len(first.tables) == SHARDS
    applied = {table.shard: table.version for table in first.tables}
    quotas[Workload("m", "t7")] = Quota(Rate(2 * QUOTA), Rate(QUOTA))
    limiter.set_quotas(quotas)
    second = limiter.report(Report("a", "1", 2, applied, {}), at(1))
    assert [table.shard for table in second.tables] == [keys.tenant_shard("t7", SHARDS)]
    assert len(second.renewed) == SHARDS - 1


def test_very_many_workloads_are_spread_over_some_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that one report looks at a bounded number of workloads, and that a few of them have all tables."""
    monkeypatch.setattr("ratelimiter.core.lease._LOOKED_AT_MAX", 100)
    limiter = Limiter(7, Terms(LEASE_S * NS_PER_S, burst_window_s=30, burst_min=MilliModelUnits(2000)))
    quotas = {Workload("m", f"t{number}"): Quota(Rate(QUOTA), Rate(QUOTA)) for number in range(500)}
    limiter.set_quotas(quotas)
    applied: dict[int, Version] = {}
    for number in range(1, 8):
        answer = limiter.report(Report("a", "1", number, applied, {}), at(number))
        assert sum(len(table.leases) for table in answer.tables) <= 120
        applied |= {table.shard: table.version for table in answer.tables}
    assert len(applied) == SHARDS
    limiter.set_quotas({workload: Quota(Rate(QUOTA // 2), Rate(0)) for workload in quotas})
    answer = limiter.report(Report("a", "1", 8, applied, {}), at(8))
    assert len(answer.tables) + len(answer.renewed) < SHARDS, "what may be too much now is not renewed unseen"


def test_nobody_is_left_with_nothing_while_a_quota_shrinks() -> None:
    """Proves that routers keep their parts of a smaller quota at once, each out of what it holds already."""
    limiter = new_limiter()
    a, b = Router(limiter, "a"), Router(limiter, "b")
    for second in range(3):
        a.report(QUOTA, second)
        b.report(QUOTA, second)
    limiter.set_quotas({W: Quota(Rate(QUOTA // 2), Rate(QUOTA // 2))})
    assert a.report(QUOTA, 4) == QUOTA // 4
    assert b.report(QUOTA, 4) == QUOTA // 4


def test_a_router_that_was_forgotten_starts_over() -> None:
    """Proves that a router that slept longer than a lease is welcome again, whatever table it still applies."""
    limiter = new_limiter()
    router = Router(limiter, "a")
    router.report(QUOTA, 0)
    assert router.report(QUOTA, 60) == QUOTA


def test_claims_of_unknown_tables_are_refused() -> None:
    """Proves that nobody can acknowledge what was never granted, and that a newer leader's table deposes this one."""
    limiter = new_limiter(epoch=7)
    with pytest.raises(InvalidArgumentError, match="never granted"):
        limiter.report(Report("a", "1", 1, {0: Version(7, 99)}, {}), at(0))
    with pytest.raises(NotLeaderError, match="epoch 8"):
        limiter.report(Report("a", "1", 1, {0: Version(8, 1)}, {}), at(0))


def test_what_was_granted_before_a_quota_fell_is_not_granted_on() -> None:
    """Proves that a silent router's old, larger lease gives it no claim to what another was granted since."""
    limiter = new_limiter()
    a, b = Router(limiter, "a"), Router(limiter, "b")
    for second in range(3):
        a.report(QUOTA, second - 3)
        b.report(QUOTA, second - 3)
    small = QUOTA // 10
    limiter.set_quotas({W: Quota(Rate(small), Rate(small))})
    for second in (7.0, 7.5):
        assert a.report(QUOTA, second) == small // 2
    limiter.report(a.request(0), at(8))
    assert b.report(QUOTA, 8.5) == small // 2, "a has not acknowledged that it wants nothing"
    limiter.tick(at(12))
    assert limiter.outstanding(W) <= small


def test_burst_and_safe_rate_follow_the_rate() -> None:
    """Proves burst = rate x 30 s, and safe rates that share the guarantee as the rates share the quota."""
    limiter = new_limiter(quota=90_000, guaranteed=60_000)
    a, b = Router(limiter, "a"), Router(limiter, "b")
    for second in range(3):
        a.report(60_000, second)
        b.report(30_000, second)
    assert a.table
    assert b.table
    leases = [a.table.leases[W], b.table.leases[W]]
    assert [lease.burst for lease in leases] == [30_000, 15_000]
    assert [lease.safe_rate for lease in leases] == [40_000, 20_000]


def test_a_small_quota_still_holds_a_request_at_every_router() -> None:
    """Proves the least burst: 2 MU at each of three routers, never more than the whole quota saves up in 30 s."""
    for quota, least in ((6_000, 2_000), (1_200, 600)):
        limiter = new_limiter(quota=quota)
        routers = [Router(limiter, name) for name in "abc"]
        for second in range(4):
            for router in routers:
                router.report(quota // 6, second)
        for router in routers:
            assert router.table
            assert router.table.leases[W].burst == least


def test_demand_is_the_sum_over_live_routers() -> None:
    """Proves what the allocator is told, and that routers that are gone stop counting."""
    limiter = new_limiter()
    a, b = Router(limiter, "a"), Router(limiter, "b")
    a.report(30_000, 0)
    b.report(12_000, 5)
    assert limiter.demand is not None
    demand = limiter.demand.sums()
    assert (demand[W].wants, demand[W].used) == (42_000, 21_000)
    limiter.tick(at(LEASE_S + 0.2))
    assert limiter.demand is not None
    demand = limiter.demand.sums()
    assert demand[W].wants == 12_000
