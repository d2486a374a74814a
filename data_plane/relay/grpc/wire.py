"""Fields of protobuf messages, written by hand: where a message is made for every request, its class costs a multiple.

A field that has its default value is not written, as in proto3. Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

_ONE: Final = tuple(bytes((value,)) for value in range(0x80))
_MORE: Final = 0x80
_ALL: Final = (1 << 64) - 1
_FIXED64: Final = Struct("<Q")

_BYTES_KIND: Final = 2
_FIXED64_KIND: Final = 1


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


def varint(value: int) -> bytes:
    """A number; one below 0 as the 64 bits that it is.

    Args:
        value: From -2**63 to 2**64 - 1.
    """
    if 0 <= value < _MORE:
        return _ONE[value]
    value &= _ALL
    coded = bytearray()
    while value >= _MORE:
        coded.append(value & 0x7F | _MORE)
        value >>= 7
    coded.append(value)
    return bytes(coded)


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
    return tag + _FIXED64.pack(value) if value else b""


def content(tag: bytes, value: bytes) -> bytes:
    """A field of text or bytes.

    Args:
        tag: From `bytes_tag`.
        value: The text as UTF-8, or the bytes.
    """
    return tag + varint(len(value)) + value if value else b""


def message(tag: bytes, value: bytes) -> bytes:
    """A field of a message, written even where nothing is in it.

    Args:
        tag: From `bytes_tag`.
        value: Its fields.
    """
    return tag + varint(len(value)) + value
