"""An HTTP/1.1 server on a real socket that does what a script says, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self


class Conversation:
    """One connection as a script sees it.

    Attributes:
        number: Of the connection, from 1.
        requests: Heads and bodies that came so far.
    """

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.requests: list[tuple[bytes, bytes]] = []
        self._reader = reader
        self._writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """The next request: head in lower case, and body."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
        taken = head, await self._reader.readexactly(length)
        self.requests.append(taken)
        return taken

    async def say(self, *parts: bytes) -> None:
        """Sends bytes, each part by itself."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()

    async def gone(self) -> None:
        """Returns once the client has closed."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65_536):
                pass

    def cut(self) -> None:
        """Closes at once."""
        self._writer.transport.abort()


Script = Callable[[Conversation], Awaitable[None]]


class ScriptedServer:
    """Runs the script for every connection, and closes it where the script returns.

    Args:
        script: What to do.
        tls: Served over TLS with it.

    Attributes:
        conversations: All of them so far.
        failures: What scripts raised beside lost connections.
    """

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.conversations: list[Conversation] = []
        self.failures: list[BaseException] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if kind is None:
            assert not self.failures, self.failures

    def stop(self) -> None:
        """Takes no more connections."""
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        conversation = Conversation(len(self.conversations) + 1, reader, writer)
        self.conversations.append(conversation)
        try:
            await self._script(conversation)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as error:  # noqa: BLE001  # told at the end of the test
            self.failures.append(error)
        finally:
            self._tasks.discard(task)
            writer.close()


def chunked(data: bytes) -> bytes:
    """One chunk of a body in chunks."""
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
"""Of a stream of events."""

LAST = b"0\r\n\r\n"
"""The end of a body in chunks."""
