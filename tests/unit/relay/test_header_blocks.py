"""Header blocks against the `hpack` package, and what is no header block."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from data_plane.relay.http2.frames import ConnectionFaultError, ErrorCode
from data_plane.relay.http2.header_blocks import (
    EMPTY_TABLE,
    ENTRY_BYTES,
    TABLE_BYTES_MAX,
    HeaderDecoder,
    TooLargeError,
    encoded,
    literal,
)

NAMES = st.sampled_from([b":path", b":status", b"te", b"grpc-timeout", b"authorization", b"x-a", b"x-" + 200 * b"b"])
VALUES = st.one_of(st.sampled_from([b"", b"200", b"1S", b"trailers"]), st.binary(max_size=300))
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(FIELDS, st.booleans(), st.none() | st.integers(0, TABLE_BYTES_MAX)), max_size=12))
def test_what_another_encoder_says_is_understood(
    blocks: list[tuple[list[tuple[bytes, bytes]], bool, int | None]],
) -> None:
    encoder, decoder = Encoder(), HeaderDecoder(1 << 20)
    for fields, huffman, table_bytes in blocks:
        if table_bytes is not None:
            encoder.header_table_size = table_bytes
        block = encoder.encode(fields, huffman=huffman)
        assert decoder.decode(block).pairs == tuple(fields)


@settings(max_examples=40, deadline=None)
@given(st.lists(FIELDS, max_size=6))
def test_another_decoder_understands_what_is_said(blocks: list[list[tuple[bytes, bytes]]]) -> None:
    decoder = Decoder(1 << 20)
    for fields in blocks:
        assert [tuple(field) for field in decoder.decode(encoded(fields), raw=True)] == fields


@given(st.binary(max_size=200))
def test_any_bytes_are_headers_or_a_fault(block: bytes) -> None:
    decoder = HeaderDecoder(1_000)
    with suppress(ConnectionFaultError, TooLargeError):
        pairs = decoder.decode(block).pairs
        assert sum(len(name) + len(value) + ENTRY_BYTES for name, value in pairs) <= 1_000


def test_a_block_that_was_seen_means_the_same_until_the_table_changes() -> None:
    encoder, decoder = Encoder(), HeaderDecoder(1 << 16)
    decoder.decode(encoder.encode([(b"x-a", b"1")]))
    indexed = encoder.encode([(b"x-a", b"1")])
    assert len(indexed) == 1
    assert decoder.decode(indexed).pairs == decoder.decode(indexed).pairs == ((b"x-a", b"1"),)
    decoder.decode(encoder.encode([(b"x-b", b"2")]))
    assert decoder.decode(indexed).pairs == ((b"x-b", b"2"),)


def test_the_most_headers_and_one_byte_more() -> None:
    fields = [(b"x-a", b"1"), (b"x-b", b"22")]
    most = sum(len(name) + len(value) + ENTRY_BYTES for name, value in fields)
    assert HeaderDecoder(most).decode(encoded(fields)).pairs == tuple(fields)
    decoder = HeaderDecoder(most - 1)
    with pytest.raises(TooLargeError):
        decoder.decode(encoded(fields))
    assert decoder.decode(encoded(fields[:1])).pairs == tuple(fields[:1])


def test_a_bomb_of_one_byte_references_is_given_up() -> None:
    decoder = HeaderDecoder(8_192)
    decoder.decode(b"\x40\x01x\x7f" + bytes((0xA1, 0x1E)) + 4_000 * b"v")
    with pytest.raises(ConnectionFaultError) as caught:
        decoder.decode(16_000 * b"\xbe")
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # there is no header 0
        b"\xbe",  # nor one beyond the table
        b"\xff\xff\xff\xff\xff\x7f",  # a number too large
        b"\x00\x03ab",  # the end within a string
        b"\x00\x01a",  # or before one
        b"\x3f\xe2\x1f",  # a larger table than allowed
        b"\x82\x20",  # a table's size behind a header
        b"\x00\x81\xff\x01a",  # not Huffman's
    ],
)
def test_no_header_block(block: bytes) -> None:
    with pytest.raises(ConnectionFaultError) as caught:
        HeaderDecoder(1_000).decode(block)
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR


def test_the_table_may_be_emptied_first() -> None:
    assert HeaderDecoder(1_000).decode(EMPTY_TABLE + literal(b"a", b"b")).pairs == ((b"a", b"b"),)
