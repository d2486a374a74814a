"""A piece of a streamed answer, in the one form it has on its whole way: the bytes of a gRPC message.

A piece is a message with its five bytes of prefix, of inference.v1.StreamGenerateResponse, that holds nothing but text
and a number of tokens. engine.v1.EngineGenerateResponse numbers the two alike, so that what a replica sends is what a
client gets: it is looked at for its tokens, and not taken apart.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from data_plane.relay.grpc import wire
from data_plane.relay.grpc.framing import PREFIX_BYTES, framed
from fairlead.inference.v1 import inference_pb2 as pb

_TEXT_TAG: Final = wire.bytes_tag(pb.StreamGenerateResponse.TEXT_FIELD_NUMBER)
_TOKENS_TAG: Final = wire.number_tag(pb.StreamGenerateResponse.OUTPUT_TOKENS_FIELD_NUMBER)

# One byte each.
_TEXT: Final = _TEXT_TAG[0]
_TOKENS: Final = _TOKENS_TAG[0]


def piece(text: bytes, tokens: int) -> bytes:
    """A piece.

    Args:
        text: UTF-8; it is not checked.
        tokens: What it stands for, 0 or more.
    """
    return framed(wire.content(_TEXT_TAG, text) + wire.number(_TOKENS_TAG, tokens))


def tokens_of(piece: bytes) -> int:
    """The tokens of a piece.

    Args:
        piece: One whole message with its prefix.

    Returns:
        0 or more; -1 where the message is none: it says more, or not in the usual order, or is broken.
    """
    at, end = PREFIX_BYTES, len(piece)
    try:
        if at < end and piece[at] == _TEXT:
            length, at = piece[at + 1], at + 2
            if length >= 0x80:
                more = piece[at]
                if more >= 0x80:
                    return -1
                length, at = length & 0x7F | more << 7, at + 1
            at += length
        if at == end:
            return 0
        tokens = piece[at + 1]
        return tokens if tokens < 0x80 and piece[at] == _TOKENS and at + 2 == end else -1
    except IndexError:
        return -1


def text_of(piece: bytes) -> bytes:
    """The text of a piece, UTF-8.

    Args:
        piece: As from `piece`, or one whose `tokens_of` is not -1.
    """
    at = PREFIX_BYTES
    if at == len(piece) or piece[at] != _TEXT:
        return b""
    length, at = piece[at + 1], at + 2
    if length >= 0x80:
        more = piece[at]
        if more >= 0x80:
            return read(piece).text.encode()
        length, at = length & 0x7F | more << 7, at + 1
    return piece[at : at + length]


def read(piece: bytes) -> pb.StreamGenerateResponse:
    """A piece as a message, for those who do not count microseconds."""
    try:
        return pb.StreamGenerateResponse.FromString(piece[PREFIX_BYTES:])
    except DecodeError:
        raise ValueError("this is no piece") from None
