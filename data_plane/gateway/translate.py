"""From OpenAI's request bodies to the platform's own request, as it goes on to a replica: bytes, field by field."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Final, TypeVar

import msgspec

from data_plane.gateway.schema import (
    AnyChatRequest,
    AnyCompletionRequest,
    ChatRequest,
    CompletionRequest,
    Message,
    refuse_unsupported,
)
from data_plane.relay.grpc import wire
from fairlead.errors import InvalidArgumentError
from fairlead.inference.v1 import inference_pb2 as pb

T = TypeVar("T", bound=msgspec.Struct)

SESSION_HEADER: Final = "X-Fairlead-Session"
PRIORITY_HEADER: Final = "X-Fairlead-Priority"
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"

# As they stand among a request's headers.
_SESSION: Final = SESSION_HEADER.lower().encode()
_PRIORITY: Final = PRIORITY_HEADER.lower().encode()
_IDEMPOTENCY: Final = IDEMPOTENCY_HEADER.lower().encode()
_PRIORITIES: Final = {
    b"batch": pb.PRIORITY_BATCH,
    b"interactive": pb.PRIORITY_INTERACTIVE,
    b"system": pb.PRIORITY_SYSTEM,
}
_chat: Final = msgspec.json.Decoder(ChatRequest).decode
_any_chat: Final = msgspec.json.Decoder(AnyChatRequest).decode
_completion: Final = msgspec.json.Decoder(CompletionRequest).decode
_any_completion: Final = msgspec.json.Decoder(AnyCompletionRequest).decode
_AT: Final = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_UNKNOWN: Final = re.compile(r"unknown field `(.*?)`")
_MISSING: Final = re.compile(r"missing required field `(.*?)`")

_INT32_MAX: Final = (1 << 31) - 1
_UINT64: Final = (1 << 64) - 1
_FLOAT_MAX: Final = float((1 << 128) - (1 << 104))  # of 32 bits
_float: Final = Struct("<f").pack

_Request = pb.GenerateRequest
_MODEL: Final = wire.bytes_tag(_Request.MODEL_FIELD_NUMBER)
_PROMPT: Final = wire.bytes_tag(_Request.PROMPT_FIELD_NUMBER)
_CHAT: Final = wire.bytes_tag(_Request.CHAT_FIELD_NUMBER)
_SAMPLING: Final = wire.bytes_tag(_Request.SAMPLING_FIELD_NUMBER)
_SESSION_ID: Final = wire.bytes_tag(_Request.SESSION_ID_FIELD_NUMBER)
_PRIORITY_TAG: Final = wire.number_tag(_Request.PRIORITY_FIELD_NUMBER)
_REQUEST_ID: Final = wire.bytes_tag(_Request.REQUEST_ID_FIELD_NUMBER)

_MESSAGE: Final = wire.bytes_tag(pb.Chat.MESSAGES_FIELD_NUMBER)
_ROLE: Final = wire.bytes_tag(pb.ChatMessage.ROLE_FIELD_NUMBER)
_CONTENT: Final = wire.bytes_tag(pb.ChatMessage.CONTENT_FIELD_NUMBER)

_Sampling = pb.SamplingParameters
_MAX_TOKENS: Final = wire.number_tag(_Sampling.MAX_TOKENS_FIELD_NUMBER)
_TEMPERATURE: Final = wire.float_tag(_Sampling.TEMPERATURE_FIELD_NUMBER)
_TOP_P: Final = wire.float_tag(_Sampling.TOP_P_FIELD_NUMBER)
_TOP_K: Final = wire.number_tag(_Sampling.TOP_K_FIELD_NUMBER)
_SEED: Final = wire.number_tag(_Sampling.SEED_FIELD_NUMBER)
_STOP: Final = wire.bytes_tag(_Sampling.STOP_FIELD_NUMBER)
_PRESENCE_PENALTY: Final = wire.float_tag(_Sampling.PRESENCE_PENALTY_FIELD_NUMBER)
_FREQUENCY_PENALTY: Final = wire.float_tag(_Sampling.FREQUENCY_PENALTY_FIELD_NUMBER)
_REPETITION_PENALTY: Final = wire.float_tag(_Sampling.REPETITION_PENALTY_FIELD_NUMBER)
_IGNORE_END_TOKEN: Final = wire.number_tag(_Sampling.IGNORE_END_TOKEN_FIELD_NUMBER)


def chat(body: bytes, headers: Mapping[bytes, bytes]) -> tuple[bytes, ChatRequest]:
    """Reads a POST /v1/chat/completions.

    Args:
        body: JSON.
        headers: The request's, by name in lower case.

    Returns:
        The platform's GenerateRequest, not checked against limits yet, and the body as decoded.

    Raises:
        InvalidArgumentError: The body is malformed or asks for something unsupported; `field` names it.
    """
    decoded = _decode(_chat, _any_chat, body)
    limit, name = decoded.max_completion_tokens, "max_completion_tokens"
    if limit is None:
        limit, name = decoded.max_tokens, "max_tokens"
    messages = b"".join([_message(message, index) for index, message in enumerate(decoded.messages)])
    asked = wire.message(_CHAT, messages) + wire.message(_SAMPLING, _sampling(decoded, limit, name))
    return _request(decoded.model, asked, headers, decoded.prompt_cache_key), decoded


def completion(body: bytes, headers: Mapping[bytes, bytes]) -> tuple[bytes, CompletionRequest]:
    """Reads a POST /v1/completions. Arguments and errors as in `chat`."""
    decoded = _decode(_completion, _any_completion, body)
    prompt = decoded.prompt
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise InvalidArgumentError(
                "prompt must be one string; token arrays and several prompts are not taken", field="prompt"
            )
        prompt = prompt[0]
    sampling = _sampling(decoded, decoded.max_tokens, "max_tokens")
    asked = wire.message(_PROMPT, prompt.encode()) + wire.message(_SAMPLING, sampling)
    return _request(decoded.model, asked, headers, None), decoded


def wants_usage(decoded: ChatRequest | CompletionRequest) -> bool:
    """Whether a stream should end with a chunk that carries the usage."""
    return bool(decoded.stream_options and decoded.stream_options.include_usage)


def _decode(common: Callable[[bytes], T], whole: Callable[[bytes], T], body: bytes) -> T:
    """Reads a body.

    Args:
        common: Knows only the fields that are served.
        whole: Knows all there are.
        body: JSON.

    Raises:
        InvalidArgumentError: See `chat`.
    """
    try:
        return common(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        decoded = _decode_any(whole, body)
        refuse_unsupported(decoded)
        return decoded


def _decode_any(whole: Callable[[bytes], T], body: bytes) -> T:
    try:
        return whole(body)
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


def _request(model: str, asked: bytes, headers: Mapping[bytes, bytes], session: str | None) -> bytes:
    """A request.

    Args:
        model: Its model.
        asked: Its fields of what is asked.
        headers: As in `chat`.
        session: What it belongs to, where the headers do not tell.
    """
    session_id = _header(headers, _SESSION, SESSION_HEADER)
    if session and not session_id:
        session_id = session.encode()
    priority = _header(headers, _PRIORITY, PRIORITY_HEADER)
    return b"".join(
        (
            wire.content(_MODEL, model.encode()),
            asked,
            wire.content(_SESSION_ID, session_id),
            wire.number(_PRIORITY_TAG, _priority(priority)) if priority else b"",
            wire.content(_REQUEST_ID, _header(headers, _IDEMPOTENCY, IDEMPOTENCY_HEADER)),
        )
    )


def _sampling(decoded: ChatRequest | CompletionRequest, max_tokens: int | None, max_tokens_name: str) -> bytes:
    """The fields of SamplingParameters that are set."""
    text = b""
    if max_tokens is not None:
        text = _MAX_TOKENS + wire.varint(_int32(max_tokens, max_tokens_name))
    if (temperature := decoded.temperature) is not None:
        text += _TEMPERATURE + _float32(temperature)
    if (top_p := decoded.top_p) is not None:
        text += _TOP_P + _float32(top_p)
    if (top_k := decoded.top_k) is not None and top_k not in (0, -1):  # both mean "all" elsewhere
        text += _TOP_K + wire.varint(_int32(top_k, "top_k"))
    if (seed := decoded.seed) is not None:
        if not -(1 << 63) <= seed <= _UINT64:
            raise InvalidArgumentError("seed must fit into 64 bits", field="seed")
        text += _SEED + wire.varint(seed)
    if (stop := decoded.stop) is not None:
        text += b"".join([wire.message(_STOP, each.encode()) for each in ([stop] if isinstance(stop, str) else stop)])
    if (presence := decoded.presence_penalty) is not None:
        text += _PRESENCE_PENALTY + _float32(presence)
    if (frequency := decoded.frequency_penalty) is not None:
        text += _FREQUENCY_PENALTY + _float32(frequency)
    if (repetition := decoded.repetition_penalty) is not None:
        text += _REPETITION_PENALTY + _float32(repetition)
    if decoded.ignore_eos:
        text += wire.number(_IGNORE_END_TOKEN, 1)
    return text


def _float32(value: float) -> bytes:
    """Four bytes. What is too large for them is for any parameter, and will be refused as such."""
    return _float(max(-_FLOAT_MAX, min(_FLOAT_MAX, value)))


def _header(headers: Mapping[bytes, bytes], field: bytes, name: str) -> bytes:
    value = headers.get(field)
    if not value:
        return b""
    if not value.isascii():
        raise InvalidArgumentError(f"{name} must be ASCII", field=name)
    return value


def _int32(value: int, name: str) -> int:
    if not -_INT32_MAX <= value <= _INT32_MAX:
        raise InvalidArgumentError(f"{name} is out of range", field=name)
    return value


def _priority(name: bytes) -> int:
    priority = _PRIORITIES.get(name.strip().lower())
    if priority is None:
        raise InvalidArgumentError(f"{PRIORITY_HEADER} must be batch or interactive", field=PRIORITY_HEADER)
    return priority


def _message(message: Message, index: int) -> bytes:
    fields = wire.content(_ROLE, _role(message, index).encode()) + wire.content(
        _CONTENT, _content(message, index).encode()
    )
    return wire.message(_MESSAGE, fields)


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
