"""Fields written by hand are read by protobuf as what was meant, whatever the value."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data_plane.relay.grpc import wire
from fairlead.engine.v1 import engine_pb2
from fairlead.inference.v1 import inference_pb2 as pb

_Request = engine_pb2.EngineGenerateRequest


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_number_is_read_as_it_was_written(value: int) -> None:
    """Negative ones as well: they have ten bytes."""
    field = wire.number(wire.number_tag(pb.Cost.ESTIMATED_MILLI_MU_FIELD_NUMBER), value)
    assert pb.Cost.FromString(field).estimated_milli_mu == value
    assert field == pb.Cost(estimated_milli_mu=value).SerializeToString()


@given(st.integers(0, 2**64 - 1))
def test_numbers_without_a_sign(value: int) -> None:
    """Varints up to 64 bits, and eight fixed bytes."""
    fields = wire.number(wire.number_tag(_Request.DISPATCH_NUMBER_FIELD_NUMBER), value)
    fields += wire.fixed64(wire.fixed64_tag(_Request.SHARD_KEY_FIELD_NUMBER), value)
    assert fields == _Request(dispatch_number=value, shard_key=value).SerializeToString()


@given(st.text(max_size=300))
def test_text_and_messages_are_read_as_they_were_written(text: str) -> None:
    """A message is there even where nothing is in it; a text that is empty is not."""
    tag = wire.bytes_tag(pb.GenerateResponse.TEXT_FIELD_NUMBER)
    assert wire.content(tag, text.encode()) == pb.GenerateResponse(text=text).SerializeToString()
    inner = pb.GenerateRequest(model=text)
    field = wire.message(wire.bytes_tag(_Request.REQUEST_FIELD_NUMBER), inner.SerializeToString())
    assert field == _Request(request=inner).SerializeToString()


def test_fields_with_high_numbers_have_longer_tags() -> None:
    """From 16 on."""
    assert wire.number_tag(15) == b"\x78"
    assert wire.number_tag(16) == b"\x80\x01"
    assert wire.bytes_tag(2000) == b"\x82\x7d"
