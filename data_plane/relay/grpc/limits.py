"""What calls may cost, and what they cost now."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallLimits:
    """What calls may cost.

    Attributes:
        message_bytes_max: Longest message that is taken.
        request_s: Seconds for a request to come whole; of one that streams, for each message that has begun.
        unread_s: Seconds for the client to take the end of an answer.
        connection_waiting_bytes_max: Parts of messages that wait for the rest, on one connection.
        process_waiting_bytes_max: And on all of them.
    """

    message_bytes_max: int = 4 << 20
    request_s: float = 60.0
    unread_s: float = 60.0
    connection_waiting_bytes_max: int = 32 << 20
    process_waiting_bytes_max: int = 256 << 20


@dataclass
class Tally:
    """What all connections of a server have together.

    Attributes:
        waiting_bytes: Parts of messages.
        calls: Calls that were begun.
        refused: Of them such as broke a rule of the wire or asked for an unknown method.
    """

    waiting_bytes: int = 0
    calls: int = 0
    refused: int = 0


class Waiting:
    """Parts of messages that wait for the rest on one connection.

    Args:
        limits: How much that may be.
        tally: Of all connections.
    """

    __slots__ = ("_bytes", "_limits", "_tally")

    def __init__(self, limits: CallLimits, tally: Tally) -> None:
        self._bytes = 0
        self._limits = limits
        self._tally = tally

    def add(self, length: int) -> None:
        """So much more; less where it is negative."""
        self._bytes += length
        self._tally.waiting_bytes += length

    @property
    def too_much(self) -> bool:
        """Whether one of the limits is passed."""
        limits = self._limits
        return (
            self._bytes > limits.connection_waiting_bytes_max
            or self._tally.waiting_bytes > limits.process_waiting_bytes_max
        )
