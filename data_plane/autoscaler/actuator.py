"""The seam between scaling decisions and whatever runs replicas: processes, containers, pods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fairlead.admin.v1 import admin_pb2


@dataclass(frozen=True, slots=True)
class RunningSeat:
    """A seat as its actuator knows it.

    Attributes:
        model_id: The model.
        slot: The seat's name, unique within the model.
        start_number: Counts the starts of this seat from 1.
        pid: Process id of its agent where the actuator runs processes; else 0.
        alive: Whether its agent runs.
    """

    model_id: str
    slot: str
    start_number: int
    pid: int
    alive: bool


class Actuator(Protocol):
    """Runs replica agents. Remembers its seats over its own restarts, so that none is ever started twice."""

    async def seats(self) -> tuple[RunningSeat, ...]:
        """Every seat, alive or dead, until it is forgotten. Sorted by model and slot."""
        ...

    async def start(self, model: admin_pb2.Model, slot: str) -> RunningSeat:
        """Starts an agent in a seat; a seat whose agent is alive is returned as it is.

        Raises:
            fairlead.errors.UnavailableError: It cannot be started now; the message says why.
        """
        ...

    async def stop(self, model_id: str, slot: str) -> None:
        """Ends a seat's agent with its engine, by force if it does not end by itself, and returns when it is gone.

        A seat that is unknown or dead is left as it is.
        """
        ...

    async def forget(self, model_id: str, slot: str) -> None:
        """Removes a dead seat. A seat that is alive is left as it is."""
        ...
