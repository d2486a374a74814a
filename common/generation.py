"""What is asked of an engine and what comes back, in plain types: what replica agents and routers share."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from fairlead.errors import InvalidArgumentError
from fairlead.inference.v1 import inference_pb2


class Finish(enum.Enum):
    """Why generation ended; the wire's FinishReason without the unset value."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


FINISH_REASONS: Final = {
    Finish.STOP: inference_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
    Finish.CANCELLED: inference_pb2.FINISH_REASON_CANCELLED,
}
"""The wire's finish reasons."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; None means the model's default.

    Attributes:
        max_tokens: Most output tokens, 1 or more. The router has filled in the model's default.
        temperature: 0 (greedy) to 2.
        top_p: Above 0 up to 1.
        top_k: 1 or more.
        seed: Any unsigned 64-bit number.
        stop: Generation ends before any of these.
        presence_penalty: -2 to 2.
        frequency_penalty: -2 to 2.
        repetition_penalty: Above 0 up to 2.
        ignore_end_token: Run to max_tokens.
    """

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_end_token: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to continue: plain text, or a conversation that the adapter renders with the model's chat template.

    Attributes:
        text: Plain text; empty when messages are given.
        messages: (role, content) pairs, oldest first; empty when text is given.
    """

    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What an engine produced since the previous batch of the same request.

    Attributes:
        text: New text, UTF-8 clean; may be empty while a character is incomplete.
        output_tokens: New tokens, 0 or more.
        finish: Set on the last batch only.
        input_tokens: Tokens of the rendered prompt; set on the last batch.
        cached_input_tokens: The part found in the prefix cache; set on the last batch where the engine tells.
    """

    text: str
    output_tokens: int
    finish: Finish | None = None
    input_tokens: int = 0
    cached_input_tokens: int = 0


def prompt_of(request: inference_pb2.GenerateRequest) -> Prompt:
    """What a request wants continued.

    Raises:
        InvalidArgumentError: It has neither a prompt nor messages.
    """
    if request.WhichOneof("input") == "prompt":
        return Prompt(text=request.prompt)
    if not request.chat.messages:
        raise InvalidArgumentError("a request needs a prompt or at least one chat message", field="request.input")
    return Prompt(messages=tuple((message.role, message.content) for message in request.chat.messages))


def sampling_of(sampling: inference_pb2.SamplingParameters) -> Sampling:
    """How a request wants tokens drawn.

    Raises:
        InvalidArgumentError: max_tokens is missing or no such number.
    """
    if sampling.max_tokens < 1:
        raise InvalidArgumentError("max_tokens must be 1 or more", field="request.sampling.max_tokens")

    def given(name: str) -> bool:
        return sampling.HasField(name)  # type: ignore[arg-type]  # the stubs want each name spelled out

    return Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature if given("temperature") else None,
        top_p=sampling.top_p if given("top_p") else None,
        top_k=sampling.top_k if given("top_k") else None,
        seed=sampling.seed if given("seed") else None,
        stop=tuple(sampling.stop),
        presence_penalty=sampling.presence_penalty if given("presence_penalty") else None,
        frequency_penalty=sampling.frequency_penalty if given("frequency_penalty") else None,
        repetition_penalty=sampling.repetition_penalty if given("repetition_penalty") else None,
        ignore_end_token=sampling.ignore_end_token,
    )
