"""The priority queue in front of the engine, and who is let into the engine when.

Engines that batch continuously take every request they are given, so waiting and overtaking must happen here: system
before interactive before batch, first come first served inside a class. A request is let in when a sequence slot is
free and its estimated tokens fit beside those of the requests inside. The head of the line is never overtaken for want
of room, so a long prompt does not starve. One slot is kept for system requests (health probes): they get in although
the engine is full.

When the queue is full, a newcomer displaces the youngest waiting request of a lower class, and is refused where there
is none. Example with room for two: batch b1, b2 wait; interactive i1 displaces b2; another batch b3 is refused.
"""

from __future__ import annotations

import enum
import heapq
from dataclasses import dataclass


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
    """

    queued_max: int
    sequences_max: int
    kv_capacity_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request as the queue sees it.

    Attributes:
        request_id: Unique among the requests here.
        priority: Its class.
        kv_tokens: Estimated prompt and output tokens, 0 or more.
    """

    request_id: str
    priority: Priority
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Offer:
    """What became of a newcomer.

    Attributes:
        accepted: Whether it waits (or may go in at the next `admit`).
        displaced: The waiting request that had to leave for it, if any.
    """

    accepted: bool
    displaced: Ticket | None = None


class AdmissionQueue:
    """Who waits and who is inside.

    Args:
        limits: What fits.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._arrivals = 0
        self._waiting: dict[str, tuple[tuple[int, int], Ticket]] = {}
        self._order: list[tuple[tuple[int, int], str]] = []  # heap; entries of those who left are dropped when met
        self._inside: dict[str, Ticket] = {}
        self._kv_inside = 0
        self._system_waiting = 0
        self._system_inside = 0

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def inside(self) -> int:
        """Requests inside the engine."""
        return len(self._inside)

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
            displaced = self._youngest_below(ticket.priority)
            if displaced is None:
                return Offer(accepted=False)
            self.leave(displaced.request_id)
        self._arrivals += 1
        order = (-ticket.priority, self._arrivals)
        self._waiting[ticket.request_id] = (order, ticket)
        self._system_waiting += ticket.priority is Priority.SYSTEM
        heapq.heappush(self._order, (order, ticket.request_id))
        return Offer(accepted=True, displaced=displaced)

    def admit(self) -> tuple[Ticket, ...]:
        """Lets in everybody who fits now, in order."""
        admitted = []
        while (ticket := self._head()) is not None and self._fits(ticket):
            heapq.heappop(self._order)
            del self._waiting[ticket.request_id]
            self._system_waiting -= ticket.priority is Priority.SYSTEM
            self._inside[ticket.request_id] = ticket
            self._system_inside += ticket.priority is Priority.SYSTEM
            self._kv_inside += ticket.kv_tokens
            admitted.append(ticket)
        return tuple(admitted)

    def leave(self, request_id: str) -> bool:
        """Ends a request, wherever it is and however it ended; False when it is not here."""
        if request_id in self._waiting:
            _, ticket = self._waiting.pop(request_id)
            self._system_waiting -= ticket.priority is Priority.SYSTEM
            if len(self._order) > 2 * len(self._waiting) + 16:
                self._order = [(order, name) for name, (order, _) in self._waiting.items()]
                heapq.heapify(self._order)
            return True
        inside = self._inside.pop(request_id, None)
        if inside is None:
            return False
        self._kv_inside -= inside.kv_tokens
        self._system_inside -= inside.priority is Priority.SYSTEM
        return True

    def _full(self) -> bool:
        """Whether one more would have to wait behind a full queue; who can go in at once does not count as waiting."""
        ordinary = len(self._waiting) - self._system_waiting
        return ordinary >= self._limits.queued_max and not (ordinary == 0 and self._ordinary_slots_free() > 0)

    def _ordinary_slots_free(self) -> int:
        kept = 1 if self._limits.sequences_max > 1 else 0
        return self._limits.sequences_max - kept - (len(self._inside) - self._system_inside)

    def _youngest_below(self, priority: Priority) -> Ticket | None:
        candidates = [entry for entry in self._waiting.values() if entry[1].priority < priority]
        return max(candidates, key=lambda entry: entry[0])[1] if candidates else None

    def _head(self) -> Ticket | None:
        while self._order:
            order, request_id = self._order[0]
            entry = self._waiting.get(request_id)
            if entry is not None and entry[0] == order:
                return entry[1]
            heapq.heappop(self._order)
        return None

    def _fits(self, ticket: Ticket) -> bool:
        if len(self._inside) >= self._limits.sequences_max:
            return False
        if ticket.priority is Priority.SYSTEM:
            return True
        if self._ordinary_slots_free() <= 0:
            return False
        capacity = self._limits.kv_capacity_tokens
        # Who is alone is let in whatever its size: the engine itself says whether it can take it.
        return capacity == 0 or not self._inside or self._kv_inside + ticket.kv_tokens <= capacity
