"""The Triton dialect's own reader and writer of messages, against protobuf's."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from common.generation import Sampling
from common.triton.wire import Dialect, ServedModel, tensors_of
from data_plane.router.dialects.triton_messages import NoMessageError, ResponseReader, request_message
from engines.engine import EngineRequest, Prompt
from engines.triton.messages import encode
from tests.unit.router.triton_lab import Response, record_of, text, token


def model_of(dialect: Dialect) -> ServedModel:
    record = record_of(dialect)
    inputs = {each.name: (each.datatype, each.rank) for each in record.triton.inputs}
    return ServedModel(record.engine_model, dialect, inputs, frozenset(record.triton.outputs), {})


names_of = st.sampled_from(["text_output", "num_input_tokens", "num_output_tokens", "finish_reason", "x"])
responses_of = st.builds(
    lambda final, tensors, model, error: _built(final, tensors, model, error),
    st.booleans(),
    st.lists(st.tuples(names_of, st.binary(max_size=200)), max_size=5),
    st.text(max_size=5),
    st.sampled_from(["", "", "", "boom"]),
)


def _built(final: bool, tensors: list[tuple[str, bytes]], model: str, error: str) -> Any:
    message = Response(error_message=error)
    message.infer_response.model_name = model
    if final:
        message.infer_response.parameters["triton_final_response"].bool_param = True
    message.infer_response.parameters["other"].int64_param = 3
    for name, raw in tensors:
        message.infer_response.outputs.add(name=name, datatype="BYTES", shape=[1, 2])
        message.infer_response.raw_output_contents.append(raw)
    return message


def test_an_error_is_not_that_of_the_response_after_it() -> None:
    """Two responses alike but for the first one's complaint: the second has none, however it is read."""
    tensors = [("text_output", text(b"a")), ("finish_reason", b"")]
    reader = ResponseReader()
    reader.read(_built(False, tensors, "", "boom").SerializeToString())
    assert reader.error == "boom"
    healthy = _built(False, tensors, "", "").SerializeToString()
    assert reader.next_text(healthy, 0) is None
    reader.read(healthy)
    assert reader.error == ""


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(responses_of, st.lists(st.binary(max_size=40_000 // 4), max_size=3)), max_size=4))
def test_the_reader_reads_what_protobuf_reads(streams: list[tuple[Any, list[bytes]]]) -> None:
    """Proves over streams of like and unlike responses that both readers see the same, with and without memory."""
    reader = ResponseReader()
    for message, contents in streams:
        like = [message]
        for content in contents:
            copy = Response()
            copy.CopyFrom(message)
            if copy.infer_response.raw_output_contents:
                copy.infer_response.raw_output_contents[-1] = content
            like.append(copy)
            spoken = Response()
            spoken.CopyFrom(copy)
            if spoken.infer_response.raw_output_contents:
                spoken.infer_response.raw_output_contents[0] = text(content[:150])
            like.append(spoken)
        for each in like:
            inner, framed = each.infer_response, b"12345" + each.SerializeToString()
            quick = reader.next_text(framed, 5)
            if quick is not None:
                assert inner.outputs[0].name == "text_output"
                assert inner.raw_output_contents[0] == text(quick)
                assert list(inner.raw_output_contents[1:]) == reader.raw[1:]
                assert reader.names == [tensor.name for tensor in inner.outputs]
                assert (reader.error, reader.final) == (
                    each.error_message,
                    inner.parameters["triton_final_response"].bool_param,
                )
            reader.read(framed, 5)
            assert reader.error == each.error_message
            assert reader.final == inner.parameters["triton_final_response"].bool_param
            assert reader.names == [tensor.name for tensor in inner.outputs]
            assert reader.raw == list(inner.raw_output_contents)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_garbage_is_refused_or_read_and_never_an_accident(data: st.DataObject) -> None:
    """Proves for broken and foreign bytes, also after good ones, that nothing but NoMessageError is raised."""
    reader = ResponseReader()
    good = token("abc").SerializeToString()
    if data.draw(st.booleans()):
        reader.read(good)
    at = data.draw(st.integers(0, len(good)))
    broken = data.draw(st.sampled_from([good[:at], good[:at] + data.draw(st.binary(max_size=20)) + good[at:]]))
    for each in (broken, data.draw(st.binary(max_size=60))):
        reader.next_text(each, 0)
        try:
            reader.read(each)
        except NoMessageError:
            continue
        assert len(reader.raw) <= len(reader.names)


sampling_of = st.builds(
    Sampling,
    max_tokens=st.integers(1, 2**31 - 1),
    temperature=st.none() | st.just(0.0) | st.floats(0.125, 2, width=32),
    top_p=st.none() | st.floats(0.125, 1, width=32),
    top_k=st.none() | st.integers(1, 1000),
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=4).map(tuple),
    ignore_end_token=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(dialect=st.sampled_from(Dialect), sampling=sampling_of, prompt=st.text(max_size=300))
def test_the_routers_request_is_the_agents(dialect: Dialect, sampling: Sampling, prompt: str) -> None:
    """Proves over all settings that the bytes mean what the agent would have sent."""
    model = model_of(dialect)
    read = service_pb2.ModelInferRequest.FromString(
        request_message(model.name, "r-1", tensors_of(model, sampling, prompt))
    )
    assert read == encode(model, EngineRequest("r-1", Prompt(prompt), sampling), prompt)


def test_a_stream_of_plain_tokens_is_read_the_short_way() -> None:
    """Shows that responses which differ in their text alone need no second reading, whatever their length."""
    reader = ResponseReader()
    reader.read(token("first").SerializeToString())
    for value in ("a", "", "é" * 40, "x" * 123):
        assert reader.next_text(token(value).SerializeToString(), 0) == value.encode()
    for other in (token("x" * 124), token("a", 2), token("a", final=True), Response(error_message="boom")):
        assert reader.next_text(other.SerializeToString(), 0) is None
