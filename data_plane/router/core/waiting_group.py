"""Who waits for the same replicas, and whose turn it is among them."""

from __future__ import annotations

import enum
import heapq
from typing import Final, Generic, TypeVar

from model_units.virtual_time import VirtualTime

T = TypeVar("T")

Subset = tuple[str, ...]
"""Replica ids that a request may go to; empty for all there are."""

Where = tuple[Subset, frozenset[str]]
"""A subset, and the replicas of it that the request must not go to."""

Turn = tuple[int, int, int]
"""Rank, what its tenant was served, order: whose is least goes next."""

# Entries of a heap that were replaced are dropped when met, or all at once when they outnumber the others by this.
_STALE_MIN: Final = 16


class End(enum.Enum):
    """How a wait ended. Exactly one per place."""

    LET_IN = "let in"
    """A replica has room, or there is something to be said instead."""
    LATE = "late"
    """Its deadline passed."""
    DISPLACED = "displaced"
    """It had to leave for a higher priority, or for a tenant with fewer places."""
    LEFT = "left"
    """It was given up."""


class Place(Generic[T]):
    """One request in the line.

    Attributes:
        tenant_id: Whose.
        subset: Where it may go.
        excluded: Replicas of these that it must not go to.
        rank: Its priority: lower goes first.
        weight: Its tenant's weight, milli-MU per minute.
        milli_mu: What it costs its tenant's turn.
        deadline_ns: Monotonic; it is not let in from then on.
        since_ns: When it came.
        key: Its order within the tenant.
        granted: What letting it in gave, once it was.
        displaced: The place that had to go for this one, for the caller to tell its owner.
        end: How the wait ended; None while it waits.
    """

    __slots__ = (
        "deadline_ns",
        "displaced",
        "end",
        "excluded",
        "granted",
        "key",
        "milli_mu",
        "rank",
        "since_ns",
        "subset",
        "tenant_id",
        "weight",
    )

    def __init__(
        self,
        tenant_id: str,
        subset: Subset,
        excluded: frozenset[str],
        rank: int,
        weight: int,
        milli_mu: int,
        key: tuple[int, int],
        since_ns: int,
        deadline_ns: int,
    ) -> None:
        self.tenant_id = tenant_id
        self.subset = subset
        self.excluded = excluded
        self.rank = rank
        self.weight = weight
        self.milli_mu = milli_mu
        self.key = key
        self.since_ns = since_ns
        self.deadline_ns = deadline_ns
        self.granted: T | None = None
        self.displaced: Place[T] | None = None
        self.end: End | None = None


class _Row(Generic[T]):
    """What waits of one tenant with one priority in one group; the first of the heap goes next."""

    __slots__ = ("count", "heap", "rank", "tenant_id")

    def __init__(self, rank: int, tenant_id: str) -> None:
        self.rank = rank
        self.tenant_id = tenant_id
        self.heap: list[tuple[tuple[int, int], Place[T]]] = []
        self.count = 0

    def first(self) -> Place[T]:
        """The next of them; there must be one."""
        heap = self.heap
        while heap[0][1].end is not None:
            heapq.heappop(heap)
        return heap[0][1]

    def turn(self, served: VirtualTime) -> Turn:
        """When it is its turn; there must be somebody."""
        return self.rank, served.counter_ns(self.tenant_id), self.first().key[1]


class Group(Generic[T]):
    """Those who may go to the same replicas.

    Args:
        where: To which.

    Attributes:
        where: As given.
        rows: Those of one tenant with one priority, by both.
    """

    __slots__ = ("_heap", "rows", "where")

    def __init__(self, where: Where) -> None:
        self.where = where
        self.rows: dict[tuple[int, str], _Row[T]] = {}
        # Rows by their turn, or by one they had before: turns only come later, but for one who has left his row.
        self._heap: list[tuple[Turn, _Row[T]]] = []

    def first(self, served: VirtualTime) -> tuple[Turn, _Row[T]]:
        """Whose turn it is; there must be somebody."""
        heap = self._heap
        while True:
            turn, row = heap[0]
            if not row.count:
                heapq.heappop(heap)
                continue
            now = row.turn(served)
            if now == turn:
                return turn, row
            heapq.heapreplace(heap, (now, row))

    def join(self, place: Place[T], served: VirtualTime) -> None:
        """Somebody comes."""
        row = self.rows.get((place.rank, place.tenant_id))
        if row is None:
            row = self.rows[place.rank, place.tenant_id] = _Row(place.rank, place.tenant_id)
        heapq.heappush(row.heap, (place.key, place))
        row.count += 1
        if row.count == 1:
            heapq.heappush(self._heap, (row.turn(served), row))

    def part(self, place: Place[T], served: VirtualTime) -> None:
        """Somebody goes; the end of the wait is written down already."""
        row = self.rows[place.rank, place.tenant_id]
        row.count -= 1
        if not row.count:
            del self.rows[place.rank, place.tenant_id]
            return
        if len(row.heap) > 2 * row.count + _STALE_MIN:
            row.heap = [each for each in row.heap if each[1].end is None]
            heapq.heapify(row.heap)
        heapq.heappush(self._heap, (row.turn(served), row))
        if len(self._heap) > 2 * len(self.rows) + _STALE_MIN:
            self._heap = [(each.turn(served), each) for each in self.rows.values()]
            heapq.heapify(self._heap)
