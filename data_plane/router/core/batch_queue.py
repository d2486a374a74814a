"""Where batch requests wait for quota instead of being refused.

First in, first out per (tenant, model); round robin between them, so that one tenant's thousand requests do not stand
in front of another's one. Bounded in all and per tenant. Interactive requests never wait here: they overtake by
construction, and batch leaves a share of every burst to them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from data_plane.router.core.holds import BucketKey
from fairlead.errors import QuotaExceededError, Reason

T = TypeVar("T")

WAITING_MAX: Final = 10_000
WAITING_PER_TENANT_MAX: Final = 1_000
BATCH_RESERVE_SHARE: Final = 0.2
"""Share of a burst that batch leaves to interactive requests."""


class Ticket(Generic[T]):
    """A place in the queue.

    Attributes:
        key: Whose bucket it waits for.
        amount_milli_mu: What it will hold.
        granted: What the admission gave it, once it was admitted.
    """

    __slots__ = ("amount_milli_mu", "granted", "key")

    def __init__(self, key: BucketKey, amount_milli_mu: int) -> None:
        self.key = key
        self.amount_milli_mu = amount_milli_mu
        self.granted: T | None = None


class BatchQueue(Generic[T]):
    """Waiting batch requests of one router.

    Args:
        waiting_max: Most requests waiting in all.
        waiting_per_tenant_max: Most of one tenant and model.
    """

    def __init__(self, *, waiting_max: int = WAITING_MAX, waiting_per_tenant_max: int = WAITING_PER_TENANT_MAX) -> None:
        self._waiting_max = waiting_max
        self._per_tenant_max = waiting_per_tenant_max
        self._lines: OrderedDict[BucketKey, deque[Ticket[T]]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def enter(self, key: BucketKey, amount_milli_mu: int) -> Ticket[T]:
        """Takes a place at the end of the line.

        Raises:
            QuotaExceededError: The queue is full; reason QUEUE_FULL.
        """
        line = self._lines.get(key)
        if self._count >= self._waiting_max or (line is not None and len(line) >= self._per_tenant_max):
            raise QuotaExceededError(
                "too many batch requests wait for quota already; send fewer at once or come back later",
                reason=Reason.QUEUE_FULL,
                retry_after_s=30.0,
                subject="/".join(key),
            )
        ticket: Ticket[T] = Ticket(key, amount_milli_mu)
        if line is None:
            line = self._lines[key] = deque()
        line.append(ticket)
        self._count += 1
        return ticket

    def leave(self, ticket: Ticket[T]) -> None:
        """Gives the place up: the request was cancelled or its deadline passed. Harmless once it was admitted."""
        line = self._lines.get(ticket.key)
        if line is not None and ticket in line:
            line.remove(ticket)
            self._count -= 1
            if not line:
                del self._lines[ticket.key]

    def admit(self, admit: Callable[[BucketKey, int], T | None]) -> list[Ticket[T]]:
        """Lets in whoever can be let in, one per line and round.

        Args:
            admit: Takes the hold, or answers None when there is not enough now.

        Returns:
            The tickets admitted, each with what `admit` gave it, out of the queue.
        """
        admitted: list[Ticket[T]] = []
        blocked: set[BucketKey] = set()
        while len(blocked) < len(self._lines):
            for key in list(self._lines):
                if key in blocked:
                    continue
                head = self._lines[key][0]
                head.granted = admit(key, head.amount_milli_mu)
                if head.granted is None:
                    blocked.add(key)
                    continue
                self.leave(head)
                admitted.append(head)
                if key in self._lines:
                    self._lines.move_to_end(key)
        return admitted

    def waiting(self) -> dict[BucketKey, int]:
        """What waits, mMU by bucket."""
        return {key: sum(ticket.amount_milli_mu for ticket in line) for key, line in self._lines.items()}
