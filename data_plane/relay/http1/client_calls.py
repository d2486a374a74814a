"""Requests of the HTTP/1.1 client: where they go, whom they tell, and what may go wrong."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Origin:
    """Where requests go.

    Attributes:
        host: Name or address.
        port: TCP port.
        tls: Whether it is spoken to over TLS, with its certificate verified for `host`.
    """

    host: str
    port: int
    tls: bool = False


@dataclass(frozen=True)
class HttpLimits:
    """What a server may cost.

    Attributes:
        connections_max: Connections to one origin, with those being opened.
        connect_s: For a connection to be there, TLS included.
        idle_s: A connection without a request is kept so long. Less than the five seconds after which uvicorn, under
            which vLLM and SGLang run, closes it: who closes first loses no request.
        head_bytes_max: Bytes in a row that belong to no body: headers, trailers, chunk extensions.
    """

    connections_max: int = 2048
    connect_s: float = 5.0
    idle_s: float = 4.0
    head_bytes_max: int = 65_536


class Fault(enum.Enum):
    """Why there is no (whole) answer."""

    UNREACHABLE = "unreachable"
    """No connection: the server has not seen the request."""
    LOST = "lost"
    """The connection ended before the answer did."""
    GARBAGE = "garbage"
    """What came is not HTTP/1.1, or more of it than allowed."""


class HttpReceiver(Protocol):
    """Whom a request's answer is told. No call may raise; each may cancel, pause or resume the request."""

    def on_head(self, status: int, fields: Mapping[bytes, bytes]) -> None:
        """The answer begins.

        Args:
            status: 200 or more; interim answers are passed over.
            fields: Headers by their names in lower case; of repeated ones the last.
        """
        ...

    def on_body(self, data: bytes) -> None:
        """Content came, one byte or more."""
        ...

    def on_end(self, fault: Fault | None) -> None:
        """Nothing comes after this; None: the answer is whole."""
        ...


class Carrier(Protocol):
    """The connection of a request."""

    def read(self, wanted: bool) -> None:
        """Takes from the network, or not."""
        ...

    def abort(self) -> None:
        """Closes it at once."""
        ...


class Attempt(Protocol):
    """A connection that is being opened."""

    def cancel(self) -> object:
        """Opens it no longer."""
        ...


class HttpCall:
    """One request on its way. Made by the pool.

    Args:
        origin: Where to.
        request: All its bytes.
        receiver: Told of the answer.

    Attributes:
        connecting: The connection being opened for it; None where it has one.
        connection: What carries it; None before and after.
        resent: A kept connection was closed under it once.
        ended: The receiver is told nothing more.
    """

    __slots__ = ("_paused", "connecting", "connection", "ended", "origin", "receiver", "request", "resent")

    def __init__(self, origin: Origin, request: bytes, receiver: HttpReceiver) -> None:
        self._paused = False
        self.origin = origin
        self.request = request
        self.receiver = receiver
        self.connection: Carrier | None = None
        self.connecting: Attempt | None = None
        self.resent = False
        self.ended = False

    def cancel(self) -> None:
        """Gives the request up at once; the receiver is told nothing more. Harmless after the end."""
        if self.ended:
            return
        self.ended = True
        if self.connecting is not None:
            self.connecting.cancel()
        if self.connection is not None:
            self.connection.abort()

    def pause(self) -> None:
        """Takes nothing more from the network; what it has brought already still comes."""
        self._paused = True
        if self.connection is not None:
            self.connection.read(False)

    def resume(self) -> None:
        """Takes more."""
        self._paused = False
        if self.connection is not None:
            self.connection.read(True)

    def carried(self, connection: Carrier) -> None:
        """It has got a connection."""
        self.connection, self.connecting = connection, None
        if self._paused:
            connection.read(False)

    def end(self, fault: Fault | None) -> None:
        """It is over."""
        self.connection = self.connecting = None
        if not self.ended:
            self.ended = True
            self.receiver.on_end(fault)
