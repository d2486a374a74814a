"""The two connections of a relay."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast


class Half(asyncio.Protocol):
    """One of a relay's two connections: what it receives leaves at its peer, no faster than the peer takes it.

    Until it has a peer it keeps what arrives and reads no more: uvloop reads once even where `connection_made` pauses.

    Args:
        opened: Called once the connection stands; None for the side towards a container.
    """

    def __init__(self, opened: Callable[[Half], None] | None = None) -> None:
        self.peer: Half | None = None
        self.closed = asyncio.Event()
        self._opened = opened
        self._transport: asyncio.Transport
        self._early = b""
        self._ended = False

    def join(self, peer: Half) -> None:
        """Starts relaying between the two."""
        self.peer, peer.peer = peer, self
        for half in (self, peer):
            if half._early:
                half.data_received(half._early)
                half._early = b""
            if half._ended and not half.eof_received():
                half.close()
            if half.closed.is_set():
                half.connection_lost(None)
            else:
                half._transport.resume_reading()

    def close(self) -> None:
        """Ends the connection once what was written to it is sent."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = cast(asyncio.Transport, transport)
        self._transport.pause_reading()
        connection: socket.socket = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._opened is not None:
            self._opened(self)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        if self.peer is None:
            self._early += data
            self._transport.pause_reading()
        elif (out := self._out()) is not None:
            out.write(data)

    def eof_received(self) -> bool:
        """A client that has said everything may still wait for its answer; a container that ends has ended."""
        if self.peer is None:
            self._ended = True
            return True
        if self._opened is not None and (out := self._out()) is not None:
            out.write_eof()
            return True
        return False

    def pause_writing(self) -> None:  # noqa: D102
        if (out := self._out()) is not None:
            out.pause_reading()

    def resume_writing(self) -> None:  # noqa: D102
        if (out := self._out()) is not None:
            out.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if (out := self._out()) is not None:
            out.close()
        self.closed.set()

    def _out(self) -> asyncio.Transport | None:
        transport = self.peer._transport if self.peer is not None else None
        return transport if transport is not None and not transport.is_closing() else None
