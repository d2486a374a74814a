"""A small real engine for tests: every request yields one token whenever the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from engines.engine import EngineDescription, EngineRequest, Finish, TokenBatch


class FakeEngine:
    """Produces tokens on demand.

    Attributes:
        inside: Requests in the engine, by id, each with its queue of pending tokens.
        failure: Raised by the next token of every request while set.
        ends_unfinished: Streams end without a finish reason.
    """

    def __init__(
        self, sequences_max: int = 8, kv_capacity_tokens: int = 100_000, *, prefix_cache: bool = False
    ) -> None:
        self.inside: dict[str, asyncio.Queue[None]] = {}
        self.failure: Exception | None = None
        self.ends_unfinished = False
        self.starts = 0
        self._description = EngineDescription("fake", "1", sequences_max, kv_capacity_tokens, 4_096, prefix_cache)
        self._progress_tokens = 0
        self._alive = False

    async def start(self) -> EngineDescription:
        self.starts += 1
        self._alive = True
        self._progress_tokens = 0
        return self._description

    async def stop(self) -> None:
        self._alive = False

    def alive(self) -> bool:
        return self._alive

    @property
    def process_id(self) -> int:
        return 0

    @property
    def progress_tokens(self) -> int:
        return self._progress_tokens

    @property
    def kv_used_tokens(self) -> int:
        return 0

    def give(self, tokens: int = 1) -> None:
        """Lets every request inside have that many tokens."""
        for pending in self.inside.values():
            for _ in range(tokens):
                pending.put_nowait(None)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenBatch]:
        pending = self.inside[request.request_id] = asyncio.Queue()
        try:
            for number in range(1, request.sampling.max_tokens + 1):
                await pending.get()
                if self.failure is not None:
                    raise self.failure
                self._progress_tokens += 1
                last = number == request.sampling.max_tokens
                if last and self.ends_unfinished:
                    return
                yield TokenBatch("t", 1, finish=Finish.LENGTH if last else None, input_tokens=3 if last else 0)
        finally:
            del self.inside[request.request_id]
