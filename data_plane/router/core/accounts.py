"""The router's books: every request is received once and finished once, with one outcome.

    received = finished + in flight        at every moment
    finished = completed + failed + refused + cancelled

`completed` and `failed` were admitted. Plain integers, rendered into metrics at scrape.
"""

from __future__ import annotations

import enum
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final


class Outcome(enum.Enum):
    """How a request ended. Exactly one per request."""

    # Each is there once, so it is its own hash; that of enums runs in Python.
    __hash__ = object.__hash__

    COMPLETED = "completed"
    """Answered to its end (or replayed from the idempotency window)."""
    FAILED = "failed"
    """Admitted, then ended by an error."""
    REFUSED = "refused"
    """Not admitted."""
    CANCELLED = "cancelled"
    """The client went away or cancelled."""


# Looking a member up on an enum class costs more than the rest of a comparison.
_COMPLETED: Final = Outcome.COMPLETED

LATENCY_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
TOKEN_TIME_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)


class Histogram:
    """Counts per bucket, and the sum.

    Args:
        bounds: Upper bounds, ascending; values above the last fall into a bucket of their own.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Account:
    """What one tenant's requests to one model came to.

    Attributes:
        completed: Requests that were answered to their end.
        others: All other ends, by outcome and reason.
        settled_milli_mu: Charged work.
        input_tokens: Prompt tokens of completed requests.
        output_tokens: Tokens relayed.
    """

    __slots__ = ("completed", "input_tokens", "others", "output_tokens", "settled_milli_mu")

    def __init__(self) -> None:
        self.completed = self.settled_milli_mu = self.input_tokens = self.output_tokens = 0
        self.others: dict[tuple[Outcome, str], int] = {}


class Accounts:
    """Counters of one router process.

    Attributes:
        received: Requests that arrived.
        retries: Attempts on another replica by (model, reason).
        quarantined: Prompts that were lost with so many replicas that they are refused, by model.
        time_to_first_token_s: From arrival to the first token, by model.
        time_per_output_token_s: Mean gap between tokens of one completed request, by model.
    """

    def __init__(self) -> None:
        self.received = 0
        self.retries: Counter[tuple[str, str]] = Counter()
        self.quarantined: Counter[str] = Counter()
        self.time_to_first_token_s: dict[str, Histogram] = {}
        self.time_per_output_token_s: dict[str, Histogram] = {}
        self._accounts: dict[tuple[str, str], Account] = {}
        self._finished_total = 0

    @property
    def in_flight(self) -> int:
        """Requests received and not finished."""
        return self.received - self._finished_total

    @property
    def finished(self) -> Counter[tuple[str, str, Outcome, str]]:
        """Requests by (tenant, model, outcome, reason); names are empty where they are not known to exist."""
        counts: Counter[tuple[str, str, Outcome, str]] = Counter()
        for (tenant_id, model_id), account in self._accounts.items():
            if account.completed:
                counts[tenant_id, model_id, Outcome.COMPLETED, ""] = account.completed
            for (outcome, reason), count in account.others.items():
                counts[tenant_id, model_id, outcome, reason] = count
        return counts

    @property
    def settled_milli_mu(self) -> Counter[tuple[str, str]]:
        """Charged work by (tenant, model)."""
        return Counter({key: account.settled_milli_mu for key, account in self._accounts.items()})

    @property
    def input_tokens(self) -> Counter[tuple[str, str]]:
        """Prompt tokens of completed requests by (tenant, model)."""
        return Counter({key: account.input_tokens for key, account in self._accounts.items()})

    @property
    def output_tokens(self) -> Counter[tuple[str, str]]:
        """Tokens relayed by (tenant, model)."""
        return Counter({key: account.output_tokens for key, account in self._accounts.items()})

    def of(self, bucket: tuple[str, str]) -> Account:
        """The account of a (tenant, model)."""
        account = self._accounts.get(bucket)
        if account is None:
            account = self._accounts[bucket] = Account()
        return account

    def finish(self, tenant_id: str, model_id: str, outcome: Outcome, reason: str) -> None:
        """Counts the one end of a request; `reason` is empty for completed ones."""
        account = self.of((tenant_id, model_id))
        if outcome is _COMPLETED:
            account.completed += 1
        else:
            account.others[outcome, reason] = account.others.get((outcome, reason), 0) + 1
        self._finished_total += 1

    def first_token(self, model_id: str, seconds: float) -> None:
        """Notes a time to first token."""
        _histogram(self.time_to_first_token_s, model_id, LATENCY_BOUNDS_S).observe(seconds)

    def token_time(self, model_id: str, seconds: float) -> None:
        """Notes a request's mean time per output token."""
        _histogram(self.time_per_output_token_s, model_id, TOKEN_TIME_BOUNDS_S).observe(seconds)


def _histogram(by_model: dict[str, Histogram], model_id: str, bounds: Sequence[float]) -> Histogram:
    histogram = by_model.get(model_id)
    if histogram is None:
        histogram = by_model[model_id] = Histogram(bounds)
    return histogram
