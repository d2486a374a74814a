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

    def leave(self, sockets: Sequence[socket.socket]) -> None:
        """Takes no more connections from these sockets and closes them, which leaves those it has as they are."""
        ...


class Worker(asyncio.Protocol):
    """This process's place under its supervisor.

    Args:
        inherited: What it got.

    Attributes:
        replaces: Another worker serves the slot until this one is ready.
    """

    def __init__(self, inherited: wire.Inherited) -> None:
        self.replaces = inherited.replaces
        self._inherited = inherited
        self._lines = wire.Lines()
        self._channel: asyncio.WriteTransport | None = None
        self._stop = asyncio.Event()
        self._accept: frozenset[int] = frozenset((inherited.slot,))
        self._changed = asyncio.Event()
        self._doors: tuple[tuple[Door, tuple[int, ...]], ...] = ()
        self._open: dict[int, list[socket.socket]] = {}

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
        self._tasks = [tasks.create_task(self._live())]
        self._group = tasks

    async def open(self, grpc: Door, http: Door) -> tuple[int, int]:
        """Listens on the sockets of the worker's own slot.

        Returns:
            The ports of gRPC and HTTP.
        """
        self._doors = ((grpc, self._inherited.grpc), (http, self._inherited.http))
        grpc_port, http_port = await self._listen(self._inherited.slot)
        return grpc_port, http_port

    def serves(self, ops_address: str) -> None:
        """Says that this worker serves, and from now on takes connections from where the supervisor says."""
        self._say(wire.READY, ops_address.encode())
        self._tasks.append(self._group.create_task(self._follow()))

    def leaves(self) -> None:
        """Says that it takes nothing new any more. The doors close their sockets themselves."""
        for task in self._tasks:
            task.cancel()
        self._say(wire.LEAVING)

    async def _live(self) -> None:
        while True:
            self._say(wire.ALIVE)
            await asyncio.sleep(wire.ALIVE_INTERVAL_S)

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            for slot in sorted(self._open.keys() - self._accept):
                self._leave(slot)
            for slot in sorted(self._accept - self._open.keys()):
                await self._listen(slot)

    async def _listen(self, slot: int) -> list[int]:
        # A door closes its sockets; the inherited ones stay for the next time.
        copies = [socket.socket(fileno=os.dup(numbers[slot])) for _, numbers in self._doors]
        self._open[slot] = copies
        return [await door.listen_on([copy]) for (door, _), copy in zip(self._doors, copies, strict=True)]

    def _leave(self, slot: int) -> None:
        for (door, _), copy in zip(self._doors, self._open.pop(slot), strict=True):
            door.leave([copy])

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
                    self._accept = frozenset(map(int, others)) & frozenset(range(len(self._inherited.grpc)))
                    self._changed.set()

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        log.warning("supervisor gone; serving on for a moment", seconds=ORPHAN_S)
        asyncio.get_running_loop().call_later(ORPHAN_S, self._stop.set)
