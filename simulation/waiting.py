"""Where a router's batch requests wait: the product's queue and gate, driven in virtual time."""

from __future__ import annotations

from collections.abc import Callable

from data_plane.router.core.batch_gate import BatchGate
from data_plane.router.core.batch_queue import BatchQueue, End, Never, Ticket, full
from data_plane.router.core.holds import BucketKey, Hold, Holds, Refused
from fairlead.errors import QuotaExceededError
from simulation.flight import Flight
from simulation.kernel import Loop


class WaitingBatch:
    """The waiting batch requests of one router; what `BatchDesk` is in the product.

    Args:
        loop: Virtual time.
        holds: The router's buckets.
        gate: Takes the holds.
        admitted: Told of who got its hold.
        refused: Told of who is turned away: why, and the seconds after which it may come back, if any.
    """

    def __init__(
        self,
        loop: Loop,
        holds: Holds,
        gate: BatchGate,
        *,
        admitted: Callable[[Flight, Hold], None],
        refused: Callable[[Flight, str, float | None], None],
    ) -> None:
        self._loop = loop
        self._holds = holds
        self._gate = gate
        self._admitted = admitted
        self._refused = refused
        self._queue: BatchQueue[Hold] = BatchQueue()
        self._tickets: dict[Ticket[Hold], Flight] = {}
        self._places: dict[int, Ticket[Hold]] = {}  # by the flight's number
        self._look_ns = 0

    def waiting(self) -> dict[BucketKey, int]:
        """What waits, mMU by bucket."""
        return self._queue.waiting()

    def enter(self, flight: Flight) -> None:
        """A request begins to wait; in front where it was admitted before."""
        tenant, now_ns = flight.tenant, self._loop.now_ns
        try:
            ticket = self._queue.enter(
                tenant.bucket,
                flight.price.cost.total_milli_mu,
                deadline_ns=flight.arrived_ns + tenant.deadline_ns,
                bucket=self._holds.view(tenant.bucket, now_ns),
                now_ns=now_ns,
                returned=flight.returned,
            )
        except QuotaExceededError as error:
            self._refused(flight, error.reason.value, error.retry_after_s)
            return
        self._tickets[ticket], self._places[flight.number] = flight, ticket
        if ticket.displaced is not None:
            refusal = full(ticket.displaced.key)
            self._refused(self._take_off(ticket.displaced), refusal.reason.value, refusal.retry_after_s)
        if flight.returned:
            # It may have come back in the middle of a look.
            self._plan()
        else:
            self._look(None)

    def leave(self, flight: Flight) -> None:
        """A request is given up; harmless where it does not wait."""
        ticket = self._places.get(flight.number)
        if ticket is not None:
            self._queue.leave(ticket)
            self._take_off(ticket)

    def _take_off(self, ticket: Ticket[Hold]) -> Flight:
        flight = self._tickets.pop(ticket)
        del self._places[flight.number]
        return flight

    def _look(self, _: object) -> None:
        now_ns = self._loop.now_ns

        def take(key: BucketKey, amount_milli_mu: int) -> Hold | Refused | Never | None:
            return self._gate.take(key, amount_milli_mu, now_ns)

        for ticket in self._queue.admit(take, now_ns):
            flight = self._take_off(ticket)
            if ticket.end is End.ADMITTED:
                assert ticket.granted is not None
                self._admitted(flight, ticket.granted)
            else:
                assert ticket.refused is not None
                self._refused(flight, ticket.refused.refusal.value, ticket.refused.retry_after_s)
        self._plan()

    def _plan(self) -> None:
        next_ns = self._queue.next_ns
        if next_ns is not None and not self._loop.now_ns < self._look_ns <= next_ns:
            self._look_ns = next_ns
            self._loop.at(next_ns, self._look, None)
