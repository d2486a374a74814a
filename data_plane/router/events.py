"""A request's answer, pulled instead of pushed: for those who iterate."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from data_plane.relay.grpc import pieces
from data_plane.router.exchange import Delta, Event, Finished, Sink
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


class Pushed(Protocol):
    """What pushes its answer to a sink; see Exchange."""

    def start(self, sink: Sink) -> None:
        """Runs it."""
        ...

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        ...

    def resume(self) -> None:
        """Whoever did not keep up does again."""
        ...

    async def ended(self) -> None:
        """Waits until everything is settled."""
        ...


class Events:
    """See Sink; iterated it runs the request and yields what comes.

    Args:
        pushed: The request; it is started by the first step.
    """

    def __init__(self, pushed: Pushed) -> None:
        self._pushed = pushed
        self._came: deque[Event | FairleadError] = deque()
        self._more = asyncio.Event()
        self._begun = self._over = False

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
        """The next event: pieces of the answer as they come, then one Finished.

        Raises:
            StopAsyncIteration: After Finished.
            FairleadError: It was refused or failed; everything is settled by then.
        """
        if self._over:
            raise StopAsyncIteration
        if not self._begun:
            self._begun = True
            self._pushed.start(self)
        while not self._came:
            self._pushed.resume()
            self._more.clear()
            await self._more.wait()
        event = self._came.popleft()
        if isinstance(event, FairleadError):
            self._over = True
            raise event
        self._over = isinstance(event, Finished)
        return event

    async def aclose(self) -> None:
        """Cancels the request, where it has not ended, and waits until everything is settled."""
        if self._begun:
            self._pushed.cancel()
            await self._pushed.ended()
        self._over = True
