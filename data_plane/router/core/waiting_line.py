"""Where requests wait in the router until a replica has room, instead of queueing at a replica picked too early.

A replica's queue is first come, first served among what was sent there; whoever is sent too early waits behind one long
prompt while another replica falls idle. So, with late binding, a request whose replicas are all busy waits here, and is
sent when one of them has room. Who is next:

    1. the higher priority;
    2. among tenants the one that was served least for its weight (`model_units.virtual_time`);
    3. within a tenant the one with the shortest prefill, with ageing: who came `ageing` times its prefill time earlier
       goes first, however long its prompt is. So a prompt of t seconds is overtaken for (ageing x t) seconds at most
       by what is shorter.

A line never holds anybody back for nothing: those who share no replica with the first in line pass it by. Those who
may go to the same replicas stand together and are asked once for all, so that a look costs no more for many who wait
than for one; and a look at everybody asks a bounded number of such groups, each look the next ones.

Bounded, and the bound is fair: where all places are taken, a newcomer takes that of somebody with lower priority, batch
before others; among its own priority, where its tenant has fewer, that of the youngest of the tenant with most.

No clock and no asyncio: the simulator drives it as the router does.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from data_plane.router.core.crowd import Crowd
from data_plane.router.core.waiting_group import End, Group, Place, Subset, Where
from fairlead.errors import QuotaExceededError, Reason
from model_units.virtual_time import VirtualTime

T = TypeVar("T")

WAITING_MAX: Final = 4_096
"""Most requests of one model that wait in one router. At the usual seconds per request of a replica that is minutes of
work for a large fleet: who comes later is better told so."""

AGEING: Final = 4.0
"""So many times its own prefill time a request is overtaken by shorter ones at most."""

GROUPS_MAX: Final = 128
"""Most groups that one look at everybody asks. At some 10 microseconds each that is a millisecond of a busy router, and
more of one than most have; their order is exact up to so many, and beyond within a look."""

_FULL_RETRY_S: Final = 2.0


class WaitingLine(Generic[T]):
    """The requests of one model that wait for a replica with room.

    Args:
        waiting_max: Most of them, 1 or more.
        ageing: See the module; 0 is first come, first served within a tenant.
        serves: Whether what was granted is a replica, which costs the tenant its turn, and not a reason why there is
            none.
        groups_max: Most groups that one look at everybody asks, 1 or more.
    """

    def __init__(
        self,
        *,
        waiting_max: int = WAITING_MAX,
        ageing: float = AGEING,
        serves: Callable[[T], bool] = lambda _: True,
        groups_max: int = GROUPS_MAX,
    ) -> None:
        self._waiting_max = waiting_max
        self._ageing = ageing
        self._serves = serves
        self._groups_max = groups_max
        # Those that a look at everybody asked last are behind the others.
        self._groups: OrderedDict[Where, Group[T]] = OrderedDict()
        self._by_replica: dict[str, dict[Where, Group[T]]] = {}  # under "" those that may go anywhere
        self._crowds: dict[int, Crowd[str, Place[T]]] = {}  # by rank
        self._tenants: dict[str, int] = {}  # how many wait
        self._served = VirtualTime()
        self._orders = itertools.count(1)
        self._count = 0

    def __len__(self) -> int:
        return self._count

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
        excluded: frozenset[str] = frozenset(),
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
            excluded: Replicas that it must not go to.

        Returns:
            The place; `look` with it next, for there may be room at once. `displaced` names who lost its own for it;
            its owner is told with `full`.

        Raises:
            QuotaExceededError: All places are taken; reason QUEUE_FULL.
        """
        order = next(self._orders)
        key = (now_ns + int(self._ageing * max(0, prefill_ns)), order)
        place: Place[T] = Place(tenant_id, subset, excluded, rank, weight, max(0, milli_mu), key, now_ns, deadline_ns)
        if len(self) >= self._waiting_max:
            place.displaced = self._gives_way_to(place)
            self._end(place.displaced, End.DISPLACED)
        if tenant_id not in self._tenants:
            self._served.wait(tenant_id, order)
        self._tenants[tenant_id] = self._tenants.get(tenant_id, 0) + 1
        self._crowds.setdefault(rank, Crowd()).add(tenant_id, place)
        self._count += 1
        self._group(place).join(place, self._served)
        return place

    def leave(self, place: Place[T]) -> None:
        """Gives the place up. Harmless once the wait has ended."""
        if place.end is None:
            self._end(place, End.LEFT)

    def shared(self, subset: Subset) -> bool:
        """Whether anybody waits who may go to one of these replicas.

        Args:
            subset: The replicas; empty for all.
        """
        if not subset or "" in self._by_replica:
            return self._count > 0
        return any(replica_id in self._by_replica for replica_id in subset)

    def look(
        self,
        take: Callable[[Place[T]], T | None],
        now_ns: int,
        *,
        replica_id: str = "",
        newcomer: Place[T] | None = None,
        worthwhile: Callable[[], bool] = lambda: True,
    ) -> list[Place[T]]:
        """Lets in whoever can be, in order; whose deadline has passed leaves.

        Args:
            take: Gives a place what it waits for; None where no replica that it may go to has room: nobody who may go
                to the same ones is asked again.
            now_ns: Monotonic now.
            replica_id: Only those who may go there: it has got room. Empty for everybody.
            newcomer: Only those who may go where this one may: it has just come, and nothing else has changed.
            worthwhile: Whether to ask anybody else; asked before each.

        Returns:
            The places whose wait has ended, each with how.
        """
        ended: list[Place[T]] = []
        if not self._count or not worthwhile():
            return ended
        served = self._served
        agenda = [(group.first(served)[0], group) for group in self._asked(replica_id, newcomer)]
        heapq.heapify(agenda)
        while agenda and worthwhile():
            turn, group = agenda[0]
            now, row = group.first(served)
            if now != turn:
                heapq.heapreplace(agenda, (now, group))
                continue
            place = row.first()
            if place.deadline_ns <= now_ns:
                self._end(place, End.LATE)
            else:
                granted = take(place)
                if granted is None:
                    heapq.heappop(agenda)
                    continue
                place.granted = granted
                self._end(place, End.LET_IN)
            ended.append(place)
            if group.rows:
                heapq.heapreplace(agenda, (group.first(served)[0], group))
            else:
                heapq.heappop(agenda)
        return ended

    def move(self, subset_of: Callable[[Place[T]], Subset]) -> None:
        """Asks again where everybody may go: another assignment is in force."""
        groups = list(self._groups.values())
        self._groups.clear()
        self._by_replica.clear()
        for group in groups:
            for row in group.rows.values():
                for _, place in sorted(row.heap):
                    if place.end is None:
                        place.subset = subset_of(place)
                        self._group(place).join(place, self._served)

    def waiting(self) -> dict[str, int]:
        """How many wait, by tenant."""
        return dict(self._tenants)

    def _asked(self, replica_id: str, newcomer: Place[T] | None) -> Iterable[Group[T]]:
        if newcomer is not None:
            return (self._groups[newcomer.subset, newcomer.excluded],)
        if replica_id:
            return (*self._by_replica.get(replica_id, {}).values(), *self._by_replica.get("", {}).values())
        asked = list(itertools.islice(self._groups.values(), self._groups_max))
        if len(asked) < len(self._groups):
            for group in asked:
                self._groups.move_to_end(group.where)
        return asked

    def _group(self, place: Place[T]) -> Group[T]:
        where = (place.subset, place.excluded)
        group = self._groups.get(where)
        if group is None:
            group = self._groups[where] = Group(where)
            for replica_id in set(place.subset or ("",)):
                self._by_replica.setdefault(replica_id, {})[where] = group
        return group

    def _gives_way_to(self, newcomer: Place[T]) -> Place[T]:
        """Who loses its place to a newcomer.

        Raises:
            QuotaExceededError: Nobody.
        """
        worst = max(rank for rank, crowd in self._crowds.items() if len(crowd))
        crowd = self._crowds[worst]
        # One place fewer must leave the other tenant with no less than this one gets.
        fairer = worst == newcomer.rank and crowd.most - 1 >= crowd.count(newcomer.tenant_id) + 1
        if worst <= newcomer.rank and not fairer:
            raise full(len(self))
        return crowd.youngest_of_most()

    def _end(self, place: Place[T], end: End) -> None:
        place.end = end
        tenant_id = place.tenant_id
        self._crowds[place.rank].remove(tenant_id, place)
        self._count -= 1
        left = self._tenants[tenant_id] = self._tenants[tenant_id] - 1
        if not left:
            del self._tenants[tenant_id]
        if end is End.LET_IN and place.granted is not None and self._serves(place.granted):
            # Its turn is paid at once, and what is in service does not matter here: the replica has it now.
            self._served.serve(tenant_id, place.milli_mu, place.weight, next(self._orders) if left else None)
            self._served.end(tenant_id, 0, place.weight)
        elif not left:
            self._served.rest(tenant_id)
        group = self._groups[place.subset, place.excluded]
        group.part(place, self._served)
        if not group.rows:
            self._drop(group.where)

    def _drop(self, where: Where) -> None:
        del self._groups[where]
        for replica_id in set(where[0] or ("",)):
            groups = self._by_replica[replica_id]
            del groups[where]
            if not groups:
                del self._by_replica[replica_id]


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
