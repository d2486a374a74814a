"""How a usage journal's files read: records one behind the other, and how to find those behind a damaged one.

A record is its length, the CRC-32 of its content, and the content. The first says whose file it is (`Header`), every
other is a row's counters and the number of its table. Behind the last there are only zeros, or a record that was torn
by the death of its process or machine. Whole records behind something that is none mean that the file was damaged.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from data_plane.router.core.usage import Counts, Payer

HEAD: Final = struct.Struct("<II")
"""Length and checksum of the content that follows."""

_COUNTS: Final = struct.Struct("<IIqqqqqq")
_TENANT_BYTES: Final = struct.Struct("<H")
_SUFFIX: Final = ".journal"
# Counters and two ids, or a header: far less. Bounds what a damaged length makes a reader look at.
_CONTENT_BYTES_MAX: Final = 1 << 10


class Header(msgspec.Struct, frozen=True):
    """The first record of every file.

    Attributes:
        router_id: Whose.
        incarnation_id: Which process of it.
        base: The file holds sums that replace every file with a lower number.
    """

    router_id: str
    incarnation_id: str
    base: bool


class Settlement(NamedTuple):
    """A record.

    Attributes:
        hour: In which it counts, since the Unix epoch.
        number: Of the table in which it counts.
        payer: Who pays for what.
        counts: Of one settlement or the sums of many.
    """

    hour: int
    number: int
    payer: Payer
    counts: Counts


def names(payer: Payer) -> bytes:
    """The part of a settlement's record that is the same for all of one tenant and model."""
    tenant_id, model_id = payer[0].encode(), payer[1].encode()
    return _TENANT_BYTES.pack(len(tenant_id)) + tenant_id + model_id


def record(content: bytes) -> bytes:
    """A record of some content."""
    return HEAD.pack(len(content), zlib.crc32(content)) + content


def settlement(hour: int, number: int, counts: Counts, named: bytes) -> bytes:
    """The record of a settlement.

    Args:
        hour: As in Settlement.
        number: Likewise.
        counts: Likewise.
        named: From `names`.
    """
    return record(
        _COUNTS.pack(
            hour,
            number,
            counts.requests,
            counts.input_tokens,
            counts.cached_input_tokens,
            counts.output_tokens,
            counts.prefill_milli_mu,
            counts.decode_milli_mu,
        )
        + named
    )


def header_of(content: bytes) -> Header | None:
    """Reads a header; None where it is none."""
    try:
        return msgspec.json.decode(content, type=Header)
    except msgspec.DecodeError:
        return None


def settlement_of(content: bytes) -> Settlement:
    """Reads a settlement."""
    hour, number, *counts = _COUNTS.unpack_from(content)
    tenant_at = _COUNTS.size + _TENANT_BYTES.size
    model_at = tenant_at + _TENANT_BYTES.unpack_from(content, _COUNTS.size)[0]
    payer = content[tenant_at:model_at].decode(), content[model_at:].decode()
    return Settlement(hour, number, payer, Counts(*counts))


def contents_of(data: bytes) -> tuple[list[bytes], int]:
    """The contents of a file's records.

    Returns:
        All that are whole, and how many bytes before the last of them are part of none.
    """
    contents, at = _run(data, 0)
    lost_bytes, end = 0, len(data.rstrip(b"\0"))
    behind = at
    while behind < end:
        # Byte by byte: only behind damage, or once where the last record is torn.
        found, after = _run(data, behind)
        if found:
            contents += found
            lost_bytes += behind - at
            at = behind = after
        else:
            behind += 1
    return contents, lost_bytes


def _run(data: bytes, at: int) -> tuple[list[bytes], int]:
    """Whole records from a place on, and where they end."""
    contents: list[bytes] = []
    while at + HEAD.size <= len(data):
        length, checksum = HEAD.unpack_from(data, at)
        if not 0 < length <= _CONTENT_BYTES_MAX:
            break
        content = data[at + HEAD.size : at + HEAD.size + length]
        if len(content) < length or zlib.crc32(content) != checksum:
            break
        if length < _COUNTS.size + _TENANT_BYTES.size and header_of(content) is None:
            break  # numbers inside a torn record that look like a record: the CRC-32 of a byte 255 is 255 again
        contents.append(content)
        at += HEAD.size + length
    return contents, at


def path_of(folder: Path, number: int) -> Path:
    """Where a journal's file of some number is."""
    return folder / f"{number:08d}{_SUFFIX}"


def segments(folder: Path) -> list[tuple[int, Path]]:
    """A journal's files with their numbers, in order."""
    return sorted((int(path.stem), path) for path in folder.glob("*" + _SUFFIX) if path.stem.isdecimal())
