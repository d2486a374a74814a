"""The tickets that one router has issued and that have not ended.

    issued ──redeemed──> running ──────────> ended     as the replica reports
       ├── expired, as the replica reckons: unused     the replica will never take it
       └── given back, the replica agrees:  unused
    issued, running ──── the replica is lost ──> lost  charged for what was reported

A ticket leaves the book exactly once, whatever is reported how often and in which order; whoever takes it out settles
it. Nothing ends by a guess at time: a replica's reports say how far they go by the router's own clock, and a ticket
that expired before that and was not reported is not going to be redeemed. Only a replica that is not heard any more is
given up after a while.
"""

from __future__ import annotations

import heapq
from typing import Final, Generic, NamedTuple, TypeVar

OPEN_MAX: Final = 100_000
"""Most open tickets of one router, each about 3 kB of memory."""

T = TypeVar("T")


class OpenTicket(Generic[T]):
    """A ticket that has not ended.

    Attributes:
        number: Its name; grows with every ticket.
        replica_id: Where it may be redeemed.
        expires_ns: When it can no longer be.
        held: What it stands for.
        redeemed: The replica said that it was.
        output_tokens: Reported so far.
        returned: The client gave it back; the replica has not agreed yet.
    """

    __slots__ = ("expires_ns", "held", "number", "output_tokens", "redeemed", "replica_id", "returned")

    def __init__(self, number: int, replica_id: str, expires_ns: int, held: T) -> None:
        self.number = number
        self.replica_id = replica_id
        self.expires_ns = expires_ns
        self.held = held
        self.redeemed = False
        self.output_tokens = 0
        self.returned = False


class Moved(NamedTuple, Generic[T]):
    """What a report changed.

    Attributes:
        ticket: Of which ticket.
        output_tokens: New tokens.
    """

    ticket: OpenTicket[T]
    output_tokens: int


class _Replica(Generic[T]):
    __slots__ = ("expiries", "tickets")

    def __init__(self) -> None:
        self.tickets: dict[int, OpenTicket[T]] = {}
        self.expiries: list[tuple[int, int]] = []  # a heap of (when, number)


class TicketBook(Generic[T]):
    """All open tickets, by replica."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica[T]] = {}
        self._last = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def next_number(self) -> int:
        """The name of the ticket that `add` takes next."""
        return self._last + 1

    def add(self, replica_id: str, expires_ns: int, held: T) -> OpenTicket[T]:
        """Enters a ticket.

        Args:
            replica_id: Where it may be redeemed.
            expires_ns: When it can no longer be.
            held: What it stands for.
        """
        self._last += 1
        self._count += 1
        ticket = OpenTicket(self._last, replica_id, expires_ns, held)
        replica = self._replicas.get(replica_id)
        if replica is None:
            replica = self._replicas[replica_id] = _Replica()
        replica.tickets[ticket.number] = ticket
        heapq.heappush(replica.expiries, (expires_ns, ticket.number))
        return ticket

    def find(self, replica_id: str, number: int) -> OpenTicket[T] | None:
        """A ticket, while it is open."""
        replica = self._replicas.get(replica_id)
        return None if replica is None else replica.tickets.get(number)

    def returned(self, replica_id: str) -> list[int]:
        """Tickets that were given back and that the replica has to agree to, all of them again and again."""
        replica = self._replicas.get(replica_id)
        return [] if replica is None else [each.number for each in replica.tickets.values() if each.returned]

    def report(self, replica_id: str, number: int, output_tokens: int, *, ended: bool) -> Moved[T] | None:
        """A replica reports a ticket. Where it ended it is out of the book, and to be settled.

        Args:
            replica_id: The replica.
            number: The ticket.
            output_tokens: Handed to the client in all.
            ended: It ended.

        Returns:
            What is new; None where no such ticket of that replica is open: it was settled before.
        """
        ticket = self.find(replica_id, number)
        if ticket is None:
            return None
        ticket.redeemed = True
        fresh = max(0, output_tokens - ticket.output_tokens)
        ticket.output_tokens += fresh
        if ended:
            self._take(ticket)
        return Moved(ticket, fresh)

    def caught_up(self, replica_id: str, as_of_ns: int) -> list[OpenTicket[T]]:
        """A replica has reported all that was redeemed until then, and redeems nothing more that expires by then.

        Args:
            replica_id: The replica.
            as_of_ns: Until when.

        Returns:
            Tickets that are out of the book because they were not used.
        """
        replica = self._replicas.get(replica_id)
        if replica is None:
            return []
        unused = []
        while replica.expiries and replica.expiries[0][0] <= as_of_ns:
            ticket = replica.tickets.get(heapq.heappop(replica.expiries)[1])
            if ticket is not None and not ticket.redeemed:
                self._take(ticket)
                unused.append(ticket)
        return unused

    def lost(self, replica_id: str) -> list[OpenTicket[T]]:
        """A replica is given up; all its tickets are out of the book.

        Returns:
            The tickets.
        """
        replica = self._replicas.get(replica_id)
        tickets = list(replica.tickets.values()) if replica is not None else []
        for ticket in tickets:
            self._take(ticket)
        return tickets

    def replicas(self) -> list[str]:
        """Replicas with open tickets."""
        return list(self._replicas)

    def _take(self, ticket: OpenTicket[T]) -> None:
        replica = self._replicas[ticket.replica_id]
        del replica.tickets[ticket.number]
        self._count -= 1
        if not replica.tickets:
            del self._replicas[ticket.replica_id]
