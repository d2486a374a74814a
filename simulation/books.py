"""The accounts of a simulation: what became of every request, and how the fleet looked over time.

    received = completed + failed + refused + cancelled          when everything has ended
    settled  = sum of the costs of the requests that ended      exactly, in whole mMU

Latencies are kept as plain arrays of doubles, one entry per request.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from control_plane.core.sharding.values import Cause, Move
from data_plane.router.core.accounts import Outcome


class TenantBook:
    """What became of one tenant's requests.

    Attributes:
        received: Requests that reached a router, repeated ones included.
        admitted: Those that got their hold.
        ended: By (outcome, reason).
        settled_milli_mu: What was charged.
        input_tokens: Prompt tokens of requests that got a first token.
        cached_tokens: Those of them found in a prefix cache.
        output_tokens: Delivered.
        repeated: Requests that had been refused before.
        moved: Attempts on another replica.
        dispatched: Attempts by replica.
        misrouted: Attempts on a replica that the newest assignment did not give them.
        ttft_s: Time to first token, in the order of `ttft_at_s`.
        ttft_at_s: When each of these requests arrived.
        tpot_s: Mean time per output token of each completed request of two tokens or more.
        times: Received, admitted and refused requests by time bucket.
    """

    __slots__ = (
        "admitted",
        "cached_tokens",
        "dispatched",
        "ended",
        "input_tokens",
        "misrouted",
        "moved",
        "output_tokens",
        "received",
        "repeated",
        "settled_milli_mu",
        "times",
        "tpot_s",
        "ttft_at_s",
        "ttft_s",
    )

    def __init__(self) -> None:
        self.received = 0
        self.admitted = 0
        self.ended: Counter[tuple[Outcome, str]] = Counter()
        self.settled_milli_mu = 0
        self.input_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.repeated = 0
        self.moved = 0
        self.dispatched: Counter[str] = Counter()
        self.misrouted = 0
        self.ttft_s = array("d")
        self.ttft_at_s = array("d")
        self.tpot_s = array("d")
        self.times: Counter[tuple[str, int]] = Counter()

    def count(self, outcome: Outcome) -> int:
        """Requests that ended so."""
        return sum(number for (each, _), number in self.ended.items() if each is outcome)

    def reasons(self, outcome: Outcome) -> dict[str, int]:
        """Requests that ended so by reason, sorted."""
        ended = sorted(self.ended.items(), key=lambda item: item[0][1])
        return {reason: number for (each, reason), number in ended if each is outcome}


@dataclass(slots=True)
class ReplicaTrack:
    """One replica over the run.

    Attributes:
        replica_id: Which.
        model_id: What it serves.
        slot: Its seat.
        capacity: What it serves at its objective, mMU per minute.
        served_milli_mu: Work it served.
        requests: Requests it finished.
        preemptions: Requests it threw out of its KV cache.
        lived_s: Seconds it was ready.
        utilization: (time bucket, share of its capacity in use).
        pending_s: (time bucket, seconds of prefill that waited at it).
    """

    replica_id: str
    model_id: str
    slot: str
    capacity: int
    served_milli_mu: float = 0.0
    requests: int = 0
    preemptions: int = 0
    lived_s: float = 0.0
    utilization: list[tuple[int, float]] = field(default_factory=list)
    pending_s: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Incident:
    """Something to mark on a time axis: a failure, a cold start, a new assignment."""

    at_s: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """A placement of the sharder that took the place of an earlier one.

    Attributes:
        at_s: When.
        model_id: Of which model.
        reason: Why, one sentence.
        load: Load of all slices then, mMU per minute.
        moves: Who came and who left, the largest load first.
    """

    at_s: float
    model_id: str
    reason: str
    load: int
    moves: tuple[Move, ...]

    def churn(self, *causes: Cause) -> float:
        """Load that changed its replica, as a share of all; only for some causes where these are named."""
        moved = sum(move.load for move in self.moves if not causes or move.cause in causes)
        return moved / self.load if self.load else 0.0
