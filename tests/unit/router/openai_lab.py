"""What tests of the OpenAI dialect share: what servers say, and an upstream beside a scripted one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from common.clock import SystemClock
from data_plane.relay.http1.client import HttpPool
from data_plane.router.dialects.credentials import Credentials, origin_of
from data_plane.router.dialects.openai import OpenAIUpstream
from fairlead.engine.v1 import engine_pb2
from tests.support.scripted_http import HEAD, LAST, Conversation, Script, ScriptedServer, chunked
from tests.unit.router.dialect_lab import Noted, start

DONE = b"data: [DONE]\n\n"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields, ensure_ascii=False).encode() + b"\n\n"


def said(text: str | None = None, finish: str | None = None, **extra: Any) -> bytes:
    """A chunk of a conversation."""
    delta = {} if text is None else {"content": text}
    return event(id="c", choices=[{"index": 0, "delta": delta, "finish_reason": finish}], **extra)


def counted(prompt: int, completion: int, cached: int = 0) -> bytes:
    """The chunk of the usage."""
    details = {"cached_tokens": cached}
    return event(
        choices=[],
        usage={"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details},
    )


WHOLE = (said(""), said("Hel"), said("lo"), said(" you", "length"), counted(7, 3, 2), DONE)


class Bench:
    """An upstream and a scripted engine."""

    def __init__(self, server: ScriptedServer, upstream: OpenAIUpstream, pool: HttpPool) -> None:
        self.server = server
        self.upstream = upstream
        self.pool = pool
        self.replica = engine_pb2.Replica(
            dialect=engine_pb2.DIALECT_OPENAI,
            engine_address=f"http://127.0.0.1:{server.port}/v1",
            engine_model="llama",
        )

    @property
    def connections(self) -> int:
        return self.pool.count(origin_of(self.replica.engine_address)[0])


@asynccontextmanager
async def bench(script: Script, credentials: Credentials | None = None) -> AsyncIterator[Bench]:
    async with ScriptedServer(script) as server:
        pool = HttpPool()
        upstream = OpenAIUpstream(pool, credentials or Credentials(), SystemClock())
        try:
            yield Bench(server, upstream, pool)
        finally:
            await pool.close()


def saying(*parts: bytes, head: bytes = HEAD, end: bytes = LAST, hold: bool = False) -> Script:
    """Answers every request with events, each a chunk of its own."""

    async def script(conversation: Conversation) -> None:
        while True:
            await conversation.request()
            await conversation.say(head, *(chunked(part) for part in parts), end)
            if hold:
                await conversation.gone()
                return

    return script


async def outcome(script: Script, request: Any = None, **options: Any) -> Noted:
    """What becomes of one request."""
    async with bench(script, **options) as made:
        noted = start(made.upstream, made.replica, request)
        await noted.ended()
        return noted
