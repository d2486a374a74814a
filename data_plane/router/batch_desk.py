"""Drives the batch queue: batch requests wait here for quota and for a replica until their deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from common.clock import NS_PER_S, Clock
from data_plane.router.core.batch_gate import BatchGate
from data_plane.router.core.batch_queue import BatchQueue, End, Never, Ticket, full
from data_plane.router.core.fleet import Room
from data_plane.router.core.holds import BucketKey, Hold, Holds, Refused
from fairlead.errors import DeadlineExceededError


class BatchDesk:
    """Where batch requests wait.

    Args:
        queue: The order they are admitted in.
        holds: Where admission takes its holds from.
        room: Whether a replica takes requests of this (tenant, model) now; quota is held by nobody who waits for one.
        clock: Monotonic time.
        free_milli_mu: As of `BatchGate`.
    """

    def __init__(
        self,
        queue: BatchQueue[Hold],
        holds: Holds,
        room: Callable[[BucketKey], Room],
        clock: Clock,
        *,
        free_milli_mu: Callable[[BucketKey], int | None] = lambda _: None,
    ) -> None:
        self._queue = queue
        self._holds = holds
        self._gate = BatchGate(holds, room, free_milli_mu)
        self._clock = clock
        self._ended: dict[Ticket[Hold], asyncio.Event] = {}
        self._arrived = asyncio.Event()

    async def wait(
        self, key: BucketKey, amount_milli_mu: int, deadline_ns: int, *, returned: bool = False
    ) -> Hold | Refused:
        """Waits for a hold, and for a replica to spend it on.

        Args:
            key: Whose bucket.
            amount_milli_mu: How much.
            deadline_ns: Until when.
            returned: It had a hold before and found every replica full.

        Returns:
            The hold; or why the quota can never give it, where that turned out meanwhile.

        Raises:
            QuotaExceededError: The queue is full (it may become so while this one waits: somebody else had fewer
                places), or the quota cannot reach it in time.
            DeadlineExceededError: The quota did not come back in time, or no replica did.
        """
        now_ns = self._clock.monotonic_ns()
        ticket = self._queue.enter(
            key,
            amount_milli_mu,
            deadline_ns=deadline_ns,
            bucket=self._holds.view(key, now_ns),
            now_ns=now_ns,
            returned=returned,
        )
        if ticket.displaced is not None:
            self._ended[ticket.displaced].set()
        event = self._ended[ticket] = asyncio.Event()
        self._arrived.set()
        self.look()
        try:
            async with asyncio.timeout(max(0, deadline_ns - now_ns) / NS_PER_S):
                await event.wait()
        except BaseException as error:
            if ticket.granted is not None:
                self._holds.refund(ticket.granted, self._clock.monotonic_ns())
            if isinstance(error, TimeoutError):
                raise DeadlineExceededError(
                    "the deadline passed while the request waited for quota or a replica"
                ) from error
            raise
        finally:
            self._queue.leave(ticket)
            del self._ended[ticket]
        if ticket.end is End.DISPLACED:
            raise full(key)
        answer = ticket.granted or ticket.refused
        assert answer is not None
        return answer

    def look(self) -> None:
        """Admits whoever can be admitted now, and turns away whoever never can."""
        now_ns = self._clock.monotonic_ns()

        def take(key: BucketKey, amount_milli_mu: int) -> Hold | Refused | Never | None:
            return self._gate.take(key, amount_milli_mu, now_ns)

        for ticket in self._queue.admit(take, now_ns):
            self._ended[ticket].set()

    def waiting(self) -> dict[BucketKey, int]:
        """What waits, mMU by bucket."""
        return self._queue.waiting()

    async def run(self) -> None:
        """Looks again whenever somebody may be let in, until cancelled."""
        while True:
            self._arrived.clear()
            next_ns = self._queue.next_ns
            wait_s = None if next_ns is None else max(0, next_ns - self._clock.monotonic_ns()) / NS_PER_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._arrived.wait()
            self.look()
