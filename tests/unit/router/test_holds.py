"""The token buckets, case by case; tests/stateful/test_holds_model.py has the rest."""

from __future__ import annotations

import pytest

from data_plane.router.core.holds import BucketKey, Hold, Holds, LeaseTerms, Refusal, Refused

KEY: BucketKey = ("acme", "tiny")
SECOND = 1_000_000_000
HOUR = 3600 * SECOND


def holds(rate: int = 60_000, burst: int = 30_000, safe: int = 6_000, expires_ns: int = HOUR) -> Holds:
    made = Holds()
    made.apply({KEY: LeaseTerms(rate, burst, safe)}, expires_ns=expires_ns, now_ns=0)
    return made


def granted(answer: Hold | Refused) -> Hold:
    assert isinstance(answer, Hold)
    return answer


def refused(answer: Hold | Refused) -> Refused:
    assert isinstance(answer, Refused)
    return answer


def level(made: Holds, now_ns: int = 0) -> int:
    return made.view(KEY, now_ns).level_milli_mu


def test_a_first_lease_starts_with_a_full_burst() -> None:
    """The documented example: 30,000 at once, then 1,000 per second."""
    made = holds()
    granted(made.hold(KEY, 30_000, 0))
    assert refused(made.hold(KEY, 1_000, 0)).retry_after_s == 1.0
    assert isinstance(made.hold(KEY, 1_000, SECOND), Hold)


def test_used_up_and_held_are_told_apart() -> None:
    """What open requests hold could come back; what was settled could not."""
    made = holds()
    hold = granted(made.hold(KEY, 30_000, 0))
    assert refused(made.hold(KEY, 1, 0)).refusal is Refusal.HELD
    made.settle(hold, 30_000, 0)
    assert refused(made.hold(KEY, 1, 0)).refusal is Refusal.USED_UP


def test_more_than_the_burst_is_too_small_a_quota_and_nothing_without_a_lease() -> None:
    """Neither is worth waiting for at this rate, so neither names a time."""
    made = holds()
    assert made.hold(KEY, 30_001, 0) == Refused(Refusal.TOO_SMALL, None)
    assert made.hold(("other", "tiny"), 1, 0) == Refused(Refusal.NO_LEASE, None)


def test_settling_cheaper_gives_back_and_dearer_leaves_a_debt() -> None:
    """The level ends where the true cost puts it."""
    made = holds()
    made.settle(granted(made.hold(KEY, 10_000, 0)), 4_000, 0)
    assert level(made) == 26_000
    made.settle(granted(made.hold(KEY, 10_000, 0)), 50_000, 0)
    assert level(made) == -24_000
    assert refused(made.hold(KEY, 1_000, 0)).retry_after_s == 25.0


def test_an_extension_is_never_refused() -> None:
    """A running stream goes into debt instead of being cut."""
    made = holds()
    hold = granted(made.hold(KEY, 30_000, 0))
    made.extend(hold, 5_000, 0)
    assert level(made) == -5_000
    made.settle(hold, 35_000, 0)
    assert level(made) == -5_000
    assert made.settled_milli_mu == 35_000


def test_a_hold_ends_exactly_once() -> None:
    """A second end is a defect and says so."""
    made = holds()
    hold = granted(made.hold(KEY, 10, 0))
    made.refund(hold, 0)
    with pytest.raises(RuntimeError, match="exactly once"):
        made.refund(hold, 0)
    with pytest.raises(RuntimeError, match="exactly once"):
        made.settle(hold, 1, 0)
    with pytest.raises(RuntimeError, match="exactly once"):
        made.extend(hold, 1, 0)


def test_levels_carry_over_a_new_table_and_are_capped() -> None:
    """No lease change creates quota: a level is kept, cut to a smaller burst, never topped up."""
    made = holds()
    granted(made.hold(KEY, 20_000, 0))
    made.apply({KEY: LeaseTerms(120_000, 60_000, 0)}, expires_ns=HOUR, now_ns=0)
    assert level(made) == 10_000
    made.apply({KEY: LeaseTerms(6_000, 3_000, 0)}, expires_ns=HOUR, now_ns=0)
    assert level(made) == 3_000


def test_a_lease_that_flickers_brings_no_fresh_burst() -> None:
    """Gone for a while and back: the level is where it was."""
    made = holds()
    granted(made.hold(KEY, 30_000, 0))
    made.apply({}, expires_ns=HOUR, now_ns=0)
    assert refused(made.hold(KEY, 1, 0)).refusal is Refusal.NO_LEASE
    made.apply({KEY: LeaseTerms(60_000, 30_000, 0)}, expires_ns=HOUR, now_ns=SECOND)
    assert level(made, SECOND) == 0


def test_after_expiry_the_safe_rate_applies() -> None:
    """The refill is the lease's up to its end and the safe one from there, whenever it is looked at."""
    made = holds(expires_ns=5 * SECOND)
    granted(made.hold(KEY, 30_000, 0))
    assert level(made, 15 * SECOND) == 5 * 1_000 + 10 * 100
    assert made.view(KEY, 15 * SECOND).rate_milli_mu_per_minute == 6_000


def test_a_long_pause_brings_no_more_than_the_burst() -> None:
    """A process that stood still for an hour admits one burst, not an hour of refill."""
    made = holds()
    assert level(made, HOUR) == 30_000


def test_time_that_goes_back_changes_nothing() -> None:
    """An older time than the last seen is taken as that."""
    made = holds()
    granted(made.hold(KEY, 30_000, 10 * SECOND))
    assert level(made, 0) == 0
    assert level(made, 11 * SECOND) == 1_000


def test_batch_leaves_a_share_to_others() -> None:
    """With a reserve a hold needs more than its amount, unless it could never have it."""
    made = holds()
    assert isinstance(made.hold(KEY, 24_000, 0, reserve_share=0.2), Hold)
    assert isinstance(made.hold(KEY, 1, 0, reserve_share=0.2), Refused)
    assert isinstance(made.hold(KEY, 6_000, 0), Hold)
    assert isinstance(made.hold(KEY, 30_000, HOUR - 1, reserve_share=0.2), Hold)


def test_tiny_steps_of_time_lose_nothing() -> None:
    """A million looks at the bucket refill exactly what one would."""
    made = holds(rate=7, burst=1_000_000)
    granted(made.hold(KEY, 1_000_000, 0))
    for now_ns in range(0, 60 * SECOND, 61_803_399):
        made.view(KEY, now_ns)
    assert level(made, 60 * SECOND) == 7
