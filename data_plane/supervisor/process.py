"""One worker process: started with what it inherits, listened to, signalled, waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Collection, Sequence
from typing import Self, cast

import msgspec

from common.logs import get_logger
from data_plane.supervisor import wire
from fairlead.errors import InvalidArgumentError

log = get_logger(__name__)

Hear = Callable[[bytes, list[bytes]], None]


class WorkerProcess(asyncio.Protocol):
    """A running worker.

    Args:
        hear: Called with the first word of each line that it says, and the others.
    """

    def __init__(self, hear: Hear) -> None:
        self._hear = hear
        self._lines = wire.Lines()
        self._channel: asyncio.WriteTransport | None = None
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    async def start(cls, command: Sequence[str], inherited: wire.Inherited, hear: Hear) -> Self:
        """Starts a process in a session of its own, so that a terminal's signals reach the supervisor only.

        Args:
            command: What to run.
            inherited: What it gets; its channel is opened here.
            hear: See the class.

        Raises:
            OSError: The machine has no room for it.
        """
        worker = cls(hear)
        own, its = socket.socketpair()
        with its:
            try:
                await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=own)
            except OSError:
                own.close()
                raise
            given = msgspec.structs.replace(inherited, channel=its.fileno())
            try:
                worker._process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    env=os.environ | {wire.VARIABLE: given.encode()},
                    pass_fds=(given.channel, *given.grpc, *given.http),
                    start_new_session=True,
                )
            except OSError:
                worker.close()
                raise
        return worker

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def wait(self) -> int:
        """Waits for its end.

        Returns:
            The exit code; negative for a signal.
        """
        assert self._process is not None
        code = await self._process.wait()
        self.close()
        return code

    def accept_from(self, slots: Collection[int]) -> None:
        """Says from which slots' sockets it accepts."""
        if self._channel is not None and not self._channel.is_closing():
            self._channel.write(b" ".join((wire.ACCEPT, *(b"%d" % slot for slot in sorted(slots)))) + b"\n")

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, unless it has ended."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def close(self) -> None:
        """Listens to it no more."""
        if self._channel is not None:
            self._channel.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._channel = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            for word, *others in self._lines.feed(data):
                self._hear(word, others)
        except InvalidArgumentError as error:
            log.error("worker is not understood", pid=self.pid, error=error.message)
            self.close()
