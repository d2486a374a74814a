"""OpenAI's messages: requests out, chunks and errors in. The other side of what the gateway speaks."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from fairlead.errors import FairleadError, InvalidArgumentError, QuotaExceededError, Reason, UnavailableError
from fairlead.inference.v1 import inference_pb2 as pb

RETRY_S_MAX: Final = 3600.0
"""A server that wants to be left alone for longer is asked again after this."""

_RETRY_S: Final = 1.0  # where it does not say
_MESSAGE_CHARACTERS_MAX: Final = 300
_SEED_MASK: Final = (1 << 63) - 1  # servers take signed numbers
_PLAIN: Final = ("top_k",)
_FLOATS: Final = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty")

# What says that a request is to blame, and that its prompt is: `code` or `type` of an error.
_BLAME: Final = frozenset({"invalid_request_error", "BadRequestError", "BadRequest", "400", "422"})
_TOO_LONG: Final = ("context_length_exceeded", "maximum context length", "longer than the maximum model length")

FINISH_REASONS: Final = {
    "length": pb.FINISH_REASON_LENGTH,
    "abort": pb.FINISH_REASON_CANCELLED,
    "cancelled": pb.FINISH_REASON_CANCELLED,
}
"""What ended an answer; anything else (stop, tool_calls, content_filter ...) is the model's own end."""


Tokens = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]


class Details(msgspec.Struct, gc=False):
    """What a prompt's tokens were."""

    cached_tokens: Tokens | None = None


class Usage(msgspec.Struct, gc=False):
    """The server's counts."""

    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    prompt_tokens_details: Details | None = None


class Delta(msgspec.Struct, gc=False):
    """New text of a conversation; a model that thinks aloud first says that apart."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct, gc=False):
    """New text of one answer: `delta` in conversations, `text` in completions."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class Error(msgspec.Struct, gc=False):
    """What went wrong."""

    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class Chunk(msgspec.Struct, gc=False):
    """One event of a stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Error | str | None = None


class _Refusal(msgspec.Struct, gc=False):
    """The body of an error answer: OpenAI's shape, older vLLM's, FastAPI's."""

    error: Error | str | None = None
    message: str | None = None
    detail: Any = None


read_chunk: Final = msgspec.json.Decoder(Chunk).decode
_read_refusal: Final = msgspec.json.Decoder(_Refusal).decode
_encode: Final = msgspec.json.Encoder().encode


def request_body(request: pb.GenerateRequest, model: str) -> bytes:
    """A request's content.

    Args:
        request: Checked by the router, with max_tokens filled in.
        model: The model's name there.
    """
    sampling = request.sampling
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if is_chat(request):
        body["messages"] = [{"role": each.role, "content": each.content} for each in request.chat.messages]
    else:
        body["prompt"] = request.prompt
    body["max_tokens"] = sampling.max_tokens
    for field, value in sampling.ListFields():
        if field.name in _FLOATS:
            body[field.name] = float(f"{value:.7g}")  # as it was before it became a 32-bit number
        elif field.name in _PLAIN:
            body[field.name] = value
    if sampling.HasField("seed"):
        body["seed"] = sampling.seed & _SEED_MASK
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.ignore_end_token:
        body["ignore_eos"] = True
    return _encode(body)


def is_chat(request: pb.GenerateRequest) -> bool:
    """Whether it is a conversation, and not plain text."""
    return request.WhichOneof("input") == "chat"


def usage_of(usage: Usage | None, counted_tokens: int) -> pb.Usage:
    """What is settled.

    Args:
        usage: The server's counts; None where it does not tell.
        counted_tokens: The router's count.
    """
    if usage is None:
        return pb.Usage(output_tokens=counted_tokens)
    details = usage.prompt_tokens_details
    input_tokens = usage.prompt_tokens or 0
    cached_tokens = (details.cached_tokens or 0) if details is not None else 0
    return pb.Usage(
        input_tokens=input_tokens,
        cached_input_tokens=min(cached_tokens, input_tokens),
        output_tokens=usage.completion_tokens if usage.completion_tokens is not None else counted_tokens,
    )


def refusal(status: int, fields: Mapping[bytes, bytes], body: bytes) -> FairleadError:
    """What an answer other than 200 means for the request.

    Args:
        status: Of the answer.
        fields: Its headers.
        body: Its content, perhaps cut off.
    """
    text, code = _said(body)
    if status == 429:
        return QuotaExceededError(
            "the engine takes no more requests now", reason=Reason.QUEUE_FULL, retry_after_s=retry_after_s(fields)
        )
    if status in (400, 413, 422):
        return _blamed(text or f"the engine refuses the request with status {status}", code)
    if status in (503, 529):
        return UnavailableError(
            f"the engine takes no requests now (status {status})",
            reason=Reason.NOT_READY,
            retry_after_s=retry_after_s(fields) if b"retry-after" in fields else None,
        )
    if status in (502, 504):
        return UnavailableError(f"the engine's own proxy has lost it (status {status})", reason=Reason.REPLICA_LOST)
    # 401, 403, 404 and redirections among them: how the platform reaches its engine is no business of the client's.
    return UnavailableError(f"the engine failed with status {status}", reason=Reason.ENGINE_FAILED)


def failure_inside(error: Error | str) -> FairleadError:
    """What an error inside a stream means for the request."""
    if isinstance(error, str):
        return UnavailableError("the engine failed in the middle of the stream", reason=Reason.ENGINE_FAILED)
    if str(error.code) in _BLAME or error.type in _BLAME:
        return _blamed(error.message or "the engine refuses the request", str(error.code))
    return UnavailableError(
        f"the engine failed in the middle of the stream: {error.type or error.code or 'it does not say how'}",
        reason=Reason.ENGINE_FAILED,
    )


def retry_after_s(fields: Mapping[bytes, bytes]) -> float:
    """When to come back, seconds; what the answer says, or a second.

    Args:
        fields: Its headers: Retry-After, in seconds or as a date, or OpenAI's retry-after-ms.
    """
    try:
        if (said_ms := fields.get(b"retry-after-ms")) is not None:
            wait_s = float(said_ms) / 1000
        else:
            said = fields.get(b"retry-after", b"").decode("latin-1").strip()
            wait_s = float(said) if said[:1].isdigit() else _until_s(said)
    except (ValueError, TypeError):
        return _RETRY_S
    return min(max(wait_s, 0.0), RETRY_S_MAX) if wait_s == wait_s else _RETRY_S


def _until_s(date: str) -> float:
    """Seconds to a date, by this machine's clock: that is what the header asks for."""
    return email.utils.parsedate_to_datetime(date).timestamp() - time.time()


def _blamed(text: str, code: str) -> FairleadError:
    text = text[:_MESSAGE_CHARACTERS_MAX]
    if any(mark in code or mark in text for mark in _TOO_LONG):
        return InvalidArgumentError(text, reason=Reason.PROMPT_TOO_LONG)
    return InvalidArgumentError(text)


def _said(body: bytes) -> tuple[str, str]:
    """Message and code of an error's body; empty where it has none."""
    try:
        said = _read_refusal(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", ""
    if isinstance(said.error, Error):
        return said.error.message or "", str(said.error.code or "")
    return said.error or said.message or (said.detail if isinstance(said.detail, str) else ""), ""
