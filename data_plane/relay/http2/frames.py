"""Frames of HTTP/2 (RFC 9113, section 4 and 6): numbers, and how they are written."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends before its first frame."""

HEAD_BYTES: Final = 9
"""Before every payload: length (3 bytes), kind, flags, stream."""

# Plain numbers, because every frame is compared with them.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITIZED: Final = 0x20

WINDOW_START: Final = 65_535
"""Flow control window before any SETTINGS, bytes."""

WINDOW_MAX: Final = 2**31 - 1
STREAM_MAX: Final = 2**31 - 1
FRAME_BYTES_START: Final = 16_384
"""Longest payload before any SETTINGS, and the least limit that may be set."""

FRAME_BYTES_MAX: Final = 2**24 - 1


class Setting(enum.IntEnum):
    """Identifiers of SETTINGS parameters."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFaultError(Exception):
    """The peer broke a rule that ends the connection.

    Args:
        code: As it is told to the peer.
        message: What happened, for people.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


_parameter = struct.Struct(">HI")


_SHORT_MAX: Final = 512


def _head(length: int, kind: int, flags: int) -> bytes:
    return (length << 16 | kind << 8 | flags).to_bytes(5, "big")


def _short_heads(kind: int, flags: int) -> tuple[bytes, ...]:
    return tuple(_head(length, kind, flags) for length in range(_SHORT_MAX))


_DATA: Final = _short_heads(DATA, 0)
_LAST_DATA: Final = _short_heads(DATA, END_STREAM)
_BLOCK: Final = _short_heads(HEADERS, END_HEADERS)
_LAST_BLOCK: Final = _short_heads(HEADERS, END_HEADERS | END_STREAM)


def data_head(length: int, *, last: bool = False) -> bytes:
    """How a DATA frame begins; its stream and the payload follow.

    Args:
        length: Of the payload.
        last: It ends the stream.
    """
    if length < _SHORT_MAX:
        return _LAST_DATA[length] if last else _DATA[length]
    return _head(length, DATA, END_STREAM if last else 0)


def block_head(length: int, *, last: bool) -> bytes:
    """How a HEADERS frame with a whole block begins; see `data_head`."""
    if length < _SHORT_MAX:
        return _LAST_BLOCK[length] if last else _BLOCK[length]
    return _head(length, HEADERS, END_HEADERS | END_STREAM if last else END_HEADERS)


def u32(value: int) -> bytes:
    """A number as four bytes."""
    return value.to_bytes(4, "big")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return b"%b%b%b" % (_head(len(payload), kind, flags), u32(stream_id), payload)


def settings(parameters: Iterable[tuple[int, int]]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_parameter.pack(*each) for each in parameters))


def window_update(stream_id: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, u32(increment))


def rst_stream(stream_id: int, code: int) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, u32(code))


def goaway(last_stream_id: int, code: int, message: str = "") -> bytes:
    """A GOAWAY frame."""
    return frame(GOAWAY, 0, 0, u32(last_stream_id) + u32(code) + message.encode())


def read_u32(payload: bytes, offset: int = 0) -> int:
    """Four bytes as a number."""
    return payload[offset] << 24 | payload[offset + 1] << 16 | payload[offset + 2] << 8 | payload[offset + 3]


def read_parameters(payload: bytes) -> list[tuple[int, int]]:
    """The parameters of a SETTINGS frame whose length was checked."""
    return list(_parameter.iter_unpack(payload))
