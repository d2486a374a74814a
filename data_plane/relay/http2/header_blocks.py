"""Header blocks (HPACK, RFC 7541): a decoder that remembers, and constants for what is sent.

A client says nearly the same in every request, so a block that was seen is not decoded again: as long as the table of
recent headers stays as it was, equal bytes mean equal headers. What is new is decoded with the tables of the `hpack`
package; strings under Huffman's code are remembered as well.

What is sent never enters the peer's table, so that a block is the same on every connection and is made once.

    literal(b"grpc-status", b"0")      b"\\x00\\x0bgrpc-status\\x010"
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from data_plane.relay.http2.frames import ConnectionFaultError, ErrorCode

Pairs = tuple[tuple[bytes, bytes], ...]
"""Names and values, in their order."""


class Fields:
    """Headers, with what is known of them: equal blocks give the same object while it is remembered.

    Args:
        pairs: Names and values.

    Attributes:
        pairs: In their order.
        as_request: What is wrong with them as headers of a request; None until somebody has looked.
        as_answer: As headers of an answer.
        as_trailers: As trailers.
        status: What they say of it, of an answer that nothing is wrong with.
        interim: Whether that is 1xx.
        content_length: What a request or an answer that nothing is wrong with says of it; -1 where it does not.
        memo: Whatever the handler has found out.
    """

    __slots__ = (
        "_named",
        "as_answer",
        "as_request",
        "as_trailers",
        "content_length",
        "interim",
        "memo",
        "pairs",
        "status",
    )

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self.pairs: Pairs = tuple(pairs)
        self.as_request: str | None = None
        self.as_answer: str | None = None
        self.as_trailers: str | None = None
        self.status = b""
        self.interim = False
        self.content_length = -1
        self.memo: Any = None
        self._named: dict[bytes, bytes] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header of that name; None where there is none."""
        named = self._named
        if named is None:
            named = self._named = dict(reversed(self.pairs))
        return named.get(name)


TABLE_BYTES_MAX: Final = 4_096
"""Size of the peer's table of recent headers, as it is before any SETTINGS."""

ENTRY_BYTES: Final = 32
"""What a header counts beside its name and value. Source: RFC 7541, section 4.1, and RFC 9113, section 6.5.2."""

EMPTY_TABLE: Final = b"\x20"
"""Says that the sender's table has no room. It stands before the first block of a connection, so that a peer that
wants a smaller table than usual is content."""

BLOCKS_REMEMBERED: Final = 256
STRINGS_REMEMBERED: Final = 512
_REMEMBERED_BYTES_MAX: Final = 512  # of a block or a string; longer ones are rarely the same twice

_STATIC: Final[tuple[tuple[bytes, bytes], ...]] = tuple(HeaderTable.STATIC_TABLE)
_STATIC_NAMES: Final = {name: len(_STATIC) - at for at, (name, _) in enumerate(reversed(_STATIC))}
_STATIC_FIELDS: Final = {field: at for at, field in enumerate(_STATIC, start=1)}
_INTEGER_MAX: Final = 2**28


class _Fault(ConnectionFaultError):
    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.COMPRESSION_ERROR, message)


class TooLargeError(Exception):
    """A block was decoded, and its headers are together larger than allowed."""


class HeaderDecoder:
    """Decodes the blocks of one peer, in their order.

    Args:
        list_bytes_max: Most bytes of all headers of a block, each with ENTRY_BYTES more.

    Attributes:
        known: What blocks that were seen mean as long as the table stays as it is.
    """

    def __init__(self, list_bytes_max: int) -> None:
        self._list_bytes_max = list_bytes_max
        self._table: deque[tuple[bytes, bytes]] = deque()
        self._table_bytes = 0
        self._table_bytes_max = TABLE_BYTES_MAX
        self.known: dict[bytes, Fields] = {}
        self._strings: dict[bytes, bytes] = {}

    def decode(self, block: bytes) -> Fields:
        """Decodes a whole block.

        Raises:
            ConnectionFaultError: It is not a header block; the table is lost, and with it the connection.
            TooLargeError: Its headers are too large; the table is as the peer's, so the connection may go on.
        """
        fields = self.known.get(block)
        if fields is not None:
            return fields
        try:
            fields, changed = self._decode(block)
        except IndexError:
            raise _Fault("the header block ends within a header") from None
        if changed:
            self.known.clear()
        if fields is None:
            raise TooLargeError
        if not changed and len(block) <= _REMEMBERED_BYTES_MAX:
            if len(self.known) >= BLOCKS_REMEMBERED:
                self.known.clear()
            self.known[block] = fields
        return fields

    def _decode(self, block: bytes) -> tuple[Fields | None, bool]:
        fields: list[tuple[bytes, bytes]] = []
        at, end, left, changed = 0, len(block), self._list_bytes_max, False
        while at < end:
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 0x7F)
                field = self._indexed(index)
            elif first & 0x40:
                field, at = self._literal(block, at, 0x3F)
                self._remember(field)
                changed = True
            elif first & 0x20:
                if fields:
                    raise _Fault("the table's size changes within a header block")
                size, at = _integer(block, at, 0x1F)
                if size > TABLE_BYTES_MAX:
                    raise _Fault(f"a table of {size} bytes; {TABLE_BYTES_MAX} are allowed")
                self._table_bytes_max = size
                self._evict()
                changed = True
                continue
            else:
                field, at = self._literal(block, at, 0x0F)
            left -= len(field[0]) + len(field[1]) + ENTRY_BYTES
            if left >= 0:
                fields.append(field)
            elif left < -3 * self._list_bytes_max:
                raise ConnectionFaultError(ErrorCode.ENHANCE_YOUR_CALM, "a header block grows beyond all measure")
        return (Fields(fields) if left >= 0 else None), changed

    def _indexed(self, index: int) -> tuple[bytes, bytes]:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        place = index - len(_STATIC) - 1
        if index and place < len(self._table):
            return self._table[place]
        raise _Fault(f"there is no header {index}")

    def _literal(self, block: bytes, at: int, mask: int) -> tuple[tuple[bytes, bytes], int]:
        index, at = _integer(block, at, mask)
        if index:
            name = self._indexed(index)[0]
        else:
            name, at = self._string(block, at)
        value, at = self._string(block, at)
        return (name, value), at

    def _string(self, block: bytes, at: int) -> tuple[bytes, int]:
        coded = block[at] & 0x80
        length, at = _integer(block, at, 0x7F)
        end = at + length
        if end > len(block):
            raise _Fault("the header block ends within a string")
        raw = block[at:end]
        if not coded:
            return raw, end
        known = self._strings.get(raw)
        if known is None:
            try:
                known = decode_huffman(raw)
            except HPACKDecodingError as error:
                raise _Fault(f"a string is not Huffman code: {error}") from None
            if len(raw) <= _REMEMBERED_BYTES_MAX:
                if len(self._strings) >= STRINGS_REMEMBERED:
                    self._strings.clear()
                self._strings[raw] = known
        return known, end

    def _remember(self, field: tuple[bytes, bytes]) -> None:
        self._table.appendleft(field)
        self._table_bytes += len(field[0]) + len(field[1]) + ENTRY_BYTES
        self._evict()

    def _evict(self) -> None:
        while self._table_bytes > self._table_bytes_max:
            name, value = self._table.pop()
            self._table_bytes -= len(name) + len(value) + ENTRY_BYTES


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if value > _INTEGER_MAX or shift > 28:
            raise _Fault("a number is too large")
        if not byte & 0x80:
            return value, at
        shift += 7


def _encoded_integer(value: int, mask: int, flags: int = 0) -> bytes:
    if value < mask:
        return bytes((flags | value,))
    encoded = bytearray((flags | mask,))
    value -= mask
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


_LENGTHS: Final = tuple(_encoded_integer(length, 0x7F) for length in range(0x7F))


def named(name: bytes) -> bytes:
    """How a header begins that does not enter the peer's table; its value follows, as from `string`."""
    index = _STATIC_NAMES.get(name)
    return _encoded_integer(index, 0x0F) if index else b"\x00" + string(name)


def string(value: bytes) -> bytes:
    """A value after its length."""
    length = len(value)
    return (_LENGTHS[length] if length < 0x7F else _encoded_integer(length, 0x7F)) + value


def literal(name: bytes, value: bytes) -> bytes:
    """One header that does not enter the peer's table."""
    return named(name) + string(value)


def encoded(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block of headers; such as the standard's table holds take one byte."""
    parts = []
    for field in fields:
        index = _STATIC_FIELDS.get(field)
        parts.append(_encoded_integer(index, 0x7F, 0x80) if index else literal(*field))
    return b"".join(parts)
