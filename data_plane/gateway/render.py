"""Answers in OpenAI's shape: whole, and as server-sent events."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from google.protobuf import json_format
from google.protobuf.message import Message

from data_plane.router.core.candidate import hash64
from data_plane.router.exchange import Finished, Receipt
from fairlead.admin.v1 import admin_pb2
from fairlead.inference.v1 import inference_pb2 as pb

DONE: Final = b"data: [DONE]\n\n"

_encode: Final = msgspec.json.Encoder().encode
_MARK: Final = "\x00"
_FINISH: Final = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


class Shape:
    """How one request is answered: as a chat or as a plain completion.

    Args:
        chat: Chat or plain.
        receipt: Ids and the replica's engine, known by the time anything is rendered.
        created_s: Unix time.
    """

    def __init__(self, *, chat: bool, receipt: Receipt, created_s: int) -> None:
        self._chat = chat
        self._receipt = receipt
        self._created_s = created_s

    def head(self, *, chunk: bool) -> dict[str, Any]:
        """What every body begins with.

        Args:
            chunk: It is one of a stream.
        """
        receipt, chat = self._receipt, self._chat
        return {
            "id": ("chatcmpl-" if chat else "cmpl-") + receipt.request_id,
            "object": ("chat.completion.chunk" if chunk else "chat.completion") if chat else "text_completion",
            "created": self._created_s,
            "model": receipt.model_id,
            "system_fingerprint": f"fp_{hash64(receipt.engine) >> 24:010x}",
        }

    def whole(self, text: str, finished: Finished) -> bytes:
        """The JSON body of an answer that is not streamed."""
        choice = self._choice({"role": "assistant", "content": text, "refusal": None}, "message", text, finished)
        return _encode({**self.head(chunk=False), "choices": [choice], "usage": self.usage(finished.usage)})

    def stream(self, *, include_usage: bool) -> Stream:
        """Renders the same answer piece by piece."""
        return Stream(self, include_usage)

    def delta(self, text: str | None, finished: Finished | None, *, first: bool) -> dict[str, Any]:
        """One choice of a chunk."""
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if text is not None:
            delta["content"] = text
        return self._choice(delta, "delta", text or "", finished)

    def usage(self, counts: pb.Usage) -> dict[str, Any]:
        """Token counts, and beside OpenAI's fields what the request cost: a stream's headers left too early for it."""
        receipt = self._receipt
        return {
            "prompt_tokens": counts.input_tokens,
            "completion_tokens": counts.output_tokens,
            "total_tokens": counts.input_tokens + counts.output_tokens,
            "prompt_tokens_details": {"cached_tokens": counts.cached_input_tokens},
            "fairlead": {
                "estimated_milli_mu": receipt.estimated_milli_mu,
                "settled_milli_mu": receipt.settled_milli_mu,
                "quota_left_milli_mu": receipt.quota_left_milli_mu,
                "replica_id": receipt.replica_id,
            },
        }

    def _choice(self, content: dict[str, Any], key: str, text: str, finished: Finished | None) -> dict[str, Any]:
        reason = _FINISH.get(finished.finish_reason, "stop") if finished else None
        shared = {"index": 0, "logprobs": None, "finish_reason": reason}
        return {**shared, key: content} if self._chat else {**shared, "text": text}


class Stream:
    """The chunks of one streamed answer.

    Args:
        shape: Chat or plain.
        include_usage: Whether a last chunk carries the usage; all others then say null.
    """

    __slots__ = ("_after", "_before", "_first", "_head", "_include_usage", "_shape")

    def __init__(self, shape: Shape, include_usage: bool) -> None:
        self._shape = shape
        self._include_usage = include_usage
        self._head: dict[str, Any] | None = None
        self._before = self._after = b""
        self._first = True

    def piece(self, text: bytes) -> bytes:
        """A chunk with new text.

        Args:
            text: UTF-8. What is none in it is replaced, for JSON has no other text.
        """
        if self._first:
            self._first = False
            return self._chunk([self._shape.delta(text.decode("utf-8", "replace"), None, first=True)])
        if not self._before:
            # Everything but the text is the same in every later chunk: encoded once.
            self._before, self._after = self._chunk([self._shape.delta(_MARK, None, first=False)]).split(_encode(_MARK))
        try:
            token = text.decode()
        except UnicodeDecodeError:
            token = text.decode("utf-8", "replace")
        return b"".join((self._before, _encode(token), self._after))

    def end(self, finished: Finished) -> bytes:
        """The last chunks."""
        chunks = self._chunk([self._shape.delta(None, finished, first=self._first)])
        if self._include_usage:
            assert self._head is not None
            chunks += _event({**self._head, "choices": [], "usage": self._shape.usage(finished.usage)})
        return chunks + DONE

    def _chunk(self, choices: list[dict[str, Any]]) -> bytes:
        if self._head is None:
            self._head = self._shape.head(chunk=True)
        nothing = {"usage": None} if self._include_usage else {}
        return _event({**self._head, "choices": choices, **nothing})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + _encode(value) + b"\n\n"


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
