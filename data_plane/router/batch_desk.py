"""Drives the batch queue: batch requests wait here for quota until their deadline."""

from __future__ import annotations

import asyncio

from common.clock import NS_PER_S, Clock
from data_plane.router.core.batch_queue import BATCH_RESERVE_SHARE, BatchQueue, Ticket
from data_plane.router.core.holds import BucketKey, Hold, Holds
from fairlead.errors import DeadlineExceededError

# How often waiting requests are looked at while there are any: a fortieth of a second of refill is not worth a wake-up
# per request, and nobody waits for a batch request at the screen.
_LOOK_INTERVAL_S = 0.025


class BatchDesk:
    """Where batch requests wait.

    Args:
        queue: The order they are admitted in.
        holds: Where admission takes its holds from.
        clock: Monotonic time.
    """

    def __init__(self, queue: BatchQueue[Hold], holds: Holds, clock: Clock) -> None:
        self._queue = queue
        self._holds = holds
        self._clock = clock
        self._admitted: dict[Ticket[Hold], asyncio.Event] = {}
        self._arrived = asyncio.Event()

    async def wait(self, key: BucketKey, amount_milli_mu: int, deadline_ns: int) -> Hold:
        """Waits for a hold.

        Args:
            key: Whose bucket.
            amount_milli_mu: How much.
            deadline_ns: Until when.

        Raises:
            QuotaExceededError: The queue is full.
            DeadlineExceededError: The quota did not come back in time.
        """
        ticket = self._queue.enter(key, amount_milli_mu)
        event = self._admitted[ticket] = asyncio.Event()
        self._arrived.set()
        self.look()
        try:
            async with asyncio.timeout(max(0, deadline_ns - self._clock.monotonic_ns()) / NS_PER_S):
                await event.wait()
        except BaseException as error:
            if ticket.granted is not None:
                self._holds.refund(ticket.granted, self._clock.monotonic_ns())
            if isinstance(error, TimeoutError):
                raise DeadlineExceededError("the deadline passed while the request waited for quota") from error
            raise
        finally:
            self._queue.leave(ticket)
            del self._admitted[ticket]
        assert ticket.granted is not None
        return ticket.granted

    def look(self) -> None:
        """Admits whoever can be admitted now."""
        now_ns = self._clock.monotonic_ns()

        def admit(key: BucketKey, amount_milli_mu: int) -> Hold | None:
            answer = self._holds.hold(key, amount_milli_mu, now_ns, reserve_share=BATCH_RESERVE_SHARE)
            return answer if isinstance(answer, Hold) else None

        for ticket in self._queue.admit(admit):
            self._admitted[ticket].set()

    def waiting(self) -> dict[BucketKey, int]:
        """What waits, mMU by bucket."""
        return self._queue.waiting()

    async def run(self) -> None:
        """Looks again and again while anybody waits, until cancelled."""
        while True:
            await self._arrived.wait()
            while len(self._queue):
                self.look()
                await asyncio.sleep(_LOOK_INTERVAL_S)
            self._arrived.clear()
