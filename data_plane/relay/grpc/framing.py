"""Messages of gRPC in the content of a stream: one byte for "compressed", four for the length, then the message."""

from __future__ import annotations

from typing import Final

from data_plane.relay.grpc.status import Code, RpcFaultError
from data_plane.relay.http2.frames import read_u32
from data_plane.relay.http2.header_blocks import literal

PREFIX_BYTES: Final = 5

_TAKEN: Final = literal(b"grpc-accept-encoding", b"identity")

_PREFIXES: Final = tuple(length.to_bytes(PREFIX_BYTES, "big") for length in range(1_024))


def framed(message: bytes) -> bytes:
    """A message with its prefix."""
    length = len(message)
    return (_PREFIXES[length] if length < len(_PREFIXES) else length.to_bytes(PREFIX_BYTES, "big")) + message


def is_one_message(data: bytes, message_bytes_max: int) -> bool:
    """Whether bytes are exactly one message that is taken, as most frames are.

    Args:
        data: Content of a stream.
        message_bytes_max: See Cutter.
    """
    length = len(data) - PREFIX_BYTES
    return 0 <= length <= message_bytes_max and not data[0] and read_u32(data, 1) == length


class Cutter:
    """Cuts a stream's content into messages.

    Args:
        message_bytes_max: Longest message that is taken, without its prefix.

    Attributes:
        waiting_bytes: Of a message that has not come whole.
    """

    __slots__ = ("_message_bytes_max", "_needed", "_waiting", "waiting_bytes")

    def __init__(self, message_bytes_max: int) -> None:
        self._message_bytes_max = message_bytes_max
        self._waiting = bytearray()  # not a list: parts may be of a byte each
        self._needed = PREFIX_BYTES  # bytes before there is something new to be seen
        self.waiting_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Takes content.

        Args:
            data: Any part of it, in order.

        Returns:
            The messages that are whole now, with their prefixes.

        Raises:
            RpcFaultError: A message is too large, or compressed.
        """
        if self._waiting:
            self._waiting += data
            self.waiting_bytes += len(data)
            if self.waiting_bytes < self._needed:
                return []
            data = bytes(self._waiting)
            self._waiting = bytearray()
        messages, at, end = [], 0, len(data)
        self._needed = PREFIX_BYTES
        while end - at >= PREFIX_BYTES:
            compressed, length = data[at], read_u32(data, at + 1)
            if length > self._message_bytes_max:
                most = self._message_bytes_max
                raise RpcFaultError(Code.RESOURCE_EXHAUSTED, f"Received message larger than max ({length} vs. {most})")
            if compressed:
                told = "compressed messages are not taken: send grpc-encoding identity"
                raise RpcFaultError(Code.UNIMPLEMENTED, told, _TAKEN)
            after = at + PREFIX_BYTES + length
            if after > end:
                self._needed = PREFIX_BYTES + length
                break
            messages.append(data[at:after])
            at = after
        self.waiting_bytes = end - at
        if at < end:
            self._waiting += data[at:] if at else data
        return messages
