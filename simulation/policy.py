"""How a router picks a replica: the product's rule, and the ones it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final, Protocol

from data_plane.router.core.fleet import Fleet
from data_plane.router.core.pick import Health, pick
from simulation.flight import Flight


class Policy(Protocol):
    """Picks replicas for one router."""

    def choose(self, fleet: Fleet, subset: Sequence[str], flight: Flight, now_ns: int) -> str | None:
        """Picks a replica.

        Args:
            fleet: What the router knows.
            subset: The workload's replicas.
            flight: The request; replicas in its `excluded` failed it before.
            now_ns: Virtual now.

        Returns:
            The replica's id, or None when none can take it.
        """
        ...


class Product:
    """The router's own rule."""

    def choose(self, fleet: Fleet, subset: Sequence[str], flight: Flight, now_ns: int) -> str | None:
        """See Policy."""
        cost = flight.price.cost
        choice = pick(
            fleet.candidates(flight.tenant.model_id, subset, now_ns),
            prefill_milli_mu=cost.prefill_milli_mu,
            decode_milli_mu=cost.decode_milli_mu,
            session_id=flight.session_id,
            request_id=f"{flight.number:x}",
            excluded=flight.excluded,
        )
        return choice.replica_id if choice else None


class RoundRobin:
    """Each in turn, per tenant."""

    def __init__(self, random: Random) -> None:
        self._next: dict[str, int] = {}
        self._random = random

    def choose(self, fleet: Fleet, subset: Sequence[str], flight: Flight, now_ns: int) -> str | None:
        """See Policy."""
        ready = _ready(fleet, subset, flight, now_ns)
        if not ready:
            return None
        # Routers begin at different places, so that they do not move in step.
        at = self._next.get(flight.tenant.id, self._random.randrange(len(ready)))
        self._next[flight.tenant.id] = at + 1
        return ready[at % len(ready)]


class TwoChoices:
    """The one of two random replicas with fewer of this router's requests in flight."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, fleet: Fleet, subset: Sequence[str], flight: Flight, now_ns: int) -> str | None:
        """See Policy."""
        ready = _ready(fleet, subset, flight, now_ns)
        two = self._random.sample(ready, min(2, len(ready)))
        return min(two, key=lambda replica_id: _in_flight(fleet, replica_id), default=None)


class LeastRequests:
    """The replica with the fewest of this router's requests in flight; ties at random."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def choose(self, fleet: Fleet, subset: Sequence[str], flight: Flight, now_ns: int) -> str | None:
        """See Policy."""
        ready = _ready(fleet, subset, flight, now_ns)
        counts = [_in_flight(fleet, replica_id) for replica_id in ready]
        least = min(counts, default=0)
        tied = [replica_id for replica_id, count in zip(ready, counts, strict=True) if count == least]
        return self._random.choice(tied) if tied else None


POLICIES: Final[dict[str, Callable[[Random], Policy]]] = {
    "product": lambda _random: Product(),
    "round_robin": RoundRobin,
    "two_choices": TwoChoices,
    "least_requests": LeastRequests,
}
"""Every policy by its name in scenarios; each is made anew for every router, with a random stream of its own."""


def _ready(fleet: Fleet, subset: Sequence[str], flight: Flight, now_ns: int) -> list[str]:
    return [
        candidate.replica_id
        for candidate in fleet.candidates(flight.tenant.model_id, subset, now_ns)
        if candidate.health is Health.READY and candidate.replica_id not in flight.excluded
    ]


def _in_flight(fleet: Fleet, replica_id: str) -> int:
    member = fleet.get(replica_id)
    return member.load.in_flight if member is not None else 0
