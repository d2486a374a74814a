"""TensorRT-LLM's tensors: what a server says of its model, requests into tensors, responses into token batches.

Pure, and without Triton's own packages: replica agents and routers carry the tensors in messages, each in their way.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from common.generation import Finish, Sampling, TokenBatch
from fairlead.errors import FairleadError, InvalidArgumentError, Reason, UnavailableError

_FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH, "cancelled": Finish.CANCELLED, "timeout": Finish.CANCELLED}
_SCALARS = {"INT32": "<i", "INT64": "<q", "UINT64": "<Q", "FP32": "<f", "BOOL": "<?"}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# TensorRT-LLM says INTERNAL for these; the texts are those of its executor, and ours.
# How our own backend begins an error the request is to blame for: an error inside a stream has a text and no status.
REQUEST_TO_BLAME = "[INVALID_ARG] "
_TOO_LONG = ("exceeds maximum input length", "exceeds max_seq_len", "should not exceed max_num_tokens")
_MESSAGE_CHARACTERS_MAX = 300


class Dialect(enum.Enum):
    """Which names a model's tensors have; see engines.triton.tensors."""

    ENSEMBLE = "ensemble"
    LLMAPI = "llmapi"


TELLTALE_INPUTS = {Dialect.ENSEMBLE: "max_tokens", Dialect.LLMAPI: "sampling_param_max_tokens"}
"""How they are told apart."""


def dialect_of(inputs: Mapping[str, tuple[str, int]]) -> Dialect | None:
    """The dialect of a model with these inputs, or None."""
    if "text_input" not in inputs:
        return None
    return next((dialect for dialect, name in TELLTALE_INPUTS.items() if name in inputs), None)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as its server describes it.

    Attributes:
        name: Its name.
        dialect: How to talk to it.
        inputs: Datatype and number of dimensions of each input.
        outputs: Names of the outputs.
        limits: Numbers among the parameters of its config: "context_tokens", "kv_capacity_tokens", "sequences_max"
            where the server is ours.
    """

    name: str
    dialect: Dialect
    inputs: Mapping[str, tuple[str, int]]
    outputs: frozenset[str]
    limits: Mapping[str, int]

    @classmethod
    def of(cls, metadata: Any, config: Any) -> ServedModel:
        """Reads the server's answers.

        Args:
            metadata: ModelMetadataResponse.
            config: The ModelConfig of ModelConfigResponse.

        Raises:
            UnavailableError: The tensors are of no known dialect, or the model does not stream.
        """
        inputs = {tensor.name: (tensor.datatype, len(tensor.shape)) for tensor in metadata.inputs}
        dialect = dialect_of(inputs)
        if dialect is None:
            raise UnavailableError(
                f"The model {metadata.name!r} has the tensors of neither TensorRT-LLM dialect (its inputs are "
                f"{', '.join(sorted(inputs))}); serve `ensemble`, `tensorrt_llm_bls` or the LLM API's `tensorrt_llm`.",
                reason=Reason.ENGINE_MISSING,
            )
        if not config.model_transaction_policy.decoupled:
            raise UnavailableError(
                f"The model {metadata.name!r} cannot stream: set decoupled to true (decoupled_mode in its "
                "config.pbtxt, triton_config.decoupled in the LLM API's model.yaml).",
                reason=Reason.ENGINE_MISSING,
            )
        limits = {
            name: int(value.string_value)
            for name, value in config.parameters.items()
            if value.string_value.isascii() and value.string_value.isdigit()
        }
        outputs = frozenset(tensor.name for tensor in metadata.outputs)
        return cls(metadata.name, dialect, inputs, outputs, limits)


@dataclass(frozen=True, slots=True)
class Tensors:
    """A request in tensors.

    Attributes:
        inputs: Name, datatype, shape and bytes of each.
        outputs: Names of what is wanted back.
    """

    inputs: list[tuple[str, str, list[int], bytes]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def tensors_of(model: ServedModel, sampling: Sampling, prompt: str) -> Tensors:
    """Turns a request into tensors.

    Args:
        model: Whom it is for.
        sampling: How tokens are drawn.
        prompt: Plain text.

    Raises:
        InvalidArgumentError: The request sets something that this model has no tensor for.
    """
    writer = _Writer(model, Tensors())
    if model.dialect is Dialect.ENSEMBLE:
        _encode_ensemble(writer, sampling, prompt)
    else:
        _encode_llmapi(writer, sampling, prompt)
    return writer.tensors


def _encode_ensemble(writer: _Writer, sampling: Sampling, prompt: str) -> None:
    writer.text("text_input", [prompt])
    writer.number("max_tokens", sampling.max_tokens)
    writer.number("stream", True)
    writer.output("text_output")
    for count in ("num_input_tokens", "num_output_tokens"):
        if writer.offers(f"return_{count}"):
            writer.number(f"return_{count}", True)
            writer.output(count)
    if sampling.stop:
        writer.text("stop_words", sampling.stop)
    if sampling.ignore_end_token:
        writer.number("end_id", -1)
    if sampling.seed is not None:
        writer.number("seed" if writer.offers("seed") else "random_seed", sampling.seed)
    _encode_sampling(writer, "", sampling)


def _encode_llmapi(writer: _Writer, sampling: Sampling, prompt: str) -> None:
    prefix = "sampling_param_"
    writer.text("text_input", [prompt])
    writer.number(prefix + "max_tokens", sampling.max_tokens)
    writer.number("streaming", True)
    writer.number("return_finish_reason", True)
    for name in ("text_output", "finish_reason", "num_input_tokens"):
        writer.output(name)
    if sampling.stop:
        writer.text(prefix + "stop", sampling.stop)
    if sampling.ignore_end_token:
        writer.number(prefix + "ignore_eos", True)
    if sampling.seed is not None:
        writer.number(prefix + "seed", sampling.seed)
    _encode_sampling(writer, prefix, sampling)


def _encode_sampling(writer: _Writer, prefix: str, sampling: Sampling) -> None:
    top_p = sampling.top_p
    if sampling.temperature == 0:
        writer.number(prefix + "top_k", 1)
    else:
        if sampling.temperature is not None:
            writer.number(prefix + "temperature", sampling.temperature)
            if top_p is None and sampling.top_k is None:
                top_p = 1.0  # TensorRT-LLM takes the likeliest token unless one of the two is given
        if sampling.top_k is not None:
            writer.number(prefix + "top_k", sampling.top_k)
        if top_p is not None:
            writer.number(prefix + "top_p", top_p)
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        value = getattr(sampling, name)
        if value is not None:
            writer.number(prefix + name, value)


class _Writer:
    """Collects tensors, shaped as the model declares them."""

    def __init__(self, model: ServedModel, tensors: Tensors) -> None:
        self._model = model
        self.tensors = tensors

    def offers(self, name: str) -> bool:
        return name in self._model.inputs

    def number(self, name: str, value: float) -> None:
        form = _SCALARS.get(self._rank(name)[0])
        if form is None:
            raise UnavailableError(f"The model's input {name} has the unknown type {self._rank(name)[0]}.")
        self._append(name, 1, struct.pack(form, value))

    def text(self, name: str, values: Sequence[str]) -> None:
        encoded = [value.encode() for value in values]
        self._append(name, len(encoded), b"".join(struct.pack("<I", len(value)) + value for value in encoded))

    def output(self, name: str) -> None:
        if name in self._model.outputs:
            self.tensors.outputs.append(name)

    def _rank(self, name: str) -> tuple[str, int]:
        found = self._model.inputs.get(name)
        if found is None:
            setting = name.removeprefix("sampling_param_")
            raise InvalidArgumentError(f"This model's engine has no {setting}.", field=f"sampling.{setting}")
        return found

    def _append(self, name: str, size: int, raw: bytes) -> None:
        datatype, rank = self._rank(name)
        self.tensors.inputs.append((name, datatype, [1] * (rank - 1) + [size], raw))


class Reading:
    """Turns the responses of one request into token batches.

    Args:
        model: Who answers.
        max_tokens: The request's.
        context_tokens: Longest prompt plus output; 0 where nobody knows.

    Attributes:
        deltas: Each response holds the new text, and not all of it.
        input_tokens: Of the prompt, as far as the server has told.
        output_tokens: So far.
        ended: The last response came.
    """

    def __init__(self, model: ServedModel, max_tokens: int, context_tokens: int) -> None:
        self.deltas = model.dialect is not Dialect.LLMAPI
        self._max_tokens = max_tokens
        self._context_tokens = context_tokens
        self._text_length = 0
        self._finish: Finish | None = None
        self.input_tokens = 0
        self.output_tokens = 0
        self.ended = False

    def take(self, message: Any) -> TokenBatch | None:
        """Reads a ModelStreamInferResponse.

        Returns:
            What is new, or None where the response says nothing; the last batch has a finish.

        Raises:
            FairleadError: The response is an error.
        """
        if message.error_message:
            raise failure_inside(message.error_message)
        response = message.infer_response
        tensors = dict(zip((tensor.name for tensor in response.outputs), response.raw_output_contents, strict=False))
        return self.read(tensors, ended=response.parameters["triton_final_response"].bool_param)

    def read(self, tensors: Mapping[str, bytes], *, ended: bool) -> TokenBatch | None:
        """Reads the tensors of a response.

        Args:
            tensors: By name.
            ended: Whether the server says that it is the last.
        """
        self.ended = ended
        if "text_output" not in tensors:
            return self.end() if ended else None
        reason = _first_text(tensors.get("finish_reason", b""))
        self._finish = _FINISHES.get(reason)
        tokens = _first_int(tensors["num_output_tokens"]) if "num_output_tokens" in tensors else 1
        self.output_tokens += tokens
        if "num_input_tokens" in tensors:
            self.input_tokens = _first_int(tensors["num_input_tokens"])
        text = self._new_text(_first_text(tensors["text_output"]))
        return self._last(text, tokens) if self.ended else TokenBatch(text, tokens)

    def end(self) -> TokenBatch:
        """The last batch of a stream that ended without further tokens."""
        self.ended = True
        return self._last("", 0)

    def _new_text(self, text: str) -> str:
        if self.deltas:
            return text
        # The whole text so far: its end may still change while a character is incomplete.
        stable = text if self.ended else text.rstrip(_REPLACEMENT)
        new = stable[self._text_length :]
        self._text_length = max(self._text_length, len(stable))
        return new

    def _last(self, text: str, tokens: int) -> TokenBatch:
        return TokenBatch(text, tokens, self._finish or self._guess_finish(), self.input_tokens)

    def _guess_finish(self) -> Finish:
        """The ensemble dialect does not say why it ended; a full measure of tokens means length."""
        full = self.output_tokens >= self._max_tokens
        out_of_context = 0 < self._context_tokens <= self.input_tokens + self.output_tokens
        return Finish.LENGTH if full or out_of_context else Finish.STOP


def failure_inside(text: str) -> FairleadError:
    """Turns an error that stands in a stream, without a status, into ours."""
    blame = text.startswith(REQUEST_TO_BLAME)
    code = grpc.StatusCode.INVALID_ARGUMENT if blame else grpc.StatusCode.UNKNOWN
    return failure(code, text.removeprefix(REQUEST_TO_BLAME))


def failure(code: grpc.StatusCode, text: str) -> FairleadError:
    """Turns a Triton error into ours.

    Args:
        code: Its gRPC code.
        text: Its message.

    Returns:
        InvalidArgumentError where the request is to blame, else UnavailableError.
    """
    text = text[:_MESSAGE_CHARACTERS_MAX]
    if any(mark in text for mark in _TOO_LONG):
        return InvalidArgumentError(text, reason=Reason.PROMPT_TOO_LONG)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidArgumentError(text)
    return UnavailableError(f"The engine failed: {text or code.name}", reason=Reason.ENGINE_FAILED)


def _first_text(raw: bytes) -> str:
    if len(raw) < 4:
        return ""
    (length,) = struct.unpack_from("<I", raw)
    return raw[4 : 4 + length].decode(errors="replace")


def _first_int(raw: bytes) -> int:
    return int(struct.unpack_from("<i", raw)[0])
