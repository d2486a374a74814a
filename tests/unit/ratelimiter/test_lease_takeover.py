"""What the limiter's next leader learns from the tables that are stored, case by case."""

from __future__ import annotations

from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.lease import Limiter
from ratelimiter.core.values import Quota, Version
from tests.unit.ratelimiter.limiter_lab import LEASE_S, QUOTA, Router, W, at, new_limiter


def test_takeover_counts_what_was_granted_before() -> None:
    """Proves learning: until the old tables are acknowledged or run out, nothing beyond the quota is granted."""
    before = new_limiter(epoch=7)
    a, b = Router(before, "a"), Router(before, "b")
    for second in range(3):
        a.report(QUOTA, second)
        b.report(QUOTA, second)
    stored = [router.table for router in (a, b) if router.table]
    after = new_limiter(epoch=8)
    after.learn(stored, at(10))
    assert after.outstanding(W) == QUOTA
    assert after.demand is None, "nobody has been heard"
    newcomer = Router(after, "c")
    assert newcomer.report(QUOTA, 10.5) == 0
    a.limiter = b.limiter = after
    for second in (11, 12, 13):
        for router in (a, b, newcomer):
            router.report(QUOTA, second)
    third = QUOTA // 3
    assert all(abs(router.rate - third) <= 1 for router in (a, b, newcomer))
    assert after.demand is not None
    demand = after.demand.sums()
    assert demand[W].wants == 3 * QUOTA


def test_a_table_is_restated_once_its_predecessor_is_acknowledged() -> None:
    """Proves that the next leader is not told of what nobody can spend any more: it would grant that much less."""
    limiter = new_limiter()
    a, b = Router(limiter, "a"), Router(limiter, "b")
    a.report(QUOTA, 0)
    b.report(QUOTA, 1)
    a.report(QUOTA, 2)
    assert a.table
    assert a.table.outstanding
    a.report(QUOTA, 3)
    assert not a.table.outstanding
    version = a.table.version
    a.report(QUOTA, 4)
    assert a.table.version == version


def test_takeover_knows_of_tables_that_were_not_acknowledged() -> None:
    """Proves the handover field: a table that shrank counts as the larger one its router may still apply."""
    before = new_limiter(epoch=7)
    a, b = Router(before, "a"), Router(before, "b")
    a.report(QUOTA, 0)
    b.report(QUOTA, 1)
    (shrunk,) = before.tick(at(1)).tables
    assert shrunk.leases[W].rate == QUOTA // 2
    assert shrunk.outstanding[W] == QUOTA
    after = new_limiter(epoch=8)
    after.learn([shrunk], at(2))
    assert after.outstanding(W) == QUOTA
    b.limiter = after
    assert b.report(QUOTA, 3) == 0


def test_takeover_does_not_revive_a_lease_that_had_ended() -> None:
    """Proves that a stored lease that ran out, and was granted to another, is not granted again by the next leader."""
    before = new_limiter(epoch=7)
    a, b = Router(before, "a"), Router(before, "b")
    assert a.report(QUOTA, 0) == QUOTA
    assert b.report(QUOTA, LEASE_S - 1) == 0
    assert b.report(QUOTA, LEASE_S + 1) == QUOTA, "a's has ended"
    after = Limiter(8, before._terms)
    after.learn([router.table for router in (a, b) if router.table], at(LEASE_S + 2))
    after.set_quotas({W: Quota(Rate(QUOTA), Rate(QUOTA))})
    a.limiter = b.limiter = after
    assert a.report(QUOTA, LEASE_S + 3) == 0, "b may be spending all of it"
    for second in (4, 5, 6):
        b.report(QUOTA, LEASE_S + second)
        a.report(QUOTA, LEASE_S + second)
    assert (a.rate, b.rate) == (QUOTA // 2, QUOTA // 2)


def test_takeover_that_learned_no_more_than_the_quota_splits_a_smaller_one_at_once() -> None:
    """Proves that nobody is left with nothing when a quota shrinks right after a takeover."""
    before = new_limiter(epoch=7)
    a, b = Router(before, "a"), Router(before, "b")
    for second in range(3):
        a.report(QUOTA, second)
        b.report(QUOTA, second)
    after = Limiter(8, before._terms)
    after.learn([router.table for router in (a, b) if router.table], at(3))
    after.set_quotas({W: Quota(Rate(QUOTA), Rate(QUOTA))})
    after.set_quotas({W: Quota(Rate(QUOTA // 2), Rate(QUOTA // 2))})
    a.limiter = b.limiter = after
    assert a.report(QUOTA, 4) == QUOTA // 4
    assert b.report(QUOTA, 4) == QUOTA // 4


def test_same_leader_that_starts_over_goes_on_counting() -> None:
    """Proves that table numbers grow within an epoch even when its limiter is built anew."""
    before = new_limiter(epoch=7)
    router = Router(before, "a")
    router.report(QUOTA, 0)
    before.set_quotas({W: Quota(Rate(QUOTA // 2), Rate(QUOTA // 2))})
    router.report(QUOTA, 1)
    assert router.table
    granted = router.table.version
    again = new_limiter(epoch=7)
    again.learn([router.table], at(5))
    router.limiter = again
    router.report(QUOTA, 6)
    assert router.table.version > granted > Version(7, 1)
