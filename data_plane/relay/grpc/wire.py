"""Fields of protobuf messages, written by hand: where a message is made for every request, its class costs a multiple.

A field that has its default value is not written, as in proto3. Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from typing import Final

_READY_MAX: Final = 0x1000
_READY: Final = tuple(
    bytes((value,)) if value < 0x80 else bytes((value & 0x7F | 0x80, value >> 7)) for value in range(_READY_MAX)
)
"""Numbers of one byte and the most usual ones of two."""

_GOES_ON: Final = tuple(bytes((value | 0x80,)) for value in range(0x80))

_BYTES_KIND: Final = 2
_FIXED64_KIND: Final = 1
_FLOAT_KIND: Final = 5


def number_tag(field: int) -> bytes:
    """How a field of numbers begins.

    Args:
        field: Its number.
    """
    return varint(field << 3)


def bytes_tag(field: int) -> bytes:
    """How a field of text, of bytes, of a message or of several numbers begins.

    Args:
        field: Its number.
    """
    return varint(field << 3 | _BYTES_KIND)


def fixed64_tag(field: int) -> bytes:
    """How a field of eight bytes begins.

    Args:
        field: Its number.
    """
    return varint(field << 3 | _FIXED64_KIND)


def float_tag(field: int) -> bytes:
    """How a field of four bytes begins.

    Args:
        field: Its number.
    """
    return varint(field << 3 | _FLOAT_KIND)


def varint(value: int) -> bytes:
    """A number; one below 0 as the 64 bits that it is.

    Args:
        value: From -2**63 to 2**64 - 1.
    """
    if value < 0:
        value += 1 << 64
    if value < _READY_MAX:
        return _READY[value]
    first = _GOES_ON[value & 0x7F]
    if value < 1 << 21:
        return first + varint(value >> 7)
    return b"%b%b%b%b" % (first, _GOES_ON[value >> 7 & 0x7F], _GOES_ON[value >> 14 & 0x7F], varint(value >> 21))


def number(tag: bytes, value: int) -> bytes:
    """A field of a number.

    Args:
        tag: From `number_tag`.
        value: As for `varint`.
    """
    return tag + varint(value) if value else b""


def fixed64(tag: bytes, value: int) -> bytes:
    """A field of eight bytes.

    Args:
        tag: From `fixed64_tag`.
        value: From 0 to 2**64 - 1.
    """
    return tag + value.to_bytes(8, "little") if value else b""


def content(tag: bytes, value: bytes) -> bytes:
    """A field of text or bytes.

    Args:
        tag: From `bytes_tag`.
        value: The text as UTF-8, or the bytes.
    """
    return b"%b%b%b" % (tag, varint(len(value)), value) if value else b""


def message(tag: bytes, value: bytes) -> bytes:
    """A field of a message, written even where nothing is in it.

    Args:
        tag: From `bytes_tag`.
        value: Its fields.
    """
    return b"%b%b%b" % (tag, varint(len(value)), value)
