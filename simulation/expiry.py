"""Timeouts that are hardly ever reached: kept in order of arrival, looked at now and then, never on the event heap."""

from __future__ import annotations

from simulation.flight import Flight


class Expiry:
    """Requests that wait for something, grouped by how long they may.

    Within a group they expire in the order in which they came, so a look costs what has expired and no more.
    """

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        self._groups: dict[int, dict[int, Flight]] = {}

    def add(self, flight: Flight, limit_ns: int) -> None:
        """A request begins to wait; it expires `limit_ns` after its arrival."""
        group = self._groups.get(limit_ns)
        if group is None:
            group = self._groups[limit_ns] = {}
        group[flight.number] = flight

    def discard(self, flight: Flight, limit_ns: int) -> None:
        """It waits no longer; harmless when it did not wait."""
        group = self._groups.get(limit_ns)
        if group is not None:
            group.pop(flight.number, None)

    def expired(self, now_ns: int) -> list[Flight]:
        """Takes out everybody whose time is over."""
        over: list[Flight] = []
        for limit_ns, group in self._groups.items():
            while group:
                number = next(iter(group))
                if now_ns - group[number].arrived_ns < limit_ns:
                    break
                over.append(group.pop(number))
        return over

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())
