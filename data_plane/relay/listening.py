"""Listening sockets: who is let in, and how many at a time.

Connections are accepted here and not by asyncio's servers, because those count nobody whose TLS handshake goes on, and
whoever only begins handshakes would have as many connections as he likes.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, cast

from common.logs import get_logger
from data_plane.relay.http2.endpoint import Endpoint

log = get_logger(__name__)

_BACKLOG: Final = 4_096
_AT_ONCE: Final = 64  # connections accepted before others have their turn
_OUT_OF_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_OUT_OF_FILES_PAUSE_S: Final = 1.0
_CLOSED_WITHIN_S: Final = 1.0


@dataclass(slots=True)
class Gate:
    """Who is inside, for all listeners of a server together.

    Attributes:
        connections_max: Most at a time, handshakes included.
        open: Connections now.
        turned_away: Closed at once, because there were too many.
        handshakes_failed: Closed, because they did not come to an understanding over TLS.
    """

    connections_max: int
    open: int = 0
    turned_away: int = 0
    handshakes_failed: int = 0


class Listener:
    """One listening socket.

    Args:
        listening: Bound; it is closed by `stop`.
        connected: Makes the end of a new connection.
        gate: Counts.
        tls: For TLS with h2, or None.
        handshake_s: Seconds for a handshake.
        inherited: Others have the socket too: what waits in it at the end is theirs.

    Attributes:
        listening: The socket.
    """

    def __init__(
        self,
        listening: socket.socket,
        connected: Callable[[], Endpoint],
        gate: Gate,
        *,
        tls: ssl.SSLContext | None,
        handshake_s: float,
        inherited: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.listening = listening
        self._connected = connected
        self._gate = gate
        self._tls = tls
        self._handshake_s = handshake_s
        self._inherited = inherited
        self._pause: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        listening.setblocking(False)
        listening.listen(_BACKLOG)
        self._loop.add_reader(listening.fileno(), self._accept)

    def stop(self) -> None:
        """Listens no more. Who has connected already is let in, where no other process would do so."""
        if self.listening.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self.listening.fileno())
        if not self._inherited:
            while self._accept_one():
                pass
        self.listening.close()

    async def closed(self) -> None:
        """Waits for the connections to have ended; handshakes that go on are broken off."""
        for task in self._handshakes:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSED_WITHIN_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        try:
            accepted, _ = self.listening.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in _OUT_OF_FILES:
                log.warning("no more connections can be opened", error=error.strerror)
                self._loop.remove_reader(self.listening.fileno())
                self._pause = self._loop.call_later(_OUT_OF_FILES_PAUSE_S, self._go_on)
                return False
            return True  # this one has gone already
        gate = self._gate
        if gate.open >= gate.connections_max:
            gate.turned_away += 1
            accepted.close()
            return True
        gate.open += 1
        accepted.setblocking(False)
        task = self._loop.create_task(self._keep(accepted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)
        return True

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self.listening.fileno(), self._accept)

    async def _keep(self, accepted: socket.socket) -> None:
        """Sees a connection from its beginning to its end."""
        gate, tls, transport = self._gate, self._tls, None
        end = self._connected()
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                lambda: cast(asyncio.Protocol, end),
                accepted,
                ssl=tls,
                ssl_handshake_timeout=self._handshake_s if tls is not None else None,
            )
            self._handshakes.discard(asyncio.current_task())
            if tls is not None and transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
                gate.handshakes_failed += 1
                transport.abort()
            await end.lost
        except OSError:  # with it TimeoutError and SSLError
            gate.handshakes_failed += 1
        finally:
            gate.open -= 1
            if transport is None:
                accepted.close()
            if not end.lost.done():
                end.lost.set_result(None)
