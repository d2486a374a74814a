"""Whether a failed attempt is followed by another, and what a client is told when none is left."""

from __future__ import annotations

import pytest

from data_plane.router.core.retry import (
    ATTEMPTS_MAX,
    STARTED_ATTEMPTS_MAX,
    RetryBudget,
    casts_doubt,
    may_have_started,
    may_try_again,
    reason_given_up,
)
from fairlead.errors import Reason


def again(reason: Reason = Reason.REPLICA_LOST, **changes: object) -> bool:
    values: dict[str, object] = {
        "resumable": True,
        "attempts": 1,
        "started_attempts": 1,
        "milli_mu": 10,
        "budget": RetryBudget(0),
        "now_ns": 0,
        **changes,
    }
    return may_try_again(reason, **values)  # type: ignore[arg-type]


def test_a_first_failure_is_tried_again_and_a_second_start_is_not() -> None:
    """One engine may fail a request, two may not; what nobody can continue is not tried at all."""
    assert again()
    assert not again(started_attempts=STARTED_ATTEMPTS_MAX)
    assert not again(resumable=False)


def test_attempts_that_started_nothing_need_no_budget_but_have_an_end() -> None:
    """A full queue costs nothing, so an empty budget does not matter; the number of attempts does."""
    empty = RetryBudget(0, floor_retries=1)
    assert empty.allow(1, 0)
    assert not again(budget=empty)
    for reason in (Reason.QUEUE_FULL, Reason.NOT_READY, Reason.SHUTTING_DOWN):
        assert not may_have_started(reason)
        assert again(reason, started_attempts=0, budget=empty)
        assert not again(reason, started_attempts=0, budget=empty, attempts=ATTEMPTS_MAX)


def test_a_full_queue_says_nothing_about_health() -> None:
    """Every other failure does."""
    assert [reason for reason in Reason if not casts_doubt(reason)] == [Reason.QUEUE_FULL]


@pytest.mark.parametrize(
    ("failure", "delivered", "told"),
    [
        (None, False, Reason.NO_REPLICA),
        (Reason.QUEUE_FULL, False, Reason.QUEUE_FULL),
        (Reason.ENGINE_FAILED, False, Reason.REPLICA_LOST),
        (Reason.REPLICA_LOST, True, Reason.STREAM_BROKEN),
        (Reason.QUEUE_FULL, True, Reason.STREAM_BROKEN),
    ],
)
def test_what_a_client_is_told(failure: Reason | None, delivered: bool, told: Reason) -> None:
    """A broken stream is told as one whatever broke it; else what stood in the way."""
    assert reason_given_up(failure, delivered=delivered) is told
