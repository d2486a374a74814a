"""Builds requests. Checks only what the wire cannot carry: every rule about values belongs to the router."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from fairlead.errors import InvalidArgumentError
from fairlead.inference.v1 import inference_pb2

PriorityName = Literal["interactive", "batch"]

_PRIORITIES = {
    "interactive": inference_pb2.PRIORITY_INTERACTIVE,
    "batch": inference_pb2.PRIORITY_BATCH,
}
_SAMPLING_FIELDS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_end_token",
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """Who speaks: "system", "user", "assistant" or "tool"."""
    content: str
    """What was said."""


MessageLike = Message | Mapping[str, str]
"""A `Message`, or a mapping with exactly the keys `role` and `content`."""


class RequestOptions(TypedDict, total=False):
    """The options of one request; all may be left out. Unset sampling fields mean the model's own defaults."""

    max_tokens: int | None
    """Most output tokens, 1 up to the model's limit."""
    temperature: float | None
    """Randomness, 0 to 2; 0 is greedy."""
    top_p: float | None
    """Nucleus mass, above 0 up to 1."""
    top_k: int | None
    """Candidates kept, 1 or more."""
    seed: int | None
    """Makes drawing repeatable on one engine build."""
    stop: str | Iterable[str] | None
    """Generation ends before any of these, at most 16 of at most 256 bytes each."""
    presence_penalty: float | None
    """Penalty on tokens already present, -2 to 2."""
    frequency_penalty: float | None
    """Penalty on tokens by how often they occurred, -2 to 2."""
    repetition_penalty: float | None
    """Multiplicative penalty on repetition, above 0 up to 2."""
    ignore_end_token: bool
    """Run to max_tokens whatever the model says. For benchmarks and trace replay."""
    session: str | None
    """Requests of one session prefer the replica that holds their prefix; up to 256 bytes."""
    priority: PriorityName
    """"interactive" (the default) is refused at once when out of quota; "batch" may wait until its deadline."""
    deadline_s: float | None
    """Seconds this request may take over all its tries; the client's default when left out, None for no limit."""
    request_id: str | None
    """Names the request: one id of a tenant is executed and billed once within ten minutes. Drawn when left out."""


def build_request(
    model: str, prompt: str | None, messages: Iterable[MessageLike] | None, options: RequestOptions
) -> inference_pb2.GenerateRequest:
    """Builds a request from what the caller passed.

    Args:
        model: The model's id.
        prompt: Text to continue; None for a conversation.
        messages: A conversation, oldest turn first; None for plain text.
        options: Everything else.

    Returns:
        The request, with a request id.

    Raises:
        InvalidArgumentError: An argument has the wrong type or cannot be written to the wire; `field` names it.
    """
    unknown = set(options) - set(RequestOptions.__annotations__)
    if unknown:
        raise TypeError(f"unknown option {min(unknown)!r}; options are {', '.join(RequestOptions.__annotations__)}")
    request = inference_pb2.GenerateRequest()
    _assign(request, "model", model, "model", str)
    if prompt is not None:
        _assign(request, "prompt", prompt, "prompt", str)
    if messages is not None:
        _add_messages(request.chat, messages)
    for field in _SAMPLING_FIELDS:
        value = options.get(field)
        if value is not None:
            _assign(request.sampling, field, value, field)
    _add_stop(request.sampling, options.get("stop"))
    priority = options.get("priority", "interactive")
    if priority not in _PRIORITIES:
        names = " or ".join(repr(name) for name in get_args(PriorityName))
        raise InvalidArgumentError(f"priority must be {names}, not {priority!r}", field="priority")
    request.priority = _PRIORITIES[priority]
    session = options.get("session")
    if session is not None:
        _assign(request, "session_id", session, "session", str)
    _assign(request, "request_id", options.get("request_id") or uuid.uuid4().hex, "request_id", str)
    return request


def deadline_from(options: RequestOptions, default_s: float | None) -> float | None:
    """Reads the deadline of one request.

    Args:
        options: The request's options.
        default_s: The client's default, seconds; None for no limit.

    Returns:
        Seconds from now, or None for no limit.

    Raises:
        InvalidArgumentError: The deadline is not a positive number.
    """
    deadline_s = options.get("deadline_s", default_s)
    if deadline_s is None:
        return None
    if isinstance(deadline_s, bool) or not isinstance(deadline_s, int | float) or not deadline_s > 0:
        raise InvalidArgumentError(
            f"deadline_s must be a number of seconds above 0, or None for no limit; not {deadline_s!r}",
            field="deadline_s",
        )
    return float(deadline_s)


def _assign(
    target: inference_pb2.GenerateRequest | inference_pb2.SamplingParameters | inference_pb2.ChatMessage,
    field: str,
    value: object,
    name: str,
    kind: type | None = None,
) -> None:
    if kind is not None and not isinstance(value, kind):
        raise InvalidArgumentError(f"{name} must be a {kind.__name__}, not {type(value).__name__}", field=name)
    try:
        setattr(target, field, value)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name} cannot be {_shown(value)}: {error}", field=name) from None


def _shown(value: object) -> str:
    # A prompt must never end up in an error message: only numbers are shown.
    return repr(value) if isinstance(value, int | float) else f"this {type(value).__name__}"


def _add_messages(chat: inference_pb2.Chat, messages: Iterable[MessageLike]) -> None:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Iterable):
        raise InvalidArgumentError(
            'messages must be a list of turns such as [{"role": "user", "content": "Hello"}]; '
            "for a single text use generate()",
            field="messages",
        )
    for number, turn in enumerate(messages):
        name = f"messages[{number}]"
        if isinstance(turn, Message):
            role, content = turn.role, turn.content
        elif isinstance(turn, Mapping) and set(turn) == {"role", "content"}:
            role, content = turn["role"], turn["content"]
        else:
            raise InvalidArgumentError(f"{name} must be a Message or a mapping with role and content", field=name)
        message = chat.messages.add()
        _assign(message, "role", role, f"{name}.role", str)
        _assign(message, "content", content, f"{name}.content", str)
    if not chat.messages:
        raise InvalidArgumentError("messages must hold at least one turn", field="messages")


def _add_stop(sampling: inference_pb2.SamplingParameters, stop: str | Iterable[str] | None) -> None:
    if stop is None:
        return
    try:
        sampling.stop.extend([stop] if isinstance(stop, str) else stop)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"stop must be a text or a list of texts: {error}", field="stop") from None
