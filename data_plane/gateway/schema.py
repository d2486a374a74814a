"""The bodies of OpenAI's API that the gateway reads, decoded strictly.

Every field OpenAI defines is known here: those that change what is generated and are not supported are refused unless
they say what silence says (`NEUTRAL`); those that do not change it are read and left aside. A field nobody defines is
refused by name: it is a typing error, or meant for another server.

Most requests have none but the few fields that are served, and are read as such. Only what has others is read as what
knows them all.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from fairlead.errors import InvalidArgumentError


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """One part of a message's content; only text is supported."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    prompt_cache_breakpoint: Any = None


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: Any = None
    function_call: Any = None
    tool_call_id: str | None = None
    audio: Any = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream carries besides the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Common(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What both endpoints serve."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    user: Any = None
    # Extensions that vLLM, SGLang and TGI share.
    top_k: int | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None


class ChatRequest(_Common, forbid_unknown_fields=True, kw_only=True):
    """What is served of POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    prompt_cache_key: str | None = None


class CompletionRequest(_Common, forbid_unknown_fields=True, kw_only=True):
    """What is served of POST /v1/completions."""

    prompt: str | list[Any]


class AnyChatRequest(ChatRequest, forbid_unknown_fields=True, kw_only=True):
    """All of POST /v1/chat/completions."""

    n: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    metadata: Any = None
    modalities: Any = None
    moderation: Any = None
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    reasoning_effort: Any = None
    response_format: Any = None
    safety_identifier: Any = None
    service_tier: Any = None
    store: Any = None
    tool_choice: Any = None
    tools: Any = None
    top_logprobs: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class AnyCompletionRequest(CompletionRequest, forbid_unknown_fields=True, kw_only=True):
    """All of POST /v1/completions."""

    n: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    best_of: Any = None
    echo: Any = None
    suffix: Any = None


NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields that would change the answer and are not supported, with the values that mean the same as leaving them out."""


def refuse_unsupported(request: msgspec.Struct) -> None:
    """Refuses what cannot be honoured.

    Args:
        request: AnyChatRequest or AnyCompletionRequest.

    Raises:
        InvalidArgumentError: A field asks for something this platform does not do; `field` names it.
    """
    for name, harmless in NEUTRAL.items():
        value = getattr(request, name, None)
        if value is None or any(type(value) is type(each) and value == each for each in harmless):
            continue
        hint = f"; leave it out or set it to {msgspec.json.encode(harmless[0]).decode()}" if harmless else ""
        raise InvalidArgumentError(f"{name} is not supported with this value{hint}", field=name)
