"""Requests out of, and responses into, the tensors of TensorRT-LLM's two dialects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENSEMBLE = "ensemble"
LLMAPI = "llmapi"

Array = NDArray[Any]
Inputs = Callable[[str], "Array | None"]
# What NVIDIA's LLM API model writes as the finish reason of a sequence that goes on.
_NOT_FINISHED = "None"
# Tokens where a request of the LLM API dialect names no maximum: TensorRT-LLM's SamplingParams.max_tokens.
_MAX_TOKENS_DEFAULT = 32
_ENDLESS = -1


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants.

    Attributes:
        prompt: Text to continue.
        max_tokens: Most new tokens.
        temperature: 0 or None means greedy.
        top_k: 1 means greedy, 0 or None no limit.
        top_p: Share of probability kept; None keeps all.
        seed: Of the sampler.
        stop: Texts that end generation.
        presence_penalty: See OpenAI's API.
        frequency_penalty: See OpenAI's API.
        repetition_penalty: 1 or None means none.
        ignore_end_token: Go on to max_tokens.
        min_tokens: Ignore the end token before that many.
        stream: A response for each step; else one for all.
        counts: Ensemble: return the token counts. LLM API: return the finish reason.
        cancels: LLM API: this is no request but the end of another one with the same id.
    """

    prompt: str
    max_tokens: int
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_end_token: bool = False
    min_tokens: int = 0
    stream: bool = False
    counts: bool = False
    cancels: bool = False

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random; else the likeliest is taken, as TensorRT-LLM does by default."""
        if self.top_k == 1 or self.temperature == 0:
            return False
        return self.temperature is not None or self.top_p is not None or bool(self.top_k)


@dataclass(frozen=True, slots=True)
class Part:
    """What a sequence has produced since its last part.

    Attributes:
        text: New text.
        text_so_far: All of it.
        tokens: New tokens.
        input_tokens: Tokens of the prompt.
        finish: "stop" or "length" on the last part, else empty.
    """

    text: str
    text_so_far: str
    tokens: int
    input_tokens: int
    finish: str = ""


def read(dialect: str, inputs: Inputs) -> Ask:
    """Reads a request.

    Args:
        dialect: `ENSEMBLE` or `LLMAPI`.
        inputs: The array of a tensor by name, or None where the request leaves it out.

    Returns:
        What it wants.

    Raises:
        ValueError: A tensor is missing or has a value it cannot have; the message names it.
    """
    return _read_ensemble(inputs) if dialect == ENSEMBLE else _read_llmapi(inputs)


def write(dialect: str, ask: Ask, part: Part) -> list[tuple[str, Array]]:
    """Writes a response: the output tensors by name."""
    if dialect == ENSEMBLE:
        tensors = [("text_output", _text(part.text)), ("sequence_index", _int(0))]
        if ask.counts:
            tensors += [("num_input_tokens", _int(part.input_tokens)), ("num_output_tokens", _int(part.tokens))]
        return tensors
    tensors = [("text_output", _text(part.text_so_far)), ("num_input_tokens", _int(part.input_tokens))]
    if ask.counts:
        tensors.append(("finish_reason", _text(part.finish or _NOT_FINISHED)))
    return tensors


def _read_ensemble(inputs: Inputs) -> Ask:
    end_id = _scalar(inputs, "end_id")
    return Ask(
        prompt=_prompt(inputs),
        max_tokens=_max_tokens(inputs, "max_tokens"),
        temperature=_scalar(inputs, "temperature"),
        top_k=_scalar(inputs, "top_k"),
        top_p=_scalar(inputs, "top_p"),
        seed=_scalar(inputs, "seed"),
        stop=_texts(inputs, "stop_words"),
        presence_penalty=_scalar(inputs, "presence_penalty"),
        frequency_penalty=_scalar(inputs, "frequency_penalty"),
        repetition_penalty=_scalar(inputs, "repetition_penalty"),
        ignore_end_token=end_id == _ENDLESS,
        min_tokens=_scalar(inputs, "min_tokens") or 0,
        stream=bool(_scalar(inputs, "stream")),
        counts=bool(_scalar(inputs, "return_num_output_tokens")),
    )


def _read_llmapi(inputs: Inputs) -> Ask:
    if _scalar(inputs, "stop"):
        return Ask(prompt="", max_tokens=1, cancels=True)
    prefix = "sampling_param_"
    return Ask(
        prompt=_prompt(inputs),
        max_tokens=_max_tokens(inputs, prefix + "max_tokens"),
        temperature=_scalar(inputs, prefix + "temperature"),
        top_k=_scalar(inputs, prefix + "top_k"),
        top_p=_scalar(inputs, prefix + "top_p"),
        seed=_scalar(inputs, prefix + "seed"),
        stop=_texts(inputs, prefix + "stop"),
        presence_penalty=_scalar(inputs, prefix + "presence_penalty"),
        frequency_penalty=_scalar(inputs, prefix + "frequency_penalty"),
        repetition_penalty=_scalar(inputs, prefix + "repetition_penalty"),
        ignore_end_token=bool(_scalar(inputs, prefix + "ignore_eos")),
        stream=bool(_scalar(inputs, "streaming")),
        counts=bool(_scalar(inputs, "return_finish_reason")),
    )


def _scalar(inputs: Inputs, name: str) -> Any:
    array = inputs(name)
    if array is None:
        return None
    if array.size != 1:
        raise ValueError(f"{name} must have 1 element, not {array.size}")
    return array.reshape(-1)[0].item()


def _max_tokens(inputs: Inputs, name: str) -> int:
    value = _scalar(inputs, name)
    if value is None:
        return _MAX_TOKENS_DEFAULT
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, not {value}")
    return int(value)


def _prompt(inputs: Inputs) -> str:
    prompts = _texts(inputs, "text_input")
    if len(prompts) != 1:
        raise ValueError(f"text_input must be 1 text that is not empty, got {len(prompts)}")
    return prompts[0]


def _texts(inputs: Inputs, name: str) -> tuple[str, ...]:
    array = inputs(name)
    if array is None:
        return ()
    try:
        return tuple(value.decode() for value in array.reshape(-1).tolist() if value)
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8") from None


def _text(value: str) -> Array:
    return np.array([value.encode()], dtype=np.object_)


def _int(value: int) -> Array:
    return np.array([value], dtype=np.int32)
