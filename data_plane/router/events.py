"""A request's answer, pulled instead of pushed: for those who iterate."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from data_plane.relay.grpc import pieces
from data_plane.router.exchange import Delta, Event, Finished
from fairlead.errors import FairleadError


class Nobody:
    """See Sink: for an answer that nobody waits for."""

    def on_piece(self, piece: bytes) -> bool:
        """See Sink."""
        return True

    def on_finished(self, finished: Finished) -> None:
        """See Sink."""

    def on_failed(self, error: FairleadError) -> None:
        """See Sink."""


NOBODY = Nobody()


class Events:
    """See Sink; iterated it yields what came.

    Args:
        resume: Called when everything that came was taken.
    """

    def __init__(self, resume: Callable[[], None]) -> None:
        self._resume = resume
        self._came: deque[Event | FairleadError] = deque()
        self._more = asyncio.Event()
        self._over = False

    def on_piece(self, piece: bytes) -> bool:
        """See Sink."""
        message = pieces.read(piece)
        self._add(Delta(message.text, message.output_tokens))
        return False

    def on_finished(self, finished: Finished) -> None:
        """See Sink."""
        self._add(finished)

    def on_failed(self, error: FairleadError) -> None:
        """See Sink."""
        self._add(error)

    def _add(self, event: Event | FairleadError) -> None:
        self._came.append(event)
        self._more.set()

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises:
            StopAsyncIteration: After Finished.
            FairleadError: The request was refused or failed.
        """
        if self._over:
            raise StopAsyncIteration
        if not self._came:
            self._resume()
            self._more.clear()
            await self._more.wait()
        event = self._came.popleft()
        if isinstance(event, FairleadError):
            raise event
        self._over = isinstance(event, Finished)
        return event
