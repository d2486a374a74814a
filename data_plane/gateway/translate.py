"""From OpenAI's request bodies to the platform's own request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from data_plane.gateway.schema import ChatRequest, CompletionRequest, Message, refuse_unsupported
from fairlead.errors import InvalidArgumentError
from fairlead.inference.v1 import inference_pb2 as pb

T = TypeVar("T")

SESSION_HEADER: Final = "X-Fairlead-Session"
PRIORITY_HEADER: Final = "X-Fairlead-Priority"
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"

# As they stand among a request's headers.
_SESSION: Final = SESSION_HEADER.lower().encode()
_PRIORITY: Final = PRIORITY_HEADER.lower().encode()
_IDEMPOTENCY: Final = IDEMPOTENCY_HEADER.lower().encode()
_PRIORITIES: Final = {
    "batch": pb.PRIORITY_BATCH,
    "interactive": pb.PRIORITY_INTERACTIVE,
    "system": pb.PRIORITY_SYSTEM,
}
_CHAT: Final = msgspec.json.Decoder(ChatRequest)
_COMPLETION: Final = msgspec.json.Decoder(CompletionRequest)
_AT: Final = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_UNKNOWN: Final = re.compile(r"unknown field `(.*?)`")
_MISSING: Final = re.compile(r"missing required field `(.*?)`")

_INT32_MAX: Final = (1 << 31) - 1
_UINT64: Final = (1 << 64) - 1


def chat(body: bytes, headers: Mapping[bytes, bytes]) -> tuple[pb.GenerateRequest, ChatRequest]:
    """Reads a POST /v1/chat/completions.

    Args:
        body: JSON.
        headers: The request's, by name in lower case.

    Returns:
        The platform's request, not checked against limits yet, and the body as decoded.

    Raises:
        InvalidArgumentError: The body is malformed or asks for something unsupported; `field` names it.
    """
    decoded = _decode(_CHAT, body)
    refuse_unsupported(decoded)
    limit, name = decoded.max_completion_tokens, "max_completion_tokens"
    if limit is None:
        limit, name = decoded.max_tokens, "max_tokens"
    request = _common(decoded, headers, limit, name)
    if decoded.prompt_cache_key and not request.session_id:
        request.session_id = decoded.prompt_cache_key
    request.chat.SetInParent()
    messages = request.chat.messages
    for index, message in enumerate(decoded.messages):
        messages.add(role=_role(message, index), content=_content(message, index))
    return request, decoded


def completion(body: bytes, headers: Mapping[bytes, bytes]) -> tuple[pb.GenerateRequest, CompletionRequest]:
    """Reads a POST /v1/completions. Arguments and errors as in `chat`."""
    decoded = _decode(_COMPLETION, body)
    refuse_unsupported(decoded)
    request = _common(decoded, headers, decoded.max_tokens, "max_tokens")
    prompt = decoded.prompt
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise InvalidArgumentError(
                "prompt must be one string; token arrays and several prompts are not taken", field="prompt"
            )
        prompt = prompt[0]
    request.prompt = prompt
    return request, decoded


def wants_usage(decoded: ChatRequest | CompletionRequest) -> bool:
    """Whether a stream should end with a chunk that carries the usage."""
    return bool(decoded.stream_options and decoded.stream_options.include_usage)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text = str(error)
        at = _AT.search(text)
        path = at.group(1) if at else ""
        named = _UNKNOWN.search(text) or _MISSING.search(text)
        if named:
            path = f"{path}.{named.group(1)}" if path else named.group(1)
        what = _AT.sub("", text)
        raise InvalidArgumentError(f"{path or 'the body'}: {what}", field=path) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"the body must be JSON in UTF-8: {_position_only(error)}") from None


def _position_only(error: Exception) -> str:
    """What is wrong, without repeating any of the body."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not valid UTF-8"
    return str(error)


def _common(
    decoded: ChatRequest | CompletionRequest,
    headers: Mapping[bytes, bytes],
    max_tokens: int | None,
    max_tokens_name: str,
) -> pb.GenerateRequest:
    request = pb.GenerateRequest(model=decoded.model)
    if session := _header(headers, _SESSION, SESSION_HEADER):
        request.session_id = session
    if named := _header(headers, _IDEMPOTENCY, IDEMPOTENCY_HEADER):
        request.request_id = named
    if priority := _header(headers, _PRIORITY, PRIORITY_HEADER):
        request.priority = _priority(priority)
    sampling = request.sampling
    if max_tokens is not None:
        sampling.max_tokens = _int32(max_tokens, max_tokens_name)
    if decoded.top_k is not None and decoded.top_k not in (0, -1):  # both mean "all" elsewhere
        sampling.top_k = _int32(decoded.top_k, "top_k")
    if decoded.temperature is not None:
        sampling.temperature = decoded.temperature
    if decoded.top_p is not None:
        sampling.top_p = decoded.top_p
    if decoded.presence_penalty is not None:
        sampling.presence_penalty = decoded.presence_penalty
    if decoded.frequency_penalty is not None:
        sampling.frequency_penalty = decoded.frequency_penalty
    if decoded.repetition_penalty is not None:
        sampling.repetition_penalty = decoded.repetition_penalty
    if decoded.seed is not None:
        if not -(1 << 63) <= decoded.seed <= _UINT64:
            raise InvalidArgumentError("seed must fit into 64 bits", field="seed")
        sampling.seed = decoded.seed & _UINT64
    if decoded.stop is not None:
        sampling.stop.extend([decoded.stop] if isinstance(decoded.stop, str) else decoded.stop)
    if decoded.ignore_eos:
        sampling.ignore_end_token = True
    return request


def _header(headers: Mapping[bytes, bytes], field: bytes, name: str) -> str:
    value = headers.get(field)
    if not value:
        return ""
    if not value.isascii():
        raise InvalidArgumentError(f"{name} must be ASCII", field=name)
    return value.decode()


def _int32(value: int, name: str) -> int:
    if not -_INT32_MAX <= value <= _INT32_MAX:
        raise InvalidArgumentError(f"{name} is out of range", field=name)
    return value


def _priority(text: str) -> pb.Priority.ValueType:
    priority = _PRIORITIES.get(text.strip().lower())
    if priority is None:
        raise InvalidArgumentError(f"{PRIORITY_HEADER} must be batch or interactive", field=PRIORITY_HEADER)
    return priority


def _role(message: Message, index: int) -> str:
    if message.tool_calls or message.function_call or message.audio:
        name = next(each for each in ("tool_calls", "function_call", "audio") if getattr(message, each))
        raise InvalidArgumentError(f"{name} in messages are not supported", field=f"messages[{index}].{name}")
    return "system" if message.role == "developer" else message.role


def _content(message: Message, index: int) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    path = f"messages[{index}].content"
    if content is None:
        if message.role == "assistant":
            return message.refusal or ""
        raise InvalidArgumentError("content must be a string or a list of text parts", field=path)
    texts = []
    for place, part in enumerate(content):
        text = {"text": part.text, "refusal": part.refusal}.get(part.type)
        if text is None:
            raise InvalidArgumentError(
                'only text parts are supported: {"type": "text", "text": ...}', field=f"{path}[{place}]"
            )
        texts.append(text)
    return "".join(texts)
