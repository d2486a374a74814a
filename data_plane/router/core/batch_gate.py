"""When batch is let in: whether waiting can help at all, what it waits for, and what sends it back to wait again.

Quota is held by nobody who waits for a replica. Where all of them were full and the pause they asked for is over,
one request per line goes first, and the others follow once one has been served; so a full fleet is asked a few times a
second, however many requests wait.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

from data_plane.router.core.batch_queue import BATCH_RESERVE_SHARE, LOOK_NS_MAX, Never
from data_plane.router.core.fleet import Room
from data_plane.router.core.holds import BucketKey, BucketView, Hold, Holds, Refusal, Refused
from fairlead.errors import Reason

FULL_PAUSE_S: Final = 2.0
"""How long a replica counts as full that does not say when to come back."""

FULL_JITTER_SHARE: Final = 0.25
"""A full replica is left alone for up to this share longer, at random, so that routers do not come back together."""

_PASSES: Final = frozenset({Reason.NO_REPLICA, Reason.QUEUE_FULL})
_NS_PER_S: Final = 1_000_000_000


class BatchGate:
    """Takes the holds of batch requests, for `BatchQueue.admit`.

    Args:
        holds: The buckets.
        room: Whether a replica takes requests of this (tenant, model) now.
        free_milli_mu: What may be let in before somebody would wait in the router for a replica with room, mMU; None
            where nobody waits there.
    """

    def __init__(
        self,
        holds: Holds,
        room: Callable[[BucketKey], Room],
        free_milli_mu: Callable[[BucketKey], int | None] = lambda _: None,
    ) -> None:
        self._holds = holds
        self._room = room
        self._free_milli_mu = free_milli_mu
        # What was let in by the look at `_look_ns`: no replica shows it yet.
        self._let_in: Counter[BucketKey] = Counter()
        self._look_ns = 0
        # When each line last sent one ahead, in that order; kept as long as it holds the others back.
        self._probes: OrderedDict[BucketKey, int] = OrderedDict()

    def take(self, key: BucketKey, amount_milli_mu: int, now_ns: int) -> Hold | Refused | Never | None:
        """Takes a hold.

        Args:
            key: Whose bucket.
            amount_milli_mu: How much, 0 or more.
            now_ns: Monotonic now.

        Returns:
            The hold, or why there is none; None where it is a replica that is missing.
        """
        room = self._room(key)
        if room is Room.NONE or (room is Room.PROBE and self._probing(key, now_ns)):
            return None
        free = self._free_milli_mu(key)
        if free is not None and self._already(key, now_ns) >= free:
            return None
        answer = self._holds.hold(key, amount_milli_mu, now_ns, reserve_share=BATCH_RESERVE_SHARE)
        if isinstance(answer, Refused):
            too_small = answer.refusal is Refusal.TOO_SMALL
            hopeless = too_small and not may_wait(self._holds.view(key, now_ns), amount_milli_mu)
            return Never(answer) if hopeless else answer
        if room is Room.PROBE:
            self._probes[key] = now_ns
        if free is not None:
            self._let_in[key] += amount_milli_mu
        return answer

    def _already(self, key: BucketKey, now_ns: int) -> int:
        if now_ns != self._look_ns:
            self._let_in.clear()
            self._look_ns = now_ns
        return self._let_in[key]

    def _probing(self, key: BucketKey, now_ns: int) -> bool:
        probes = self._probes
        while probes and now_ns - next(iter(probes.values())) >= LOOK_NS_MAX:
            probes.popitem(last=False)
        return key in probes


def may_wait(bucket: BucketView, amount_milli_mu: int) -> bool:
    """Whether waiting can bring a hold at all: with no lease yet, or with a larger part of the quota, it may.

    Args:
        bucket: The bucket now.
        amount_milli_mu: What is to be held.
    """
    rate, quota = bucket.rate_milli_mu_per_minute, bucket.quota_milli_mu_per_minute
    return not rate or amount_milli_mu * rate <= bucket.burst_milli_mu * max(rate, quota)


def may_return(reason: Reason, *, delivered: bool, retry_after_s: float | None, left_ns: int) -> bool:
    """Whether a batch request that no replica took goes back to wait.

    Args:
        reason: What it would be told.
        delivered: The client has a part of the answer.
        retry_after_s: When to come back, or None.
        left_ns: Until its deadline.
    """
    return reason in _PASSES and not delivered and left_ns > (retry_after_s or FULL_PAUSE_S) * _NS_PER_S


def full_until_ns(now_ns: int, retry_after_s: float | None, draw: float) -> int:
    """Until when a replica counts as full that has just said so.

    Args:
        now_ns: Monotonic now.
        retry_after_s: When to come back, as it said, or None.
        draw: At random, 0 to 1.
    """
    return now_ns + int((retry_after_s or FULL_PAUSE_S) * (1.0 + FULL_JITTER_SHARE * draw) * _NS_PER_S)
