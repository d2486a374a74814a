"""Whether a failed attempt is followed by another, and how much extra work such attempts may cause.

Retries help when one replica fails and hurt when all do. So the work retried is bounded by a share of the work that was
settled lately, plus a few retries that are always allowed, so that a quiet model can fail over too. With every engine
failing nothing is settled and only those few remain: the amplification tends to 1.
"""

from __future__ import annotations

from typing import Final

from data_plane.router.core.decay import DecayingSum
from fairlead.errors import Reason

STARTED_ATTEMPTS_MAX: Final = 2
"""Attempts that may have cost work: a request that kills engines must not reach a third one."""

ATTEMPTS_MAX: Final = 6

# With these the replica says that it started nothing: another attempt repeats no work and needs no budget.
_NOTHING_STARTED: Final = frozenset({Reason.SHUTTING_DOWN, Reason.QUEUE_FULL, Reason.NOT_READY})

RATIO: Final = 0.2
FLOOR_RETRIES: Final = 3
FLOOR_INTERVAL_S: Final = 10.0
HALF_LIFE_S: Final = 20.0

_NS_PER_S: Final = 1_000_000_000


class RetryBudget:
    """The budget of one model at one router.

    Args:
        now_ns: Monotonic time of the start.
        ratio: Share of the recently settled mMU that retries may add.
        floor_retries: Retries allowed per `floor_interval_s` whatever was settled.
        floor_interval_s: Seconds in which the floor comes back.
    """

    def __init__(
        self,
        now_ns: int,
        *,
        ratio: float = RATIO,
        floor_retries: int = FLOOR_RETRIES,
        floor_interval_s: float = FLOOR_INTERVAL_S,
    ) -> None:
        self._ratio = ratio
        self._floor_retries = float(floor_retries)
        self._floor_per_ns = floor_retries / (floor_interval_s * _NS_PER_S)
        self._floor_left = float(floor_retries)
        self._floor_at_ns = now_ns
        self._settled = DecayingSum(HALF_LIFE_S, now_ns)
        self._retried = DecayingSum(HALF_LIFE_S, now_ns)

    def settled(self, milli_mu: int, now_ns: int) -> None:
        """Notes work that was settled, mMU."""
        self._settled.add(milli_mu, now_ns)

    def allow(self, milli_mu: int, now_ns: int) -> bool:
        """Asks for one more attempt that may cost `milli_mu`; the answer True spends it."""
        if self._retried.value(now_ns) + milli_mu > self._ratio * self._settled.value(now_ns):
            refill = max(0, now_ns - self._floor_at_ns) * self._floor_per_ns
            self._floor_left = min(self._floor_retries, self._floor_left + refill)
            self._floor_at_ns = max(now_ns, self._floor_at_ns)
            if self._floor_left < 1.0:
                return False
            self._floor_left -= 1.0
        self._retried.add(milli_mu, now_ns)
        return True


def may_have_started(reason: Reason) -> bool:
    """Whether an attempt that failed so may have cost work."""
    return reason not in _NOTHING_STARTED


def casts_doubt(reason: Reason) -> bool:
    """Whether a failure says something about the replica's health; a full queue does not."""
    return reason is not Reason.QUEUE_FULL


def may_try_again(
    reason: Reason,
    *,
    resumable: bool,
    attempts: int,
    started_attempts: int,
    milli_mu: int,
    budget: RetryBudget,
    now_ns: int,
) -> bool:
    """Decides whether another replica may try; True spends the budget.

    Args:
        reason: Why the last attempt failed.
        resumable: The client has nothing yet, or what it has can be continued elsewhere.
        attempts: Attempts so far, the failed one included.
        started_attempts: Those of them that may have cost work.
        milli_mu: What the request is estimated at.
        budget: Of the model.
        now_ns: Monotonic now.
    """
    return (
        resumable
        and started_attempts < STARTED_ATTEMPTS_MAX
        and attempts < ATTEMPTS_MAX
        and (not may_have_started(reason) or budget.allow(milli_mu, now_ns))
    )


def reason_given_up(failure: Reason | None, *, delivered: bool) -> Reason:
    """What a client is told when no attempt is left.

    Args:
        failure: Why the last attempt failed; None where no replica could be picked for the first.
        delivered: The client has a part of the answer.
    """
    if delivered:
        return Reason.STREAM_BROKEN
    if failure is None:
        return Reason.NO_REPLICA
    return Reason.QUEUE_FULL if failure is Reason.QUEUE_FULL else Reason.REPLICA_LOST
