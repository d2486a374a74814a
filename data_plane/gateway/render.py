"""Answers in OpenAI's shape: whole, and as server-sent events.

Their JSON is put together from bytes, because nearly all of it is the same in every answer, and all but the text in
every chunk of one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec
from google.protobuf import json_format
from google.protobuf.message import Message

from data_plane.router.core.candidate import hash64
from data_plane.router.exchange import Finished, Receipt, Usage
from fairlead.admin.v1 import admin_pb2
from fairlead.inference.v1 import inference_pb2 as pb

_encode: Final = msgspec.json.Encoder().encode
_FINISH: Final = {pb.FINISH_REASON_STOP: b"stop", pb.FINISH_REASON_LENGTH: b"length"}
_SOURCES_MAX: Final = 1024

_OPENING: Final = b'{"id":%b,"object":"%b","created":%d,%b,"choices":['
_USAGE: Final = (
    b'"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,'
    b'"prompt_tokens_details":{"cached_tokens":%d},'
    b'"fairlead":{"estimated_milli_mu":%d,"settled_milli_mu":%d,"quota_left_milli_mu":%d,"replica_id":%b}}'
)

# One choice: while it goes on, and at its end.
_ONGOING: Final = b'{"index":0,"logprobs":null,"finish_reason":null,'
_ENDED: Final = b'{"index":0,"logprobs":null,"finish_reason":"%b",'


def whole(receipt: Receipt, finished: Finished, text: bytes, *, chat: bool, created_s: int) -> bytes:
    """The JSON body of an answer that is not streamed.

    Args:
        receipt: Complete.
        finished: The answer's end.
        text: As for `quoted`.
        chat: A chat, or a plain completion.
        created_s: Unix time.
    """
    content = b'"message":{"role":"assistant","content":%b,"refusal":null}}],' if chat else b'"text":%b}],'
    return b"".join(
        (
            _opening(receipt, b"chat.completion" if chat else b"text_completion", chat, created_s),
            _ENDED % _FINISH.get(finished.finish_reason, b"stop"),
            content % quoted(text),
            _usage(receipt, finished.usage),
            b"}",
        )
    )


class Stream:
    """The chunks of one streamed answer.

    Args:
        receipt: With the replica.
        chat: A chat, or a plain completion.
        created_s: Unix time.
        include_usage: Whether a last chunk carries the usage; all others then say null.

    Attributes:
        before: What stands before a chunk's text, which is `quoted`.
        after: What stands behind it.
    """

    __slots__ = ("_chat", "_include_usage", "_nothing", "_opening", "_receipt", "after", "before")

    def __init__(self, receipt: Receipt, *, chat: bool, created_s: int, include_usage: bool) -> None:
        self._receipt = receipt
        self._chat = chat
        self._include_usage = include_usage
        self._nothing = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        kind = b"chat.completion.chunk" if chat else b"text_completion"
        self._opening = b"data: " + _opening(receipt, kind, chat, created_s)
        self.before = self._opening + _ONGOING + (b'"delta":{"content":' if chat else b'"text":')
        self.after = (b"}}" if chat else b"}") + self._nothing

    def first(self, text: bytes) -> bytes:
        """The first chunk.

        Args:
            text: As for `quoted`.
        """
        before = self._opening + _ONGOING + b'"delta":{"role":"assistant","content":' if self._chat else self.before
        return before + quoted(text) + self.after

    def end(self, finished: Finished) -> bytes:
        """The last chunks."""
        choice = _ENDED % _FINISH.get(finished.finish_reason, b"stop") + (
            b'"delta":{}}' if self._chat else b'"text":""}'
        )
        chunks = self._opening + choice + self._nothing
        if self._include_usage:
            chunks += self._opening + b"]," + _usage(self._receipt, finished.usage) + b"}\n\n"
        return chunks + b"data: [DONE]\n\n"


def quoted(text: bytes) -> bytes:
    """A text as JSON.

    Args:
        text: UTF-8. What is none in it is replaced, for JSON has no other text.
    """
    try:
        return _encode(text.decode())
    except UnicodeDecodeError:
        return _encode(text.decode("utf-8", "replace"))


def error_event(body: bytes) -> bytes:
    """An error after the stream has begun; nothing comes after it."""
    return b"data: " + body + b"\n\n"


def model(record: admin_pb2.Model) -> dict[str, Any]:
    """A model as GET /v1/models lists it."""
    return {
        "id": record.model_id,
        "object": "model",
        "created": record.create_time.seconds,
        "owned_by": "fairlead",
        "context_tokens": record.context_tokens,
        "output_tokens_max": record.output_tokens_max,
    }


def encode(value: dict[str, Any]) -> bytes:
    """JSON."""
    return _encode(value)


def message(value: Message) -> bytes:
    """A message of the platform's own APIs as JSON: the proto's field names, 64-bit numbers as text."""
    return _encode(json_format.MessageToDict(value, preserving_proto_field_name=True))


def _opening(receipt: Receipt, kind: bytes, chat: bool, created_s: int) -> bytes:
    """What every body begins with, up to its choices."""
    name = _encode(("chatcmpl-" if chat else "cmpl-") + receipt.request_id)
    return _OPENING % (name, kind, created_s, _source(receipt.model_id, receipt.engine))


@lru_cache(_SOURCES_MAX)
def _source(model_id: str, engine: str) -> bytes:
    """What an answer came from."""
    return b'"model":%b,"system_fingerprint":"fp_%010x"' % (_encode(model_id), hash64(engine) >> 24)


def _usage(receipt: Receipt, counts: Usage) -> bytes:
    """Token counts, and beside OpenAI's fields what the request cost: a stream's headers left too early for it."""
    input_tokens, output_tokens = counts.input_tokens, counts.output_tokens
    return _USAGE % (
        input_tokens,
        output_tokens,
        input_tokens + output_tokens,
        counts.cached_input_tokens,
        receipt.estimated_milli_mu,
        receipt.settled_milli_mu,
        receipt.quota_left_milli_mu,
        _encode(receipt.replica_id),
    )
