"""Messages in content, and how calls end, as bytes."""

from __future__ import annotations

import math
import struct
from urllib.parse import unquote

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from data_plane.relay.grpc.client_end import failure_of
from data_plane.relay.grpc.framing import PREFIX_BYTES, Cutter, framed, is_one_message
from data_plane.relay.grpc.status import (
    MESSAGE_BYTES_MAX,
    Code,
    RpcFaultError,
    binary,
    failure,
    from_binary,
    status,
    timeout_s,
)
from data_plane.relay.http2.header_blocks import Fields, HeaderDecoder
from fairlead.errors import FairleadError, NotFoundError, QuotaExceededError, Reason
from tests.unit.relay.server.serving import REFUSAL


def decoded(block: bytes) -> Fields:
    return HeaderDecoder(1 << 16).decode(block)


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_any_cuts_give_the_same_messages(messages: list[bytes], cuts: list[int]) -> None:
    """Proves against the plain way that no cut changes what comes out, and that what waits is counted."""
    content = b"".join(map(framed, messages))
    cutter, found, at = Cutter(40), [], 0
    for number in range(len(content)):
        size = cuts[number % len(cuts)]
        found += cutter.feed(content[at : at + size])
        at = min(len(content), at + size)
        assert cutter.waiting_bytes == at - sum(map(len, found))
        if at == len(content):
            break
    assert found == [framed(message) for message in messages]


@pytest.mark.parametrize("whole", [True, False])
def test_a_message_at_the_limit_and_one_byte_more(whole: bool) -> None:
    for size in (0, 255, 256, 1_000):
        cutter, content = Cutter(1_000), framed(size * b"x")
        parts = [content] if whole else [content[:7], content[7:]]
        assert [message for part in parts for message in cutter.feed(part)] == [content]
    with pytest.raises(RpcFaultError, match="1001 vs. 1000") as caught:  # noqa: RUF043  # a text
        Cutter(1_000).feed(struct.pack(">BI", 0, 1_001))
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


@given(st.binary(max_size=600))
def test_what_is_one_message(data: bytes) -> None:
    """Proves the short way against the long one."""
    assert is_one_message(framed(data), len(data))
    assert not is_one_message(framed(data), len(data) - 1)
    assert not is_one_message(framed(data) + b"x", 600)
    assert not is_one_message(b"\1" + framed(data)[1:], 600)
    expected = len(data) >= PREFIX_BYTES and struct.unpack_from(">BI", data) == (0, len(data) - PREFIX_BYTES)
    assert is_one_message(data, 600) is expected


@given(st.sampled_from(list(FairleadError.__subclasses__())), st.text(max_size=300), st.floats(0, 1e6) | st.none())
def test_an_error_comes_back_as_it_was(kind: type[FairleadError], message: str, retry_after_s: float | None) -> None:
    """Proves that trailers carry any text, any class and its details to the client's end."""
    block = failure(kind(message, reason=Reason.CONFLICT, metadata={"k": "v"}, retry_after_s=retry_after_s))
    error = failure_of(decoded(block))
    assert type(error) is kind
    assert error.message == message.encode(errors="replace").decode()
    assert (error.reason, error.metadata) == (Reason.CONFLICT, {"k": "v"})
    assert (error.retry_after_s is None) == (retry_after_s is None)
    if retry_after_s is not None and error.retry_after_s is not None:
        assert math.isclose(error.retry_after_s, retry_after_s, abs_tol=1e-6)


def test_the_details_are_googles() -> None:
    fields = dict(decoded(failure(REFUSAL)).pairs)
    details = status_pb2.Status.FromString(from_binary(fields[b"grpc-status-details-bin"]) or b"")
    assert details.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert fields[b"grpc-status"] == b"8"
    assert fields[b"grpc-message"] == b"zu viel: 100 %25 %C3%A4%C3%B6%C3%BC"


@pytest.mark.parametrize("letter", ["x", "ä", "€", "😀", "%"])
def test_trailers_stay_small(letter: str) -> None:
    """Proves that no error is larger than what clients take for headers, and that its class and reason come through."""
    text = 100_000 * letter
    for error in (
        QuotaExceededError(text, reason=Reason.QUOTA_HELD, subject=text, field=text),
        NotFoundError("ä", reason=Reason.QUOTA_HELD, metadata={"k": text}),
    ):
        block = failure(error)
        assert len(block) < 8_192
        read = failure_of(decoded(block))
        assert type(read) is type(error)
        assert read.reason is Reason.QUOTA_HELD
    for shift in range(12):
        quoted = dict(decoded(status(2, shift * "y" + text)).pairs)[b"grpc-message"]
        assert MESSAGE_BYTES_MAX - 3 < len(quoted) <= MESSAGE_BYTES_MAX
        said = unquote(quoted.decode(), errors="ignore")
        assert said == shift * "y" + (len(said) - shift) * letter


@given(st.binary(max_size=100))
def test_binary_headers(value: bytes) -> None:
    assert from_binary(binary(value)) == value
    assert from_binary(binary(value) + b"," + binary(b"another")) == value


@pytest.mark.parametrize("nonsense", [b"!", b"a", b"a b c", b"\xff\xff"])
def test_binary_headers_that_are_none(nonsense: bytes) -> None:
    assert from_binary(nonsense) is None


def test_timeouts() -> None:
    for said, seconds in ((b"1H", 3600.0), (b"2M", 120.0), (b"3S", 3.0), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9)):
        assert timeout_s(said) == pytest.approx(seconds)
    assert timeout_s(b"99999999S") == 99_999_999.0
    for wrong in (b"", b"S", b"1", b"1s", b"-1S", b"1.5S", b"123456789S", "²S".encode(), b" 1S"):
        with pytest.raises(RpcFaultError):
            timeout_s(wrong)
