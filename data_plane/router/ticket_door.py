"""IssueTicket on our own relay: every stream of a client with tickets begins with it."""

from __future__ import annotations

import asyncio

from data_plane.relay.grpc.calls import Method, ServerCall
from data_plane.relay.grpc.framing import framed
from data_plane.router.grpc_door import Answered, GrpcDoor
from data_plane.router.ticket_desk import Asked, TicketDesk
from fairlead.errors import FairleadError


def ticket_methods(door: GrpcDoor, desk: TicketDesk) -> dict[str, Method]:
    """What is served of InferenceService, by name.

    Args:
        door: Reads requests.
        desk: Issues tickets.
    """
    return {"IssueTicket": lambda call: Issued(door, desk, call)}


class Issued(Answered):
    """A call of IssueTicket.

    Args:
        door: Where it came in.
        desk: Issues tickets.
        call: The call.
    """

    __slots__ = ("_asked", "_desk", "_task")

    def __init__(self, door: GrpcDoor, desk: TicketDesk, call: ServerCall) -> None:
        self._desk = desk
        self._asked = False
        self._task: asyncio.Task[None] | None = None
        super().__init__(door, call)

    def on_message(self, message: bytes) -> None:
        """See Served."""
        if self._asked:
            return
        self._asked = True
        try:
            request = self._door.read(self, message)
        except FairleadError as error:
            self._refuse(error)
            return
        try:
            asked = self._desk.begin(request)
        except FairleadError as error:
            self.call.fail(error)
            return
        if asked.ticket is not None:
            self._answer(asked.ticket)
        else:
            self._task = asyncio.get_running_loop().create_task(self._wait(asked))

    def on_gone(self) -> None:
        """See Served."""
        if self._task is not None:
            self._task.cancel()

    async def _wait(self, asked: Asked) -> None:
        try:
            ticket = await self._desk.wait(asked)
        except FairleadError as error:
            self.call.fail(error)
        else:
            self._answer(ticket)

    def _answer(self, ticket: bytes) -> None:
        self.call.send(framed(ticket))
        self.call.finish(b"")
