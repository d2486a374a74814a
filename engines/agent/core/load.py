"""What a replica is busy with, in milli-MU, for its load reports.

Prefill and decode are kept apart because pending prefill decides the time to first token. A request's prefill is
pending until its first token; its decode work is queued while it waits and shrinks token by token while it is in the
engine. Every request's share is removed when it ends, however it ends, so an idle replica reports exactly zero.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from model_units.units import MilliModelUnits, MilliModelUnitsPerMinute, served_in

PRICE_MAX: Final = 10**12
"""What one request's prefill or decode counts for at most, mMU: ten thousand minutes of the largest replica that can be
configured. So a full queue of absurd prices still fits into a report's 64 bits."""

_BUCKETS: Final = 10


@dataclass(frozen=True, slots=True)
class Load:
    """The load at one moment.

    Attributes:
        queued_requests: Requests that wait in the agent.
        pending_prefill_milli_mu: Prefill of requests that have no token yet, waiting ones included, mMU.
        running_requests: Requests in the engine.
        decode_milli_mu: Estimated decode work left of requests in the engine, mMU.
        queued_decode_milli_mu: Estimated decode work of requests that wait in the agent, mMU.
    """

    queued_requests: int
    pending_prefill_milli_mu: MilliModelUnits
    running_requests: int
    decode_milli_mu: MilliModelUnits
    queued_decode_milli_mu: MilliModelUnits


@dataclass(slots=True)
class _Share:
    prefill: int
    decode: int
    output_tokens: int  # expected, 1 or more
    produced: int = 0
    running: bool = False

    @property
    def prefill_pending(self) -> int:
        return 0 if self.produced else self.prefill

    @property
    def decode_left(self) -> int:
        if not self.running or self.produced >= self.output_tokens:
            return 0
        return self.decode * (self.output_tokens - self.produced) // self.output_tokens


class LoadAccount:
    """The sum over the requests at a replica, kept exact in whole mMU."""

    def __init__(self) -> None:
        self._shares: dict[str, _Share] = {}
        self._running = 0
        self._pending_prefill = 0
        self._decode = 0
        self._queued_decode = 0

    def queue(self, request_id: str, *, prefill_milli_mu: int, decode_milli_mu: int, output_tokens: int) -> None:
        """A request arrived.

        Args:
            request_id: Unique among the requests here.
            prefill_milli_mu: Its prefill price, 0 to PRICE_MAX; what is outside counts as its end.
            decode_milli_mu: Its estimated decode price, likewise.
            output_tokens: The output that price stands for, 1 or more.

        Raises:
            ValueError: The id is here already.
        """
        if request_id in self._shares:
            raise ValueError(f"request {request_id!r} is already counted")
        share = _Share(sane_price(prefill_milli_mu), sane_price(decode_milli_mu), max(1, output_tokens))
        self._shares[request_id] = share
        self._pending_prefill += share.prefill_pending
        self._queued_decode += share.decode

    def start(self, request_id: str) -> None:
        """A request went into the engine."""
        share = self._shares[request_id]
        if not share.running:
            share.running = True
            self._running += 1
            self._queued_decode -= share.decode
            self._decode += share.decode_left

    def produce(self, request_id: str, tokens: int) -> float:
        """A request in the engine produced tokens.

        Args:
            request_id: Which.
            tokens: New tokens, 0 or more.

        Returns:
            The work this stands for, mMU: the whole prefill with the first token, and a share of decode per token,
            also beyond the estimate.
        """
        share = self._shares[request_id]
        if tokens <= 0:
            return 0.0
        before, expected, decode = share.produced, share.output_tokens, share.decode
        after = share.produced = before + tokens
        served = decode * tokens / expected
        if not before:
            served += share.prefill
            self._pending_prefill -= share.prefill
        if share.running and before < expected:
            left = decode * (expected - after) // expected if after < expected else 0
            self._decode += left - decode * (expected - before) // expected
        return served

    def end(self, request_id: str) -> int:
        """A request ended, for whatever reason and wherever it was. Ending it again does nothing.

        Returns:
            The decode work it did, mMU: its price per token times its tokens, also those beyond the estimate.
        """
        share = self._shares.pop(request_id, None)
        if share is None:
            return 0
        self._pending_prefill -= share.prefill_pending
        if share.running:
            self._decode -= share.decode_left
            self._running -= 1
        else:
            self._queued_decode -= share.decode
        return share.decode * share.produced // share.output_tokens

    def load(self) -> Load:
        """The load now."""
        return Load(
            queued_requests=len(self._shares) - self._running,
            pending_prefill_milli_mu=MilliModelUnits(self._pending_prefill),
            running_requests=self._running,
            decode_milli_mu=MilliModelUnits(self._decode),
            queued_decode_milli_mu=MilliModelUnits(self._queued_decode),
        )


def sane_price(milli_mu: int) -> int:
    """A price as it is counted: 0 to PRICE_MAX, whatever a router says."""
    return min(max(0, milli_mu), PRICE_MAX)


class UtilizationWindow:
    """Work served over capacity, over a sliding window.

    Args:
        capacity: What the replica serves, mMU per minute, above 0.
        window_s: Length of the window, seconds, above 0.
    """

    def __init__(self, capacity: MilliModelUnitsPerMinute, window_s: float = 10.0) -> None:
        if capacity <= 0 or window_s <= 0:
            raise ValueError("capacity and window_s must be above 0")
        self._capacity = capacity
        self._bucket_s = window_s / _BUCKETS
        self._window_s = window_s
        self._buckets: deque[tuple[int, float]] = deque()  # (bucket number, mMU), oldest first
        self._sum = 0.0

    def add(self, served_milli_mu: float, now_s: float) -> None:
        """Counts work served at `now_s` (monotonic seconds)."""
        number = int(now_s / self._bucket_s)
        self._forget(number)
        self._sum += served_milli_mu
        if self._buckets and self._buckets[-1][0] == number:
            self._buckets[-1] = (number, self._buckets[-1][1] + served_milli_mu)
        else:
            self._buckets.append((number, served_milli_mu))

    def utilization(self, now_s: float) -> float:
        """Share of the capacity that was used in the window before `now_s`: 0 to about 1."""
        self._forget(int(now_s / self._bucket_s))
        return max(0.0, self._sum / served_in(self._capacity, self._window_s))

    def _forget(self, number: int) -> None:
        while self._buckets and self._buckets[0][0] <= number - _BUCKETS:
            self._sum -= self._buckets.popleft()[1]
        if not self._buckets:
            self._sum = 0.0  # what float subtraction left over does not pile up
