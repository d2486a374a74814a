"""What the supervisor and its workers say to each other.

A worker inherits the listening sockets of all slots, and one end of a channel: a stream of lines in both directions.
It accepts from its own slot's sockets, and from those of slots that the supervisor names because nobody else does.

    worker:      alive                      every second, from the loop that serves
                 ready 127.0.0.1:40123      serves; its own address for /metrics
                 leaving                    takes nothing new any more
    supervisor:  accept 0 2                 from these slots, and from no others
"""

from __future__ import annotations

from typing import Final

import msgspec

from fairlead.errors import InvalidArgumentError

VARIABLE: Final = "FAIRLEAD_ROUTER_WORKER"
"""Environment variable by which a worker knows what it has inherited."""

ALIVE_INTERVAL_S: Final = 1.0

ALIVE: Final = b"alive"
READY: Final = b"ready"
LEAVING: Final = b"leaving"
ACCEPT: Final = b"accept"

LINE_BYTES_MAX: Final = 4096


class Inherited(msgspec.Struct, frozen=True):
    """What a worker inherits: numbers of open files.

    Attributes:
        slot: Its own.
        beside: Instance id of a worker that serves already; empty for none.
        replaces: That one leaves once this one is ready, and stays where this one does not become so.
        channel: To the supervisor.
        grpc: Listening sockets by slot.
        http: Likewise.
    """

    slot: int
    beside: str
    replaces: bool
    channel: int
    grpc: tuple[int, ...]
    http: tuple[int, ...]

    def encode(self) -> str:
        """As the variable's value."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, value: str) -> Inherited:
        """Reads the variable's value.

        Raises:
            InvalidArgumentError: No supervisor wrote that.
        """
        try:
            return msgspec.json.decode(value, type=cls)
        except msgspec.DecodeError as error:
            raise InvalidArgumentError(f"{VARIABLE} is set by the supervisor only: {error}") from error


class Lines:
    """Cuts a stream into lines; one that is too long is the end of it."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[list[bytes]]:
        """Returns the words of every line that is complete now.

        Raises:
            InvalidArgumentError: A line is longer than anybody sends.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            raise InvalidArgumentError("a line on the supervisor's channel has no end")
        return [line.split() for line in lines if line.strip()]
