"""The priority queue in front of the engine, and who is let into the engine when.

Engines that batch continuously take every request they are given, so waiting and overtaking must happen here: system
before interactive before batch; inside a class the tenants take turns by virtual time, each its shortest prompts first
with ageing (`fair_line.py`). A request is let in when

- a sequence slot is free; one is kept for system requests (health probes), which get in although the engine is full;
- prefill inside, of requests that have no token yet, is below its limit. An engine computes prompts in the order they
  came, so what is inside already is what nobody can overtake: a little keeps it busy, more only delays others. The
  size of who comes next does not matter, so there always is one inside, and a long prompt waits no longer than a short.
  Where several tenants are here, the next in line has less than half of the limit inside, so that a burst of one leaves
  room for who comes;
- its estimated tokens fit into the KV cache beside those of the requests inside. The head of a class that waits for
  room is not overtaken by its class or a lower one until it is in, so a long prompt does not starve.

When the queue is full, a newcomer displaces the youngest waiting request of a lower class; where there is none, that of
its own class whose tenant is furthest above its fair part, if the newcomer's is below that; else it is refused. Example
with room for two: batch b1, b2 of one tenant wait; interactive i1 displaces b2; batch c1 of another tenant is refused,
because each tenant has one request here.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from typing import Final

from engines.agent.core.fair_line import FairLine
from model_units.units import MilliModelUnitsPerMinute, served_in

PREFILL_INSIDE_S: Final = 0.2
"""Prefill without a token yet that is let into an engine, in seconds of the replica's capacity. Less leaves the engine
idle between steps, more delays other tenants. A saturated simulated H100 with prompts of 3,000 tokens serves 1.0 % less
than without a limit at 0.2 s, 1.3 % at 0.15 s and 2.5 % at 0.1 s (benchmarks/quota/isolation.py has the other side)."""


class Priority(enum.IntEnum):
    """Scheduling classes; higher overtakes lower."""

    BATCH = 1
    INTERACTIVE = 2
    SYSTEM = 3


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What the queue and the engine hold.

    Attributes:
        queued_max: Most batch and interactive requests that wait, 0 or more; system requests do not count.
        sequences_max: Most requests inside the engine, 1 or more; the last slot is for system requests where there
            are two or more.
        kv_capacity_tokens: KV cache of the engine; 0 where it does not tell, which turns this limit off.
        prefill_milli_mu: Nobody is let in while batch and interactive requests inside that have no token yet cost this
            much prefill or more, nor while those of the own tenant cost half of it, if it is not alone here, mMU; 0
            turns this limit off.
    """

    queued_max: int
    sequences_max: int
    kv_capacity_tokens: int = 0
    prefill_milli_mu: int = 0


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request as the queue sees it.

    Attributes:
        request_id: Unique among the requests here.
        priority: Its class.
        kv_tokens: Estimated prompt and output tokens, 0 or more.
        tenant_id: Whose; empty for the agent's own.
        weight: The tenant's weight, its quota in mMU per minute; less than 1 counts as 1.
        prefill_milli_mu: Price of its prefill, 0 or more.
        decode_milli_mu: Estimated price of its decoding, 0 or more.
        turn_s: Its turn among those of its tenant, see `fair_line.turn_s`; equal ones go first come first served.
    """

    request_id: str
    priority: Priority
    kv_tokens: int
    tenant_id: str = ""
    weight: int = 1
    prefill_milli_mu: int = 0
    decode_milli_mu: int = 0
    turn_s: float = 0.0

    @property
    def milli_mu(self) -> int:
        """Estimated price."""
        return self.prefill_milli_mu + self.decode_milli_mu


@dataclass(frozen=True, slots=True)
class Offer:
    """What became of a newcomer.

    Attributes:
        accepted: Whether it waits (or may go in at the next `admit`).
        displaced: The waiting request that had to leave for it, if any.
    """

    accepted: bool
    displaced: Ticket | None = None


def prefill_limit(capacity: MilliModelUnitsPerMinute) -> int:
    """The prefill that is let into an engine of this capacity, mMU, 1 or more."""
    return max(1, round(served_in(capacity, PREFILL_INSIDE_S)))


class AdmissionQueue:
    """Who waits and who is inside.

    Args:
        limits: What fits.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._arrivals = 0
        self._waiting: dict[str, Ticket] = {}
        self._lines = {priority: FairLine() for priority in sorted(Priority, reverse=True)}
        self._inside: dict[str, Ticket] = {}
        self._kv_inside = 0
        self._system_inside = 0
        self._prefilling: dict[str, Ticket] = {}
        self._prefill_inside = 0
        self._prefill_of: Counter[str] = Counter()  # by tenant
        self._here: Counter[str] = Counter()  # batch and interactive requests by tenant

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def inside(self) -> int:
        """Requests inside the engine."""
        return len(self._inside)

    def waiting_of(self, priority: Priority) -> int:
        """Requests of a class that wait."""
        return len(self._lines[priority])

    def resize(self, limits: QueueLimits) -> None:
        """Takes new limits, after a (re)start of the engine; who is inside or waits stays."""
        self._limits = limits

    def offer(self, ticket: Ticket) -> Offer:
        """Puts a request into the queue, if there is room.

        Args:
            ticket: The request.

        Raises:
            ValueError: Its id waits or is inside already.
        """
        if ticket.request_id in self._waiting or ticket.request_id in self._inside:
            raise ValueError(f"request {ticket.request_id!r} is already here")
        displaced = None
        if ticket.priority is not Priority.SYSTEM and self._full():
            displaced = self._gives_way_to(ticket)
            if displaced is None:
                return Offer(accepted=False)
            self.leave(displaced.request_id)
        self._arrivals += 1
        self._waiting[ticket.request_id] = ticket
        if ticket.priority is not Priority.SYSTEM:
            self._here[ticket.tenant_id] += 1
        self._lines[ticket.priority].join(ticket, self._arrivals)
        return Offer(accepted=True, displaced=displaced)

    def admit(self) -> tuple[Ticket, ...]:
        """Lets in everybody who fits now, in order."""
        admitted = []
        while (ticket := self._head()) is not None and self._fits(ticket):
            line = self._lines[ticket.priority]
            if not self._has_room(ticket):
                line.pin(ticket)
                break
            line.serve(ticket)
            del self._waiting[ticket.request_id]
            self._inside[ticket.request_id] = ticket
            self._kv_inside += ticket.kv_tokens
            if ticket.priority is Priority.SYSTEM:
                self._system_inside += 1
            else:
                self._prefilling[ticket.request_id] = ticket
                self._prefill_inside += ticket.prefill_milli_mu
                self._prefill_of[ticket.tenant_id] += ticket.prefill_milli_mu
            admitted.append(ticket)
        return tuple(admitted)

    def started(self, request_id: str) -> None:
        """A request inside has its first token; others may fit now. Saying it again does nothing."""
        ticket = self._prefilling.pop(request_id, None)
        if ticket is not None:
            self._prefill_inside -= ticket.prefill_milli_mu
            _take(self._prefill_of, ticket.tenant_id, ticket.prefill_milli_mu)

    def leave(self, request_id: str, *, decode_milli_mu: int = 0) -> bool:
        """Ends a request, wherever it is and however it ended; False when it is not here.

        Args:
            request_id: Which.
            decode_milli_mu: Decode work it did inside, mMU: the difference to its estimate is put right. Its prefill
                stays charged, for nobody knows how much of it was computed.
        """
        ticket = self._waiting.pop(request_id, None)
        if ticket is not None:
            self._lines[ticket.priority].leave(ticket)
            self._gone(ticket)
            return True
        inside = self._inside.pop(request_id, None)
        if inside is None:
            return False
        self._gone(inside)
        self.started(request_id)
        self._lines[inside.priority].end(inside, decode_milli_mu)
        self._kv_inside -= inside.kv_tokens
        self._system_inside -= inside.priority is Priority.SYSTEM
        return True

    def _gone(self, ticket: Ticket) -> None:
        if ticket.priority is not Priority.SYSTEM:
            _take(self._here, ticket.tenant_id, 1)

    def _full(self) -> bool:
        """Whether one more would have to wait behind a full queue; who can go in at once does not count as waiting."""
        ordinary = len(self._waiting) - len(self._lines[Priority.SYSTEM])
        return ordinary >= self._limits.queued_max and not (ordinary == 0 and self._takes_ordinary())

    def _takes_ordinary(self) -> bool:
        """Whether the engine takes one more batch or interactive request, of whatever size."""
        kept = 1 if self._limits.sequences_max > 1 else 0
        ordinary = len(self._inside) - self._system_inside
        limit = self._limits.prefill_milli_mu
        return ordinary < self._limits.sequences_max - kept and (limit == 0 or self._prefill_inside < limit)

    def _gives_way_to(self, newcomer: Ticket) -> Ticket | None:
        """Who leaves a full queue for a newcomer."""
        for priority in (Priority.BATCH, Priority.INTERACTIVE):
            line = self._lines[priority]
            crowded = line.most_crowded()
            if crowded is not None:
                gives_way = priority < newcomer.priority or (
                    priority is newcomer.priority and line.gives_way(crowded, newcomer)
                )
                return crowded if gives_way else None
        return None

    def _head(self) -> Ticket | None:
        for line in self._lines.values():
            if line:
                return line.head()
        return None

    def _fits(self, ticket: Ticket) -> bool:
        """Whether the engine takes one more of this class, of whatever size."""
        if len(self._inside) >= self._limits.sequences_max:
            return False
        if ticket.priority is Priority.SYSTEM:
            return True
        own, limit = self._prefill_of[ticket.tenant_id], self._limits.prefill_milli_mu
        return self._takes_ordinary() and (len(self._here) == 1 or limit == 0 or 2 * own < limit)

    def _has_room(self, ticket: Ticket) -> bool:
        """Whether its tokens fit into the cache."""
        if ticket.priority is Priority.SYSTEM:
            return True
        capacity = self._limits.kv_capacity_tokens
        # Who is alone is let in whatever its size: the engine itself says whether it can take it.
        return capacity == 0 or not self._inside or self._kv_inside + ticket.kv_tokens <= capacity


def _take(counts: Counter[str], tenant_id: str, number: int) -> None:
    """Takes from a count that is forgotten at 0."""
    counts[tenant_id] -= number
    if counts[tenant_id] <= 0:
        del counts[tenant_id]
