"""Requests into tensors and back, responses into token batches, errors into ours."""

from __future__ import annotations

import struct
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from common.triton.wire import Reading, ServedModel, failure
from engines.engine import EngineRequest, Finish, Prompt, Sampling, TokenBatch
from engines.triton.backend import dialects
from engines.triton.messages import encode
from engines.triton.tensors import INPUTS, MODEL_NAMES, OUTPUTS, Dialect
from fairlead.errors import InvalidArgumentError, Reason, UnavailableError

_WIRE = {"STRING": "BYTES"}
_NUMPY = {"INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32, "BOOL": np.bool_}
both = pytest.mark.parametrize("dialect", list(Dialect))


def metadata_of(dialect: Dialect, batched: bool = False, without: tuple[str, ...] = ()) -> Any:
    message = service_pb2.ModelMetadataResponse(name=MODEL_NAMES[dialect])
    for tensors, target in ((INPUTS[dialect], message.inputs), (OUTPUTS[dialect], message.outputs)):
        for tensor in tensors:
            if tensor.name not in without:
                shape = [-1, tensor.size] if batched else [tensor.size]
                target.add(name=tensor.name, datatype=_WIRE.get(tensor.datatype, tensor.datatype), shape=shape)
    return message


def config_of(decoupled: bool = True, **parameters: str) -> Any:
    config = model_config_pb2.ModelConfig()
    config.model_transaction_policy.decoupled = decoupled
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def model_of(dialect: Dialect, **options: Any) -> ServedModel:
    return ServedModel.of(metadata_of(dialect, **options), config_of())


def arrays_of(message: Any) -> dict[str, Any]:
    """What Triton hands to a model for this request."""
    arrays = {}
    for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            texts, at = [], 0
            while at < len(raw):
                (length,) = struct.unpack_from("<I", raw, at)
                texts.append(raw[at + 4 : at + 4 + length])
                at += 4 + length
            array = np.array(texts, dtype=np.object_)
        else:
            array = np.frombuffer(raw, dtype=_NUMPY[tensor.datatype])
        arrays[tensor.name] = array.reshape(tuple(tensor.shape))
    return arrays


def request_of(**sampling: Any) -> EngineRequest:
    return EngineRequest("r", Prompt("hi"), Sampling(**({"max_tokens": 5} | sampling)))


sampling_of = st.builds(
    Sampling,
    max_tokens=st.integers(1, 2**31 - 1),
    temperature=st.none() | st.just(0.0) | st.floats(0.125, 2, width=32),
    top_p=st.none() | st.floats(0.125, 1, width=32),
    top_k=st.none() | st.integers(1, 1000),
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=4).map(tuple),
    presence_penalty=st.none() | st.floats(-2, 2, width=32),
    frequency_penalty=st.none() | st.floats(-2, 2, width=32),
    repetition_penalty=st.none() | st.floats(0.125, 2, width=32),
    ignore_end_token=st.booleans(),
)


@both
@pytest.mark.parametrize("batched", [False, True])
@settings(max_examples=40)
@given(sampling=sampling_of, prompt=st.text(min_size=1, max_size=20))
def test_the_backend_reads_what_the_adapter_wrote(
    dialect: Dialect, batched: bool, sampling: Sampling, prompt: str
) -> None:
    """Proves over all settings that both ends of the wire mean the same, in both dialects and both shapes."""
    message = encode(model_of(dialect, batched=batched), EngineRequest("r", Prompt(prompt), sampling), prompt)
    ask = dialects.read(dialect.value, arrays_of(message).get)
    assert ask.prompt == prompt
    assert ask.stream
    assert ask.counts
    assert ask.max_tokens == sampling.max_tokens
    assert ask.stop == sampling.stop
    assert ask.seed == sampling.seed
    assert ask.ignore_end_token == sampling.ignore_end_token
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        assert getattr(ask, name) == getattr(sampling, name)
    random = sampling.temperature != 0 and sampling.top_k != 1
    asked = sampling.temperature is not None or sampling.top_p is not None or sampling.top_k is not None
    assert ask.samples == (random and asked)
    if sampling.temperature:
        assert ask.temperature == sampling.temperature
        assert ask.top_p == (sampling.top_p or (None if sampling.top_k else 1.0))


def test_a_batched_model_gets_a_leading_dimension() -> None:
    """Shows the shape that NVIDIA's in-flight batcher templates want."""
    message = encode(model_of(Dialect.ENSEMBLE, batched=True), request_of(stop=("a", "b")), "hi")
    shapes = {tensor.name: list(tensor.shape) for tensor in message.inputs}
    assert shapes["text_input"] == [1, 1]
    assert shapes["stop_words"] == [1, 2]


def test_older_names_and_missing_counts_are_coped_with() -> None:
    """Shows an older ensemble: random_seed for seed, and no token counts to ask for."""
    metadata = metadata_of(Dialect.ENSEMBLE, without=("seed", "return_num_input_tokens", "return_num_output_tokens"))
    metadata.inputs.add(name="random_seed", datatype="UINT64", shape=[1])
    message = encode(ServedModel.of(metadata, config_of()), request_of(seed=7), "hi")
    assert [tensor.name for tensor in message.outputs] == ["text_output"]
    assert arrays_of(message)["random_seed"] == 7


def test_a_setting_the_model_lacks_is_refused_by_name() -> None:
    """Shows that nothing a tenant asked for is dropped in silence."""
    model = model_of(Dialect.LLMAPI, without=("sampling_param_repetition_penalty",))
    with pytest.raises(InvalidArgumentError, match="repetition_penalty") as caught:
        encode(model, request_of(repetition_penalty=1.5), "hi")
    assert caught.value.field == "sampling.repetition_penalty"


def test_foreign_and_mute_models_are_refused() -> None:
    """Shows that a model of another kind, or one that cannot stream, is refused with what to do."""
    metadata = service_pb2.ModelMetadataResponse(name="resnet")
    metadata.inputs.add(name="image", datatype="FP32", shape=[3, 224, 224])
    with pytest.raises(UnavailableError, match="image"):
        ServedModel.of(metadata, config_of())
    with pytest.raises(UnavailableError, match="decoupled"):
        ServedModel.of(metadata_of(Dialect.LLMAPI), config_of(decoupled=False))


def test_limits_come_from_the_models_config() -> None:
    """Shows that our own server tells its sizes, and that other parameters are no numbers."""
    config = config_of(context_tokens="4096", dialect="ensemble", share="0.5")
    assert ServedModel.of(metadata_of(Dialect.ENSEMBLE), config).limits == {"context_tokens": 4096}


def response(final: bool = False, **tensors: Any) -> Any:
    message = service_pb2.ModelStreamInferResponse()
    message.infer_response.parameters["triton_final_response"].bool_param = final
    for name, raw in tensors.items():
        message.infer_response.outputs.add(name=name)
        message.infer_response.raw_output_contents.append(raw)
    return message


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return struct.pack("<i", value)


def test_ensemble_responses_are_the_new_text_and_their_counts() -> None:
    """Shows the first dialect: deltas, counted by the server, length guessed from a full measure."""
    reading = Reading(model_of(Dialect.ENSEMBLE), 3, 4096)
    counts: Any = {"num_input_tokens": number(9), "num_output_tokens": number(1)}
    assert reading.take(response(text_output=text("a"), **counts)) == TokenBatch("a", 1)
    two = counts | {"num_output_tokens": number(2)}
    assert reading.take(response(True, text_output=text("bc"), **two)) == TokenBatch("bc", 2, Finish.LENGTH, 9)
    assert reading.ended


def test_ensemble_stop_is_what_ends_before_its_measure() -> None:
    """Shows the other guess: fewer tokens than allowed, room in the context, so it stopped by itself."""
    reading = Reading(model_of(Dialect.ENSEMBLE), 30, 4096)
    batch = reading.take(response(True, text_output=text("a"), num_output_tokens=number(1)))
    assert batch is not None
    assert batch.finish is Finish.STOP


def test_ensemble_out_of_context_is_length() -> None:
    """Shows that a sequence which filled the context ended for its length."""
    reading = Reading(model_of(Dialect.ENSEMBLE), 30, 10)
    counts: Any = {"num_input_tokens": number(9), "num_output_tokens": number(1)}
    batch = reading.take(response(True, text_output=text("a"), **counts))
    assert batch is not None
    assert batch.finish is Finish.LENGTH


def test_llmapi_responses_are_the_whole_text_one_token_each() -> None:
    """Shows the second dialect: text so far, an unfinished character held back, one token a response."""
    reading = Reading(model_of(Dialect.LLMAPI), 3, 4096)
    going: Any = {"finish_reason": text("None")}
    assert reading.take(response(text_output=text("a\ufffd"), **going)) == TokenBatch("a", 1)
    assert reading.take(response(text_output=text("aé"), **going)) == TokenBatch("é", 1)
    last = reading.take(response(True, text_output=text("aé!"), finish_reason=text("stop")))
    assert last == TokenBatch("!", 1, Finish.STOP)


def test_an_empty_final_response_ends_the_stream() -> None:
    """Shows the ensemble scheduler's habit: the end is known only after the last token, in a response of its own."""
    reading = Reading(model_of(Dialect.ENSEMBLE), 1, 4096)
    assert reading.take(response(text_output=text("a"), num_output_tokens=number(1))) == TokenBatch("a", 1)
    assert reading.take(response(final=True)) == TokenBatch("", 0, Finish.LENGTH)


def test_error_inside_a_stream_is_raised() -> None:
    """Shows a server that reports errors as responses, because it does not know triton_grpc_error."""
    with pytest.raises(UnavailableError, match="boom"):
        Reading(model_of(Dialect.ENSEMBLE), 1, 4096).take(service_pb2.ModelStreamInferResponse(error_message="boom"))


@pytest.mark.parametrize(
    ("code", "message", "kind", "reason"),
    [
        ("INVALID_ARGUMENT", "bad shape", InvalidArgumentError, Reason.INVALID_ARGUMENT),
        (
            "INTERNAL",
            "Prompt length (9) exceeds maximum input length (8)",
            InvalidArgumentError,
            Reason.PROMPT_TOO_LONG,
        ),
        ("INTERNAL", "stub is gone", UnavailableError, Reason.ENGINE_FAILED),
        ("UNAVAILABLE", "connection refused", UnavailableError, Reason.ENGINE_FAILED),
        ("CANCELLED", "", UnavailableError, Reason.ENGINE_FAILED),
    ],
)
def test_errors_blame_the_request_or_the_engine(code: str, message: str, kind: type, reason: Reason) -> None:
    """Shows which failures the router may retry elsewhere: all but those the request itself is to blame for."""
    error = failure(grpc.StatusCode[code], message)
    assert type(error) is kind
    assert error.reason is reason


@both
@pytest.mark.parametrize("value", [0, -1])
def test_absurd_max_tokens_are_refused_by_the_backend(dialect: Dialect, value: int) -> None:
    """Shows that the backend checks for itself."""
    message = encode(model_of(dialect), request_of(max_tokens=value), "hi")
    with pytest.raises(ValueError, match="max_tokens must be 1 or more"):
        dialects.read(dialect.value, arrays_of(message).get)


@both
def test_broken_utf8_and_empty_prompts_are_refused_by_the_backend(dialect: Dialect) -> None:
    """Shows that bytes which are no text, and no text at all, get an error that says so."""
    arrays = arrays_of(encode(model_of(dialect), request_of(), "hi"))
    with pytest.raises(ValueError, match="text_input is not UTF-8"):
        dialects.read(dialect.value, (arrays | {"text_input": np.array([b"\xff"], dtype=np.object_)}).get)
    with pytest.raises(ValueError, match="not empty"):
        dialects.read(dialect.value, (arrays | {"text_input": np.array([b""], dtype=np.object_)}).get)
