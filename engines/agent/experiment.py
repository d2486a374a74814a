"""Loads on a real engine: ordinary jobs through the agent's own queue, timed as they come out of it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from common.clock import NS_PER_S, Clock
from engines.agent.core.queue import Priority
from engines.agent.dispatcher import Dispatcher
from engines.agent.job import Job
from engines.agent.prompts import PROBE_WORDS, WordLengths, random_words
from engines.engine import EngineRequest, Prompt, Sampling
from engines.simulated.closed_loop import ClosedLoop
from fairlead.errors import FailedPreconditionError, FairleadError
from model_units.calibration.load import LoadResult, LoadSpec

# Part of the planned answer that must come: an engine that ends answers by itself would be measured wrongly.
_ANSWER_SHARE_MIN: Final = 0.9

# Room that a prompt leaves in the context, since its length is met only closely: tokens, and part of the prompt.
_SPARE_TOKENS: Final = 8
_SPARE_SHARE: Final = 0.02


@dataclass(frozen=True, slots=True)
class _Load:
    """A load under way."""

    loop: ClosedLoop
    draw: random.Random
    full: asyncio.Event


class LiveExperiments:
    """Puts loads on the engine behind a dispatcher, one at a time.

    Args:
        dispatcher: The way into the engine.
        clock: Times the tokens.
        context_tokens: Longest prompt plus answer of the running engine, tokens.
    """

    def __init__(self, dispatcher: Dispatcher, clock: Clock, context_tokens: Callable[[], int]) -> None:
        self._dispatcher = dispatcher
        self._clock = clock
        self._context_tokens = context_tokens
        self._lengths: WordLengths | None = None
        self._numbers = itertools.count(1)

    async def run(self, load: LoadSpec) -> LoadResult:
        """Puts a load on the engine and measures it; nothing of it is left in the engine afterwards.

        Args:
            load: The load; concurrency within what the engine runs at once.

        Raises:
            FailedPreconditionError: The engine ends answers before they have the length it was told.
            FairleadError: What the engine raised.
        """
        lengths = self._lengths
        if lengths is None:
            lengths = self._lengths = await self._learn(random.Random(load.seed))
        self._dispatcher.accounts.cache.clear()  # its prompts push out what others left there
        loop = ClosedLoop(load, self._now_s())
        running = _Load(loop, random.Random(load.seed), asyncio.Event())
        try:
            async with asyncio.timeout(load.time_max_s), asyncio.TaskGroup() as group:
                streams = [
                    group.create_task(self._stream(running, lengths, number, first))
                    for number, first in enumerate(loop.begin())
                ]
                await running.full.wait()
                for stream in streams:
                    stream.cancel()
        except TimeoutError:
            loop.stop(self._now_s())
        except ExceptionGroup as failures:
            raise _first(failures) from failures
        return loop.result(self._now_s())

    async def _learn(self, draw: random.Random) -> WordLengths:
        """Two small requests tell what a word and the frame of a prompt cost."""
        counts = [await self._probe(random_words(words, draw)) for words in PROBE_WORDS]
        lengths = WordLengths()
        lengths.probed((counts[0], counts[1]))
        return lengths

    async def _probe(self, text: str) -> int:
        counted = 0
        async with aclosing(self._dispatcher.run(self._job(text, 1), calibration=True)) as stream:
            async for batch in stream:
                counted = batch.input_tokens
        return counted

    async def _stream(self, load: _Load, lengths: WordLengths, number: int, request: tuple[int, int]) -> None:
        """One request after the other."""
        while True:
            request = await self._request(load, lengths, number, *request)

    async def _request(
        self, load: _Load, lengths: WordLengths, number: int, input_tokens: int, output_tokens: int
    ) -> tuple[int, int]:
        """One request; returns the lengths of the next."""
        loop = load.loop
        spare = max(_SPARE_TOKENS, round(_SPARE_SHARE * input_tokens))
        words = lengths.words_for(min(input_tokens, self._context_tokens() - output_tokens - spare))
        loop.counted(number, lengths.tokens_of(words))
        produced = 0
        job = self._job(random_words(words, load.draw), output_tokens)
        async with aclosing(self._dispatcher.run(job, calibration=True)) as batches:
            async for batch in batches:
                if batch.output_tokens and not produced:
                    loop.first_token(number, self._now_s())
                produced += batch.output_tokens
                if produced:
                    loop.progress(number, produced)
                if batch.finish is not None and batch.input_tokens:
                    lengths.counted(words, batch.input_tokens)
                if loop.done:
                    load.full.set()
        if produced < _ANSWER_SHARE_MIN * output_tokens:
            raise FailedPreconditionError(
                f"the engine ended an answer after {produced} of {output_tokens} tokens although it was told to ignore "
                "the end token: it cannot be calibrated"
            )
        return loop.ended(number, self._now_s(), produced)

    def _job(self, text: str, output_tokens: int) -> Job:
        return Job(
            EngineRequest(
                request_id=f"calibration-{next(self._numbers)}",
                prompt=Prompt(text),
                sampling=Sampling(max_tokens=output_tokens, ignore_end_token=True),
                priority=Priority.INTERACTIVE,
            )
        )

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / NS_PER_S


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    """Streams fail together when an engine does: the first failure of the tree, else the first of any kind."""
    leaves: list[Exception] = []
    for error in failures.exceptions:
        leaves.append(_first(error) if isinstance(error, ExceptionGroup) else error)
    return next((error for error in leaves if isinstance(error, FairleadError)), leaves[0])
