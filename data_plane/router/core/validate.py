"""Whether a request is one: every limit and range, refused by the name of the field.

Works on the wire's GenerateRequest, because both front doors (gRPC and HTTP) speak it from here on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fairlead.admin.v1 import admin_pb2
from fairlead.errors import InvalidArgumentError, PermissionDeniedError, Reason
from fairlead.inference.v1 import inference_pb2 as pb

MESSAGES_MAX: Final = 4_096
STOP_SEQUENCES_MAX: Final = 16
STOP_BYTES_MAX: Final = 256
SESSION_BYTES_MAX: Final = 256
REQUEST_ID_BYTES_MAX: Final = 128
TOP_K_MAX: Final = 1_000_000

ROLES: Final = frozenset({"system", "user", "assistant", "tool"})

# The estimate of prompt tokens is off by a few percent for usual text and more for unusual text; what the estimate
# finds this much too long is refused here, the rest by the engine's own count.
_TOO_LONG_MARGIN: Final = 1.5


@dataclass(frozen=True, slots=True)
class Checked:
    """What the checks found out on the way.

    Attributes:
        prompt_bytes: UTF-8 bytes of the prompt, or of all messages together.
        messages: Turns of a conversation; 0 for plain text.
        max_tokens: The request's limit, or the model's default.
        priority: The scheduling class, never unspecified.
    """

    prompt_bytes: int
    messages: int
    max_tokens: int
    priority: pb.Priority.ValueType


def check(request: pb.GenerateRequest, model: admin_pb2.Model, *, prompt_bytes_max: int) -> Checked:
    """Checks a request against the API's limits and its model's.

    Args:
        request: As it came.
        model: The model it names.
        prompt_bytes_max: Longest prompt, bytes.

    Raises:
        InvalidArgumentError: Something is wrong; `field` names it.
        PermissionDeniedError: A tenant asked for the platform's own priority.
    """
    prompt_bytes = _prompt_bytes(request)
    if prompt_bytes > prompt_bytes_max:
        raise _too_long(request, f"it has {prompt_bytes} bytes, at most {prompt_bytes_max} are taken")
    _check_ids(request)
    _check_sampling(request.sampling)
    return Checked(
        prompt_bytes=prompt_bytes,
        messages=len(request.chat.messages),
        max_tokens=_max_tokens(request.sampling, model),
        priority=_priority(request.priority),
    )


def check_length(request: pb.GenerateRequest, input_tokens: int, model: admin_pb2.Model) -> None:
    """Refuses a prompt whose estimated tokens are far beyond the model's context.

    Raises:
        InvalidArgumentError: Reason PROMPT_TOO_LONG.
    """
    if model.context_tokens and input_tokens > _TOO_LONG_MARGIN * model.context_tokens:
        raise _too_long(request, f"it has about {input_tokens} tokens, {model.model_id} takes {model.context_tokens}")


def check_form(request: pb.GenerateRequest) -> None:
    """Checks what must be right before the model can even be looked up.

    Raises:
        InvalidArgumentError: No model is named.
    """
    if not request.model:
        raise InvalidArgumentError("model is required; ListModels tells which there are", field="model")


def is_request_id(text: str) -> bool:
    """Whether a text may be a request's id: visible ASCII of a limited length; empty means the router draws one."""
    return len(text) <= REQUEST_ID_BYTES_MAX and text.isascii() and (not text or text.isprintable()) and " " not in text


def _prompt_bytes(request: pb.GenerateRequest) -> int:
    kind = request.WhichOneof("input")
    if kind == "prompt":
        if not request.prompt:
            raise InvalidArgumentError("prompt must not be empty", field="prompt")
        return _utf8_length(request.prompt)
    if kind != "chat":
        raise InvalidArgumentError("set prompt or chat", field="prompt")
    messages = request.chat.messages
    if not 1 <= len(messages) <= MESSAGES_MAX:
        raise InvalidArgumentError(
            f"chat needs 1 to {MESSAGES_MAX} messages, not {len(messages)}", field="chat.messages"
        )
    total = 0
    for index, message in enumerate(messages):
        if message.role not in ROLES:
            raise InvalidArgumentError(
                f"the role of message {index} must be one of {', '.join(sorted(ROLES))}",
                field=f"chat.messages[{index}].role",
            )
        total += _utf8_length(message.content)
    return total


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _check_ids(request: pb.GenerateRequest) -> None:
    if len(request.session_id.encode()) > SESSION_BYTES_MAX:
        raise InvalidArgumentError(f"session_id must have at most {SESSION_BYTES_MAX} bytes", field="session_id")
    if not is_request_id(request.request_id):
        raise InvalidArgumentError(
            f"request_id must be at most {REQUEST_ID_BYTES_MAX} visible ASCII characters", field="request_id"
        )


def _check_sampling(sampling: pb.SamplingParameters) -> None:
    _range(sampling, "temperature", 0.0, 2.0)
    _range(sampling, "top_p", 0.0, 1.0, above=True)
    _range(sampling, "top_k", 1, TOP_K_MAX)
    _range(sampling, "presence_penalty", -2.0, 2.0)
    _range(sampling, "frequency_penalty", -2.0, 2.0)
    _range(sampling, "repetition_penalty", 0.0, 2.0, above=True)
    if len(sampling.stop) > STOP_SEQUENCES_MAX:
        raise InvalidArgumentError(
            f"at most {STOP_SEQUENCES_MAX} stop sequences, not {len(sampling.stop)}", field="sampling.stop"
        )
    for index, stop in enumerate(sampling.stop):
        if not 1 <= len(stop.encode()) <= STOP_BYTES_MAX:
            raise InvalidArgumentError(
                f"a stop sequence must have 1 to {STOP_BYTES_MAX} bytes", field=f"sampling.stop[{index}]"
            )


def _range(sampling: pb.SamplingParameters, name: str, least: float, most: float, *, above: bool = False) -> None:
    if not sampling.HasField(name):  # type: ignore[arg-type]  # a name out of the closed list above
        return
    value = getattr(sampling, name)
    too_low = value <= least if above else value < least
    if math.isnan(value) or too_low or value > most:
        lower = f"above {least:g}" if above else f"{least:g}"
        raise InvalidArgumentError(f"{name} must be {lower} to {most:g}, not {value:g}", field=f"sampling.{name}")


def _max_tokens(sampling: pb.SamplingParameters, model: admin_pb2.Model) -> int:
    most = model.output_tokens_max or model.context_tokens
    if not sampling.HasField("max_tokens"):
        return min(model.output_tokens_default or most, most)
    if not 1 <= sampling.max_tokens <= most:
        raise InvalidArgumentError(
            f"max_tokens must be 1 to {most} on {model.model_id}, not {sampling.max_tokens}",
            field="sampling.max_tokens",
        )
    return sampling.max_tokens


def _priority(priority: pb.Priority.ValueType) -> pb.Priority.ValueType:
    if priority == pb.PRIORITY_UNSPECIFIED:
        return pb.PRIORITY_INTERACTIVE
    if priority == pb.PRIORITY_SYSTEM:
        raise PermissionDeniedError("system priority is the platform's own; use interactive or batch", field="priority")
    if priority not in (pb.PRIORITY_BATCH, pb.PRIORITY_INTERACTIVE):
        raise InvalidArgumentError(f"priority {priority} is unknown", field="priority")
    return priority


def _too_long(request: pb.GenerateRequest, why: str) -> InvalidArgumentError:
    field = request.WhichOneof("input") or "prompt"
    return InvalidArgumentError(f"the prompt is too long: {why}", reason=Reason.PROMPT_TOO_LONG, field=field)
