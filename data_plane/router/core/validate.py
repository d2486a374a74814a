"""Whether a request is one: every limit and range, refused by the name of the field.

Works on the wire's GenerateRequest, because both front doors (gRPC and HTTP) speak it from here on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

# Looking a number up on the module and the enum costs more than comparing it.
_UNSPECIFIED: Final = pb.PRIORITY_UNSPECIFIED
_INTERACTIVE: Final = pb.PRIORITY_INTERACTIVE

# Of the sampling parameters that are numbers: the least, the most, and whether the least itself is too little.
_RANGES: Final[Mapping[int, tuple[float, float, bool]]] = {
    pb.SamplingParameters.TEMPERATURE_FIELD_NUMBER: (0.0, 2.0, False),
    pb.SamplingParameters.TOP_P_FIELD_NUMBER: (0.0, 1.0, True),
    pb.SamplingParameters.TOP_K_FIELD_NUMBER: (1, TOP_K_MAX, False),
    pb.SamplingParameters.PRESENCE_PENALTY_FIELD_NUMBER: (-2.0, 2.0, False),
    pb.SamplingParameters.FREQUENCY_PENALTY_FIELD_NUMBER: (-2.0, 2.0, False),
    pb.SamplingParameters.REPETITION_PENALTY_FIELD_NUMBER: (0.0, 2.0, True),
}
_TEMPERATURE: Final = pb.SamplingParameters.TEMPERATURE_FIELD_NUMBER
_MAX_TOKENS: Final = pb.SamplingParameters.MAX_TOKENS_FIELD_NUMBER
_STOP: Final = pb.SamplingParameters.STOP_FIELD_NUMBER
_IGNORE_END_TOKEN: Final = pb.SamplingParameters.IGNORE_END_TOKEN_FIELD_NUMBER

# The estimate of prompt tokens is off by a few percent for usual text and more for unusual text; what the estimate
# finds this much too long is refused here, the rest by the engine's own count.
_TOO_LONG_MARGIN: Final = 1.5


class Checked:
    """What the checks found out on the way.

    Attributes:
        prompt_bytes: UTF-8 bytes of the prompt, or of all messages together.
        messages: Turns of a conversation; 0 for plain text.
        max_tokens: The request's limit, or the model's default.
        priority: The scheduling class, never unspecified.
        runs_to_max: It ignores the end token, so its length is known.
        greedy: It asks for greedy decoding, so that the same request gives the same text again.
    """

    __slots__ = ("greedy", "max_tokens", "messages", "priority", "prompt_bytes", "runs_to_max")

    def __init__(
        self,
        prompt_bytes: int,
        messages: int,
        max_tokens: int,
        priority: pb.Priority.ValueType,
        runs_to_max: bool,
        greedy: bool,
    ) -> None:
        self.prompt_bytes = prompt_bytes
        self.messages = messages
        self.max_tokens = max_tokens
        self.priority = priority
        self.runs_to_max = runs_to_max
        self.greedy = greedy


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
    messages, prompt = 0, request.prompt
    if prompt:
        prompt_bytes = len(prompt) if prompt.isascii() else len(prompt.encode())
    elif request.HasField("chat"):
        messages, prompt_bytes = _chat(request.chat)
    elif request.HasField("prompt"):
        raise InvalidArgumentError("prompt must not be empty", field="prompt")
    else:
        raise InvalidArgumentError("set prompt or chat", field="prompt")
    if prompt_bytes > prompt_bytes_max:
        raise _too_long(request, f"it has {prompt_bytes} bytes, at most {prompt_bytes_max} are taken")
    _check_ids(request)
    max_tokens, runs_to_max, greedy = _check_sampling(request.sampling, model)
    if not max_tokens:
        most = model.output_tokens_max or model.context_tokens
        max_tokens = min(model.output_tokens_default or most, most)
    priority = request.priority
    if priority != _INTERACTIVE:
        priority = _priority(priority)
    return Checked(prompt_bytes, messages, max_tokens, priority, runs_to_max, greedy)


def check_length(request: pb.GenerateRequest, input_tokens: int, model: admin_pb2.Model) -> None:
    """Refuses a prompt whose estimated tokens are far beyond the model's context.

    Raises:
        InvalidArgumentError: Reason PROMPT_TOO_LONG.
    """
    if model.context_tokens and input_tokens > _TOO_LONG_MARGIN * model.context_tokens:
        raise _too_long(request, f"it has about {input_tokens} tokens, {model.model_id} takes {model.context_tokens}")


def is_request_id(text: str) -> bool:
    """Whether a text may be a request's id: visible ASCII of a limited length; empty means the router draws one."""
    return len(text) <= REQUEST_ID_BYTES_MAX and text.isascii() and (not text or text.isprintable()) and " " not in text


def _chat(chat: pb.Chat) -> tuple[int, int]:
    """How many messages, and how many bytes together."""
    messages = chat.messages
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
        content = message.content
        total += len(content) if content.isascii() else len(content.encode())
    return len(messages), total


def _check_ids(request: pb.GenerateRequest) -> None:
    session_id, request_id = request.session_id, request.request_id
    if session_id and len(session_id.encode()) > SESSION_BYTES_MAX:
        raise InvalidArgumentError(f"session_id must have at most {SESSION_BYTES_MAX} bytes", field="session_id")
    if request_id and not is_request_id(request_id):
        raise InvalidArgumentError(
            f"request_id must be at most {REQUEST_ID_BYTES_MAX} visible ASCII characters", field="request_id"
        )


def _check_sampling(sampling: pb.SamplingParameters, model: admin_pb2.Model) -> tuple[int, bool, bool]:
    """Checks what is set.

    Returns:
        The limit of output tokens, 0 where none is set; whether the end token is ignored; whether decoding is greedy.
    """
    max_tokens, runs_to_max, greedy = 0, False, False
    for field, value in sampling.ListFields():
        number = field.number
        if number == _MAX_TOKENS:
            max_tokens = value
            most = model.output_tokens_max or model.context_tokens
            if not 1 <= max_tokens <= most:
                raise InvalidArgumentError(
                    f"max_tokens must be 1 to {most} on {model.model_id}, not {max_tokens}",
                    field="sampling.max_tokens",
                )
        elif number in _RANGES:
            low, high, above = _RANGES[number]
            # So that what is no number is refused too.
            if not (value > low if above else value >= low) or not value <= high:
                lower = f"above {low:g}" if above else f"{low:g}"
                raise InvalidArgumentError(
                    f"{field.name} must be {lower} to {high:g}, not {value:g}", field=f"sampling.{field.name}"
                )
            if number == _TEMPERATURE:
                greedy = value == 0.0
        elif number == _STOP:
            _check_stops(value)
        elif number == _IGNORE_END_TOKEN:
            runs_to_max = value
    return max_tokens, runs_to_max, greedy


def _check_stops(stops: Sequence[str]) -> None:
    if len(stops) > STOP_SEQUENCES_MAX:
        raise InvalidArgumentError(
            f"at most {STOP_SEQUENCES_MAX} stop sequences, not {len(stops)}", field="sampling.stop"
        )
    for index, stop in enumerate(stops):
        if not 1 <= len(stop.encode()) <= STOP_BYTES_MAX:
            raise InvalidArgumentError(
                f"a stop sequence must have 1 to {STOP_BYTES_MAX} bytes", field=f"sampling.stop[{index}]"
            )


def _priority(priority: pb.Priority.ValueType) -> pb.Priority.ValueType:
    """Checks one that is not interactive."""
    if priority == _UNSPECIFIED:
        return _INTERACTIVE
    if priority == pb.PRIORITY_SYSTEM:
        raise PermissionDeniedError("system priority is the platform's own; use interactive or batch", field="priority")
    if priority != pb.PRIORITY_BATCH:
        raise InvalidArgumentError(f"priority {priority} is unknown", field="priority")
    return priority


def _too_long(request: pb.GenerateRequest, why: str) -> InvalidArgumentError:
    field = request.WhichOneof("input") or "prompt"
    return InvalidArgumentError(f"the prompt is too long: {why}", reason=Reason.PROMPT_TOO_LONG, field=field)
