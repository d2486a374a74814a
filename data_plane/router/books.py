"""What a request's life is written into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data_plane.router.core.accounts import Accounts
from data_plane.router.core.decisions import DecisionLog
from data_plane.router.core.demand import Demand
from data_plane.router.core.holds import Holds
from data_plane.router.core.idempotency import IdempotencyWindow
from data_plane.router.core.pricing import Pricing
from data_plane.router.exchange import Finished, Receipt
from data_plane.router.usage_desk import UsageDesk


@dataclass(frozen=True)
class Answer:
    """A whole answer, kept for a repeated request id.

    Attributes:
        text: All of it.
        finished: Its end.
        replica_id: Who gave it.
    """

    text: bytes
    finished: Finished
    replica_id: str


@dataclass(frozen=True)
class Books:
    """What a request's life is written into.

    Attributes:
        accounts: Outcomes and counters.
        holds: The buckets.
        demand: What was used.
        pricing: Learns from usage.
        answers: Answers by request id.
        decisions: What was decided lately, for those who ask why.
        usage: What was charged, for the platform's books.
        settled: Told of settled work: model, mMU, monotonic now.
        now_ns: Monotonic time.
        wall_ns: Since the Unix epoch.
    """

    accounts: Accounts
    holds: Holds
    demand: Demand
    pricing: Pricing
    answers: IdempotencyWindow[Answer]
    decisions: DecisionLog[Receipt]
    usage: UsageDesk
    settled: Callable[[str, int, int], None]
    now_ns: Callable[[], int]
    wall_ns: Callable[[], int]
