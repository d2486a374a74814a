"""OpenAI's messages: requests out, chunks and errors in. The other side of what the gateway speaks."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from common.generation import Finish, Prompt, Sampling
from fairlead.errors import FairleadError, InvalidArgumentError, QuotaExceededError, Reason, UnavailableError

RETRY_S_MAX: Final = 3600.0
"""A server that wants to be left alone for longer is asked again after this."""

_RETRY_S: Final = 1.0  # where it does not say
_MESSAGE_CHARACTERS_MAX: Final = 300
_SEED_MASK: Final = (1 << 63) - 1  # servers take signed numbers
_FLOATS: Final = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty")

# What says that a request is to blame, and that its prompt is: `code` or `type` of an error.
_BLAME: Final = frozenset({"invalid_request_error", "BadRequestError", "BadRequest", "400", "422"})
_TOO_LONG: Final = ("context_length_exceeded", "maximum context length", "longer than the maximum model length")

FINISHES: Final = {"length": Finish.LENGTH, "abort": Finish.CANCELLED, "cancelled": Finish.CANCELLED}
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


def request_body(prompt: Prompt, sampling: Sampling, model: str) -> bytes:
    """A request's content; conversations go to /chat/completions, plain text to /completions.

    Args:
        prompt: What to continue.
        sampling: How.
        model: The model's name there.
    """
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if prompt.messages:
        body["messages"] = [{"role": role, "content": content} for role, content in prompt.messages]
    else:
        body["prompt"] = prompt.text
    body["max_tokens"] = sampling.max_tokens
    for name in _FLOATS:
        value = getattr(sampling, name)
        if value is not None:
            body[name] = float(f"{value:.7g}")  # as it was before it became a 32-bit number
    if sampling.top_k is not None:
        body["top_k"] = sampling.top_k
    if sampling.seed is not None:
        body["seed"] = sampling.seed & _SEED_MASK
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.ignore_end_token:
        body["ignore_eos"] = True
    return _encode(body)


def input_tokens(usage: Usage | None) -> tuple[int, int]:
    """The prompt's tokens, and those of them that were cached, as far as the server tells; else 0."""
    if usage is None or usage.prompt_tokens is None:
        return 0, 0
    details = usage.prompt_tokens_details
    cached = details.cached_tokens if details is not None else None
    return usage.prompt_tokens, min(cached or 0, usage.prompt_tokens)


def output_tokens(usage: Usage | None, counted_tokens: int) -> int:
    """The answer's tokens.

    Args:
        usage: The server's counts; None where it does not tell.
        counted_tokens: Chunks of text so far.
    """
    return counted_tokens if usage is None or usage.completion_tokens is None else usage.completion_tokens


def text_of(choice: Choice) -> tuple[str, bool]:
    """New text of a choice, and whether it stands for a token: what a model thinks aloud is counted and not told."""
    delta = choice.delta
    if delta is None:
        return choice.text or "", bool(choice.text)
    return delta.content or "", bool(delta.content or delta.reasoning_content or delta.reasoning)


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
