"""One class of the agent's queue: shortest prompt first with ageing within a tenant, virtual time between tenants.

The head is the first request of the tenant with the least counter (model_units/virtual_time.py). A tenant's requests go
by their turn,

    turn = arrival + AGEING * prefill

in seconds; equal turns go as they came. A turn never changes, and nobody who comes after it can be before it: a request
with a prefill of p seconds is overtaken only by what its own tenant sends within AGEING * p seconds, so it does not
starve. A head that waits for room in the KV cache is *pinned*: it stays the head whoever comes, so that a long prompt
is not starved by short ones.

Where somebody has to leave, it is the youngest request of the tenant with most waiting beside its first, over its
weight: the one furthest above its fair part of the line.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from model_units.units import MilliModelUnits, MilliModelUnitsPerMinute, seconds_to_serve
from model_units.virtual_time import NS_PER_MINUTE, VirtualTime

if TYPE_CHECKING:
    from engines.agent.core.queue import Ticket

AGEING: Final = 5.0
"""Seconds of waiting that weigh as much as one second of prefill. On a mix of chat, code and long-context traces over
seven simulated replicas it takes 10 % off the p95 time to first token of first come first served; 1 to 20 do alike."""

# As in model_units/virtual_time.py.
_STALE_MIN: Final = 16


def turn_s(arrival_s: float, prefill_milli_mu: int, capacity: MilliModelUnitsPerMinute) -> float:
    """A request's turn among those of its tenant: the least is first.

    Args:
        arrival_s: When it came, seconds of any clock that all of them share.
        prefill_milli_mu: Price of its prefill, mMU, 0 or more.
        capacity: What the replica serves, mMU per minute, above 0.
    """
    return arrival_s + AGEING * seconds_to_serve(MilliModelUnits(prefill_milli_mu), capacity)


class _TenantLine:
    """Waiting requests of one tenant, in order of arrival and by turn."""

    __slots__ = ("_turns", "tickets", "weight")

    def __init__(self) -> None:
        self.tickets: OrderedDict[str, tuple[int, Ticket]] = OrderedDict()
        self.weight = 1
        self._turns: list[tuple[float, int, str]] = []  # heap of (turn, order, id), some of them gone

    def join(self, order: int, ticket: Ticket) -> None:
        self.tickets[ticket.request_id] = (order, ticket)
        heapq.heappush(self._turns, (ticket.turn_s, order, ticket.request_id))
        if len(self._turns) > 2 * len(self.tickets) + _STALE_MIN:
            self._turns = [(each.turn_s, order, name) for name, (order, each) in self.tickets.items()]
            heapq.heapify(self._turns)

    @property
    def first(self) -> tuple[int, Ticket]:
        while True:
            _, order, name = self._turns[0]
            known = self.tickets.get(name)
            if known is not None and known[0] == order:
                return known
            heapq.heappop(self._turns)

    @property
    def last(self) -> tuple[int, Ticket]:
        return next(reversed(self.tickets.values()))

    @property
    def excess(self) -> int:
        """What waits beside the first, over the weight."""
        return (len(self.tickets) - 1) * NS_PER_MINUTE // self.weight


class FairLine:
    """The waiting requests of one class, and the virtual time in which they are let in."""

    def __init__(self) -> None:
        self._time = VirtualTime()
        self._tenants: dict[str, _TenantLine] = {}
        self._crowds: list[tuple[int, int, str]] = []  # heap of (-excess, -order of the youngest, tenant): lower bounds
        self._pinned: Ticket | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def join(self, ticket: Ticket, order: int) -> None:
        """A request takes its place.

        Args:
            ticket: The request.
            order: Its place in order of arrival.
        """
        line = self._tenants.get(ticket.tenant_id)
        if line is None:
            line = self._tenants[ticket.tenant_id] = _TenantLine()
        line.weight = max(1, ticket.weight)
        line.join(order, ticket)
        self._count += 1
        if line.first[1] is ticket:
            self._time.wait(ticket.tenant_id, order)
        heapq.heappush(self._crowds, (-line.excess, -order, ticket.tenant_id))
        if len(self._crowds) > 2 * len(self._tenants) + _STALE_MIN:
            self._crowds = [(-each.excess, -each.last[0], name) for name, each in self._tenants.items()]
            heapq.heapify(self._crowds)

    def head(self) -> Ticket | None:
        """Who is next; None when nobody waits."""
        if self._pinned is not None:
            return self._pinned
        tenant = self._time.next()
        return None if tenant is None else self._tenants[tenant].first[1]

    def pin(self, ticket: Ticket) -> None:
        """The head waits for room and stays the head until it is let in or leaves."""
        self._pinned = ticket

    def serve(self, ticket: Ticket) -> None:
        """The head goes into the engine and is charged its estimate."""
        line = self._take(ticket)
        next_order = line.first[0] if line.tickets else None
        self._time.serve(ticket.tenant_id, ticket.milli_mu, ticket.weight, next_order)

    def leave(self, ticket: Ticket) -> None:
        """A waiting request leaves without having been let in."""
        line = self._tenants[ticket.tenant_id]
        was_first = line.first[1] is ticket
        self._take(ticket)
        if not line.tickets:
            self._time.rest(ticket.tenant_id)
        elif was_first:
            self._time.wait(ticket.tenant_id, line.first[0])

    def end(self, ticket: Ticket, decode_milli_mu: int) -> None:
        """A request that was let in has ended, after decode work of `decode_milli_mu`."""
        self._time.end(ticket.tenant_id, decode_milli_mu - ticket.decode_milli_mu, ticket.weight)

    def most_crowded(self) -> Ticket | None:
        """The youngest request of the tenant furthest above its fair part; None when nobody waits."""
        heap = self._crowds
        while heap:
            _, _, tenant = entry = heap[0]
            line = self._tenants.get(tenant)
            if line is None:
                heapq.heappop(heap)
                continue
            order, ticket = line.last
            now = (-line.excess, -order, tenant)
            if now == entry:
                return ticket
            heapq.heapreplace(heap, now)
        return None

    def gives_way(self, crowded: Ticket, newcomer: Ticket) -> bool:
        """Whether a newcomer's tenant would stay below that of `crowded` if it took one place from it."""
        line = self._tenants.get(newcomer.tenant_id)
        waiting = len(line.tickets) if line is not None else 0
        mine = waiting * NS_PER_MINUTE // max(1, newcomer.weight)
        return mine < self._tenants[crowded.tenant_id].excess

    def _take(self, ticket: Ticket) -> _TenantLine:
        line = self._tenants[ticket.tenant_id]
        del line.tickets[ticket.request_id]
        self._count -= 1
        if self._pinned is ticket:
            self._pinned = None
        if not line.tickets:
            del self._tenants[ticket.tenant_id]
        return line
