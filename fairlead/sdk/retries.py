"""Whether and when a failed try is repeated: pure."""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.errors import FairleadError, InvalidArgumentError, Reason, UnavailableError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently the client tries again.

    All tries of one request carry the same request id, so that a router never executes or bills it twice. Nothing is
    repeated after the first token, nor after an error that repeating cannot cure.
    """

    attempts_max: int = 4
    """Tries of one request, the first included; 1 turns retries off."""
    backoff_initial_s: float = 0.1
    """Longest wait before the second try where the server named no time; doubles with every try."""
    backoff_max_s: float = 5.0
    """Longest wait where the server named no time."""
    retry_after_max_s: float = 60.0
    """A refusal that asks to come back later than this is raised at once."""

    def __post_init__(self) -> None:
        if self.attempts_max < 1:
            raise InvalidArgumentError(f"attempts_max must be 1 or more, not {self.attempts_max}", field="attempts_max")
        for name in ("backoff_initial_s", "backoff_max_s", "retry_after_max_s"):
            if not getattr(self, name) >= 0:
                raise InvalidArgumentError(f"{name} must be 0 or more, not {getattr(self, name)}", field=name)


def retry_delay(
    policy: RetryPolicy,
    error: FairleadError,
    *,
    attempts: int,
    elsewhere: bool,
    left_s: float | None,
    jitter: float,
) -> float | None:
    """Decides about one failed try.

    The server's RetryInfo is honoured to the letter, plus up to a tenth of it so that a crowd does not return at
    once. Where it named none, only an unavailable router is tried again: at once when another address is untried,
    after an exponential backoff with full jitter otherwise.

    Args:
        policy: The limits.
        error: What the try ended with.
        attempts: Tries made so far, 1 or more.
        elsewhere: Whether another address is left that is not known to be down.
        left_s: Seconds until the deadline; None for no limit.
        jitter: A random number, 0 up to 1.

    Returns:
        Seconds to wait before the next try, or None to give up and raise `error`.
    """
    if attempts >= policy.attempts_max or error.reason is Reason.STREAM_BROKEN:
        return None
    if error.retry_after_s is not None:
        if error.retry_after_s > policy.retry_after_max_s:
            return None
        delay_s = error.retry_after_s * (1 + jitter / 10)
    elif not isinstance(error, UnavailableError):
        return None
    elif elsewhere:
        delay_s = 0.0
    else:
        delay_s = jitter * min(policy.backoff_max_s, policy.backoff_initial_s * 2.0 ** (attempts - 1))
    return delay_s if left_s is None or delay_s < left_s else None
