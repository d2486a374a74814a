"""A router as a worker: the listening sockets that it inherits, and its channel to the supervisor.

A worker listens on its own slot's sockets once it serves, and says so; from then on it follows the supervisor, which
names the slots that nobody else serves for the moment. It says every second that its loop runs.

When the supervisor is gone, the worker serves on for `ORPHAN_S`: whoever restarts the supervisor has new workers on the
same ports by then. After that it drains and ends: nobody would ever replace it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Final, Protocol, cast

from common.logs import get_logger
from data_plane.supervisor import wire
from fairlead.errors import FairleadError

ORPHAN_S: Final = 5.0

log = get_logger(__name__)


class Door(Protocol):
    """A server that takes listening sockets."""

    async def listen_on(self, sockets: Sequence[socket.socket]) -> int:
        """Takes connections from these sockets, which become its own; returns the first one's port."""
        ...

    async def leave(self, sockets: Sequence[socket.socket]) -> None:
        """Takes no more connections from these sockets and closes them; the connections it has stay."""
        ...


class Worker(asyncio.Protocol):
    """This process's place under its supervisor.

    Args:
        inherited: What it got.

    Attributes:
        beside: Instance id of a worker that serves already; empty for none.
        replaces: That one leaves once this one is ready, and stays where this one does not become so.
        grpc: The slot's own listening sockets of gRPC, for the door that closes them in the end.
        http: Likewise.
    """

    def __init__(self, inherited: wire.Inherited) -> None:
        self.beside, self.replaces = inherited.beside, inherited.replaces
        self.grpc = [_copy(inherited.grpc[inherited.slot])]
        self.http = [_copy(inherited.http[inherited.slot])]
        self._inherited = inherited
        self._lines = wire.Lines()
        self._channel: asyncio.WriteTransport | None = None
        self._stop = asyncio.Event()
        self._accept: frozenset[int] = frozenset((inherited.slot,))
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._left = False
        # By slot; what its own slot has belongs to the doors.
        self._open: dict[int, list[tuple[Door, socket.socket]]] = {inherited.slot: []}

    @classmethod
    def from_environment(cls) -> Worker | None:
        """Reads what this process has inherited; None where no supervisor started it.

        Raises:
            InvalidArgumentError: The variable was not written by a supervisor.
        """
        # Whatever this process starts has inherited nothing.
        value = os.environ.pop(wire.VARIABLE, "")
        return cls(wire.Inherited.decode(value)) if value else None

    async def join(self, stop: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        """Begins to speak to the supervisor.

        Args:
            stop: Set when the supervisor has been gone for a while.
            tasks: For what runs meanwhile; it ends with `leaves`.
        """
        self._stop = stop
        channel = socket.socket(fileno=self._inherited.channel)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=channel)
        self._tasks.append(tasks.create_task(self._live()))

    def serves(self, ops_address: str, grpc: Door, http: Door, tasks: asyncio.TaskGroup) -> None:
        """Says that this worker serves, and from now on takes connections from where the supervisor says.

        Args:
            ops_address: Where it serves its metrics.
            grpc: Serves the sockets of gRPC already.
            http: Likewise.
            tasks: For what runs meanwhile; it ends with `leaves`.
        """
        self._say(wire.READY, ops_address.encode())
        self._tasks.append(tasks.create_task(self._follow(grpc, http)))

    def leaves(self) -> None:
        """Says that it takes nothing new any more, once. The doors close the sockets they have themselves."""
        if self._left:
            return
        self._left = True
        for task in self._tasks:
            task.cancel()
        self._say(wire.LEAVING)
        # Where the supervisor has let go of them too, whoever connects is refused at once instead of waiting in vain.
        for number in (*self._inherited.grpc, *self._inherited.http):
            os.close(number)

    async def _live(self) -> None:
        while True:
            self._say(wire.ALIVE)
            await asyncio.sleep(wire.ALIVE_INTERVAL_S)

    async def _follow(self, grpc: Door, http: Door) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            for slot in sorted(self._open.keys() - self._accept):
                for door, copy in self._open.pop(slot):
                    await door.leave([copy])
            for slot in sorted(self._accept - self._open.keys()):
                inherited = ((grpc, self._inherited.grpc), (http, self._inherited.http))
                copies = self._open[slot] = [(door, _copy(numbers[slot])) for door, numbers in inherited]
                for door, copy in copies:
                    await door.listen_on([copy])

    def _say(self, *words: bytes) -> None:
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(b" ".join(words) + b"\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._channel = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        with contextlib.suppress(FairleadError, ValueError):
            for word, *others in self._lines.feed(data):
                if word == wire.ACCEPT:
                    known = frozenset(range(len(self._inherited.grpc)))
                    self._accept = (frozenset(map(int, others)) & known) | {self._inherited.slot}
                    self._changed.set()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        log.warning("supervisor gone; serving on for a moment", seconds=ORPHAN_S)
        asyncio.get_running_loop().call_later(ORPHAN_S, self._stop.set)


def _copy(number: int) -> socket.socket:
    """A socket that a door may close: the inherited one stays for the next time."""
    return socket.socket(fileno=os.dup(number))
