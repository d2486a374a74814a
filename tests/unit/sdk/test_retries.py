"""The retry decision: pure, so tested with numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead import (
    FairleadError,
    InternalError,
    InvalidArgumentError,
    QuotaExceededError,
    Reason,
    RetryPolicy,
    UnavailableError,
)
from fairlead.sdk.retries import retry_delay

POLICY = RetryPolicy(attempts_max=4, backoff_initial_s=0.1, backoff_max_s=1.0, retry_after_max_s=30.0)


def decide(error: FairleadError, *, attempts: int = 1, elsewhere: bool = False, left_s: float | None = None) -> object:
    return retry_delay(POLICY, error, attempts=attempts, elsewhere=elsewhere, left_s=left_s, jitter=0.5)


def test_the_servers_time_is_honoured() -> None:
    """A refusal that names a time is repeated after that time and up to a tenth more, never earlier."""
    assert decide(QuotaExceededError("used up", retry_after_s=2.0)) == pytest.approx(2.1)


def test_a_refusal_without_a_time_is_final() -> None:
    """What waiting cannot cure is raised at once."""
    assert decide(QuotaExceededError("too big", reason=Reason.QUOTA_TOO_SMALL)) is None
    assert decide(InvalidArgumentError("bad")) is None
    assert decide(InternalError("defect")) is None


def test_another_router_is_tried_at_once() -> None:
    """An unreachable router costs no waiting while another one is there."""
    assert decide(UnavailableError("down"), elsewhere=True) == 0.0


def test_backoff_doubles_up_to_its_limit() -> None:
    """Without another router the waits grow and stay bounded."""
    assert [decide(UnavailableError("down"), attempts=number) for number in (1, 2, 3)] == [0.05, 0.1, 0.2]
    late = retry_delay(
        RetryPolicy(attempts_max=50), UnavailableError("down"), attempts=40, elsewhere=False, left_s=None, jitter=1.0
    )
    assert late == 5.0


def test_nothing_is_repeated_after_the_first_token() -> None:
    """A broken stream is final whatever else its error says."""
    assert decide(UnavailableError("lost", reason=Reason.STREAM_BROKEN, retry_after_s=0.1)) is None


def test_too_long_a_wait_is_refused() -> None:
    """Neither past the deadline nor past the policy's longest wait."""
    assert decide(QuotaExceededError("used up", retry_after_s=2.0), left_s=2.05) is None
    assert decide(QuotaExceededError("used up", retry_after_s=31.0)) is None


@given(
    attempts=st.integers(1, 10),
    retry_after_s=st.none() | st.floats(0, 100),
    left_s=st.none() | st.floats(-1, 100),
    jitter=st.floats(0, 0.999),
    elsewhere=st.booleans(),
)
def test_a_wait_always_keeps_every_bound(
    attempts: int, retry_after_s: float | None, left_s: float | None, jitter: float, elsewhere: bool
) -> None:
    """Whatever comes in: never more tries than allowed, never beyond the deadline, never before the named time."""
    error = UnavailableError("down", retry_after_s=retry_after_s)
    delay_s = retry_delay(POLICY, error, attempts=attempts, elsewhere=elsewhere, left_s=left_s, jitter=jitter)
    if delay_s is not None:
        assert attempts < POLICY.attempts_max
        assert delay_s >= (retry_after_s or 0)
        assert left_s is None or delay_s < left_s


@pytest.mark.parametrize("field", ["attempts_max", "backoff_initial_s", "backoff_max_s", "retry_after_max_s"])
def test_a_policy_out_of_range_is_refused_by_name(field: str) -> None:
    """A wrong setting is found when it is made, not when it is needed."""
    with pytest.raises(InvalidArgumentError, match=field):
        RetryPolicy(**{field: -1})
