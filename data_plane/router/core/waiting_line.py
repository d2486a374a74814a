"""Where requests wait in the router until a replica has room, instead of queueing at a replica picked too early.

A replica's queue is first come, first served among what was sent there; whoever is sent too early waits behind one long
prompt while another replica falls idle. So, with late binding, a request whose replicas are all busy waits here, and is
sent when one of them has room. Who is next:

    1. the higher priority;
    2. among tenants the one that was served least for its weight (`model_units.virtual_time`);
    3. within a tenant the one with the shortest prefill, with ageing: who came `ageing` times its prefill time earlier
       goes first, however long its prompt is. So a prompt of t seconds is overtaken for (ageing x t) seconds at most
       by what is shorter.

A line never holds anybody back for nothing: those who share no replica with the first in line pass it by.

Bounded, and the bound is fair: where all places are taken, a newcomer whose tenant has fewer takes the place of the
youngest of the tenant with most.

No clock and no asyncio: the simulator drives it as the router does.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from data_plane.router.core.crowd import Crowd
from fairlead.errors import QuotaExceededError, Reason
from model_units.virtual_time import VirtualTime

T = TypeVar("T")

WAITING_MAX: Final = 4_096
"""Most requests of one model that wait in one router. At the usual seconds per request of a replica that is minutes of
work for a large fleet: who comes later is better told so."""

AGEING: Final = 4.0
"""So many times its own prefill time a request is overtaken by shorter ones at most."""

Subset = tuple[str, ...]
"""Replica ids that a request may go to; empty for all there are."""

_FULL_RETRY_S: Final = 2.0


class End(enum.Enum):
    """How a wait ended. Exactly one per place."""

    LET_IN = "let in"
    """A replica has room."""
    LATE = "late"
    """Its deadline passed."""
    DISPLACED = "displaced"
    """It had to leave for a tenant with fewer places."""
    LEFT = "left"
    """It was given up."""


class Place(Generic[T]):
    """One request in the line.

    Attributes:
        tenant_id: Whose.
        subset: Where it may go.
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
        rank: int,
        weight: int,
        milli_mu: int,
        key: tuple[int, int],
        since_ns: int,
        deadline_ns: int,
    ) -> None:
        self.tenant_id = tenant_id
        self.subset = subset
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
    """What waits of one tenant with one priority for one subset; the first of the heap goes next."""

    __slots__ = ("count", "heap", "rank", "subset", "tenant_id")

    def __init__(self, rank: int, tenant_id: str, subset: Subset) -> None:
        self.rank = rank
        self.tenant_id = tenant_id
        self.subset = subset
        self.heap: list[tuple[tuple[int, int], Place[T]]] = []
        self.count = 0

    def first(self) -> Place[T]:
        """The next of them; there must be one."""
        heap = self.heap
        while heap[0][1].end is not None:
            heapq.heappop(heap)
        return heap[0][1]


class WaitingLine(Generic[T]):
    """The requests of one model that wait for a replica with room.

    Args:
        waiting_max: Most of them, 1 or more.
        ageing: See the module; 0 is first come, first served within a tenant.
    """

    def __init__(self, *, waiting_max: int = WAITING_MAX, ageing: float = AGEING) -> None:
        self._waiting_max = waiting_max
        self._ageing = ageing
        self._rows: dict[tuple[int, str, Subset], _Row[T]] = {}
        self._crowd: Crowd[str, Place[T]] = Crowd()
        self._served = VirtualTime()
        self._orders = itertools.count(1)

    def __len__(self) -> int:
        return len(self._crowd)

    def enter(
        self,
        tenant_id: str,
        subset: Subset,
        *,
        rank: int,
        weight: int,
        milli_mu: int,
        prefill_ns: int,
        now_ns: int,
        deadline_ns: int,
    ) -> Place[T]:
        """Takes a place.

        Args:
            tenant_id: Whose request.
            subset: The replicas it may go to; empty for all.
            rank: Lower goes first.
            weight: Its tenant's weight, milli-MU per minute; less than 1 counts as 1.
            milli_mu: What it will cost, cached prefill not counted, 0 or more.
            prefill_ns: How long its uncached prefill takes on one of them, 0 or more.
            now_ns: Monotonic now.
            deadline_ns: Monotonic end of the request.

        Returns:
            The place; `look` next, for there may be room at once. `displaced` names who lost its own for it; its owner
            is told with `full`.

        Raises:
            QuotaExceededError: All places are taken; reason QUEUE_FULL.
        """
        order = next(self._orders)
        key = (now_ns + int(self._ageing * max(0, prefill_ns)), order)
        place: Place[T] = Place(tenant_id, subset, rank, weight, max(0, milli_mu), key, now_ns, deadline_ns)
        if len(self) >= self._waiting_max:
            # One place fewer must leave the other tenant with no less than this one gets.
            if self._crowd.most - 1 < self._crowd.count(tenant_id) + 1:
                raise full(len(self))
            place.displaced = self._crowd.youngest_of_most()
            self._end(place.displaced, End.DISPLACED)
        if not self._crowd.count(tenant_id):
            self._served.wait(tenant_id, order)
        self._crowd.add(tenant_id, place)
        self._row(place)
        return place

    def leave(self, place: Place[T]) -> None:
        """Gives the place up. Harmless once the wait has ended."""
        if place.end is None:
            self._end(place, End.LEFT)

    def look(self, take: Callable[[Place[T]], T | None], now_ns: int, *, replica_id: str = "") -> list[Place[T]]:
        """Lets in whoever can be, in order; whose deadline has passed leaves.

        Args:
            take: Gives a place what it waits for; None where none of its subset has room: that is not asked again.
            now_ns: Monotonic now.
            replica_id: Only those who may go there: it has got room. Empty for everybody.

        Returns:
            The places whose wait has ended, each with how.
        """
        ended: list[Place[T]] = []
        agenda = [
            (row.rank, self._served.counter_ns(row.tenant_id), row.first().key[1], row)
            for row in self._rows.values()
            if not replica_id or not row.subset or replica_id in row.subset
        ]
        heapq.heapify(agenda)
        closed: set[Subset] = set()
        while agenda:
            rank, counter_ns, _, row = heapq.heappop(agenda)
            if row.subset in closed or not row.count:
                continue
            place = row.first()
            moved_ns = self._served.counter_ns(row.tenant_id)
            if moved_ns == counter_ns:
                if place.deadline_ns <= now_ns:
                    self._end(place, End.LATE)
                    ended.append(place)
                else:
                    granted = take(place)
                    if granted is None:
                        closed.add(row.subset)
                        continue
                    place.granted = granted
                    self._end(place, End.LET_IN)
                    ended.append(place)
            if row.count:
                heapq.heappush(agenda, (rank, self._served.counter_ns(row.tenant_id), row.first().key[1], row))
        return ended

    def move(self, subset_of: Callable[[Place[T]], Subset]) -> None:
        """Asks again where everybody may go: another assignment is in force."""
        places = [place for row in self._rows.values() for _, place in sorted(row.heap) if place.end is None]
        self._rows.clear()
        for place in places:
            place.subset = subset_of(place)
            self._row(place)

    def waiting(self) -> dict[str, int]:
        """How many wait, by tenant."""
        counts: dict[str, int] = {}
        for row in self._rows.values():
            counts[row.tenant_id] = counts.get(row.tenant_id, 0) + row.count
        return counts

    def _row(self, place: Place[T]) -> None:
        name = (place.rank, place.tenant_id, place.subset)
        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = _Row(*name)
        heapq.heappush(row.heap, (place.key, place))
        row.count += 1

    def _end(self, place: Place[T], end: End) -> None:
        place.end = end
        tenant_id, row = place.tenant_id, self._rows[place.rank, place.tenant_id, place.subset]
        row.count -= 1
        if not row.count:
            del self._rows[place.rank, tenant_id, place.subset]
        elif len(row.heap) > 2 * row.count + 16:
            row.heap = [each for each in row.heap if each[1].end is None]
            heapq.heapify(row.heap)
        self._crowd.remove(tenant_id, place)
        left = self._crowd.count(tenant_id) > 0
        if end is End.LET_IN:
            # Its turn is paid at once, and what is in service does not matter here: the replica has it now.
            self._served.serve(tenant_id, place.milli_mu, place.weight, next(self._orders) if left else None)
            self._served.end(tenant_id, 0, place.weight)
        elif not left:
            self._served.rest(tenant_id)


def full(waiting: int) -> QuotaExceededError:
    """What a request is told that finds no place, or loses its own.

    Args:
        waiting: How many wait.
    """
    return QuotaExceededError(
        f"all replicas are busy and {waiting} requests wait for them already; come back a little later",
        reason=Reason.QUEUE_FULL,
        retry_after_s=_FULL_RETRY_S,
    )
