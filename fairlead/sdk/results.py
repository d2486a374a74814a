"""What the SDK returns: frozen values, independent of the generated messages."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from fairlead.inference.v1 import inference_pb2


class FinishReason(enum.StrEnum):
    """Why generation ended."""

    STOP = "stop"
    """The model produced its end token or a stop sequence."""
    LENGTH = "length"
    """max_tokens or the context length was reached."""
    CANCELLED = "cancelled"
    """The request was cancelled; what arrived was charged."""


_FINISH_REASONS = {
    inference_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    inference_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    inference_pb2.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request, from the engine."""

    input_tokens: int
    """Tokens of the rendered prompt."""
    cached_input_tokens: int
    """The part of `input_tokens` that was found in a prefix cache."""
    output_tokens: int
    """Tokens generated."""

    @property
    def total_tokens(self) -> int:
        """Input plus output."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request cost, in thousandths of a model unit (milli-MU)."""

    estimated_milli_mu: int
    """Held at admission."""
    settled_milli_mu: int
    """Charged in the end."""
    prefill_milli_mu: int
    """The prefill part of `settled_milli_mu`."""
    decode_milli_mu: int
    """The decode part of `settled_milli_mu`."""
    quota_left_milli_mu: int
    """What the router could still admit for this tenant and model right after settling."""

    @property
    def estimated_mu(self) -> float:
        """Held at admission, in model units."""
        return self.estimated_milli_mu / 1000

    @property
    def settled_mu(self) -> float:
        """Charged in the end, in model units."""
        return self.settled_milli_mu / 1000

    @property
    def quota_left_mu(self) -> float:
        """Left right after settling, in model units."""
        return self.quota_left_milli_mu / 1000


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a streamed answer."""

    text: str
    """Text since the previous piece; may be empty while a character is incomplete."""
    output_tokens: int
    """Tokens this piece stands for."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole answer."""

    text: str
    """The generated text."""
    finish_reason: FinishReason
    """Why it ended."""
    usage: Usage
    """Token counts."""
    cost: Cost
    """Model units held and charged, and the quota left."""
    model: str
    """The model that answered."""
    replica_id: str
    """The replica that served it."""
    request_id: str
    """The id under which it was executed and billed once."""
    attempts: int
    """Tries it took, 1 when the first succeeded."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model the tenant may use."""

    id: str
    """What to pass as `model`."""
    context_tokens: int
    """Longest prompt plus output, tokens."""
    output_tokens_max: int
    """Most output tokens of one request."""
    bytes_per_token: float
    """Bytes of English text per token, for estimates before a request is sent."""
    create_time_s: int
    """When the model was created, seconds since the Unix epoch."""


def usage_from(message: inference_pb2.Usage) -> Usage:
    """Translates token counts."""
    return Usage(message.input_tokens, message.cached_input_tokens, message.output_tokens)


def cost_from(message: inference_pb2.Cost) -> Cost:
    """Translates a cost."""
    return Cost(
        estimated_milli_mu=message.estimated_milli_mu,
        settled_milli_mu=message.settled_milli_mu,
        prefill_milli_mu=message.prefill_milli_mu,
        decode_milli_mu=message.decode_milli_mu,
        quota_left_milli_mu=message.quota_left_milli_mu,
    )


def finish_reason_from(value: inference_pb2.FinishReason.ValueType) -> FinishReason:
    """Translates a finish reason; one this release does not know yet reads as STOP."""
    return _FINISH_REASONS.get(value, FinishReason.STOP)


def generation_from(message: inference_pb2.GenerateResponse, attempts: int) -> Generation:
    """Translates a whole answer.

    Args:
        message: The router's answer.
        attempts: Tries it took.
    """
    return Generation(
        text=message.text,
        finish_reason=finish_reason_from(message.finish_reason),
        usage=usage_from(message.usage),
        cost=cost_from(message.cost),
        model=message.model,
        replica_id=message.replica_id,
        request_id=message.request_id,
        attempts=attempts,
    )


def models_from(message: inference_pb2.ListModelsResponse) -> tuple[ModelInfo, ...]:
    """Translates a list of models."""
    return tuple(
        ModelInfo(
            id=model.id,
            context_tokens=model.context_tokens,
            output_tokens_max=model.output_tokens_max,
            bytes_per_token=model.bytes_per_token,
            create_time_s=model.create_time_s,
        )
        for model in message.models
    )
