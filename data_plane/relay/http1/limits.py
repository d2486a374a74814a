"""What clients of HTTP/1.1 may cost: sizes, counts, and how long they are waited for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes and counts.

    Attributes:
        head_bytes_max: The target, and the headers' names and values with 4 bytes more each, of one request.
        headers_max: Headers of one request.
        body_bytes_max: One request's body.
        bodies_bytes_max: What has come of unfinished bodies on all connections of a process together.
        ahead_bytes_max: What a client may send ahead of the answer under way before nothing more is read from it.
        answer_bytes_max: What may wait of a streamed answer for a client that does not keep up, before it is given up.
        connections_max: Connections at a time.
    """

    head_bytes_max: int = 16 << 10
    headers_max: int = 100
    body_bytes_max: int = 4 << 20
    bodies_bytes_max: int = 256 << 20
    ahead_bytes_max: int = 64 << 10
    answer_bytes_max: int = 4 << 20
    connections_max: int = 10_000


@dataclass(frozen=True)
class Patience:
    """How long a client is waited for, seconds.

    Attributes:
        request_s: For a whole request, from its first byte.
        idle_s: For a request, from the connection's beginning or the last answer.
        stuck_s: For the client to take anything of what waits for it.
        handshake_s: For a TLS handshake.
        linger_s: For the client to close a connection that has ended here, so that it can read the last answer.
    """

    request_s: float = 60.0
    idle_s: float = 75.0
    stuck_s: float = 60.0
    handshake_s: float = 10.0
    linger_s: float = 2.0


class BodyRoom:
    """What unfinished request bodies of a process may take up together.

    Args:
        bytes_max: The room.

    Attributes:
        taken: What of it is taken, bytes.
    """

    __slots__ = ("_bytes_max", "taken")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.taken = 0

    def take(self, size: int) -> bool:
        """Takes some of the room.

        Returns:
            Whether there was enough.
        """
        if self.taken + size > self._bytes_max:
            return False
        self.taken += size
        return True

    def give_back(self, size: int) -> None:
        """Gives back what was taken."""
        self.taken -= size
