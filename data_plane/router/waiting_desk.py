"""Drives the waiting lines: one per model, looked at whenever a replica may have got room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from common.clock import NS_PER_S, Clock
from data_plane.router.core.waiting_group import End, Place, Subset
from data_plane.router.core.waiting_line import WaitingLine, full
from fairlead.errors import DeadlineExceededError

T = TypeVar("T")

LOOK_S: Final = 0.02
"""What waits at a replica is worked off between its reports too: lines are looked at this often. A tenth of the room
that a replica keeps, so that none runs dry between two looks."""


class Wanted(Generic[T]):
    """What a request waits with.

    Args:
        tenant_id: Whose.
        rank: Its priority: lower goes first.
        weight: Its tenant's weight, milli-MU per minute.
        milli_mu: What it will cost, cached prefill not counted.
        prefill_ns: How long its uncached prefill takes.
        deadline_ns: Monotonic end of the request.
        subset: Where it may go by the assignment in force.
        take: Gives it a replica, or None where none has room; called at any time until it has, and never again. An
            exception that it returns ends the wait too, and costs the tenant no turn.
        give_back: Undoes `take`, for a request that went away in the same moment.
        excluded: Replicas that it must not go to.
    """

    __slots__ = (
        "deadline_ns",
        "excluded",
        "give_back",
        "milli_mu",
        "prefill_ns",
        "rank",
        "subset",
        "take",
        "tenant_id",
        "weight",
    )

    def __init__(
        self,
        tenant_id: str,
        rank: int,
        weight: int,
        milli_mu: int,
        prefill_ns: int,
        deadline_ns: int,
        subset: Callable[[], Subset],
        take: Callable[[], T | None],
        give_back: Callable[[T], None],
        excluded: frozenset[str] = frozenset(),
    ) -> None:
        self.tenant_id = tenant_id
        self.rank = rank
        self.weight = weight
        self.milli_mu = milli_mu
        self.prefill_ns = prefill_ns
        self.deadline_ns = deadline_ns
        self.subset = subset
        self.take = take
        self.give_back = give_back
        self.excluded = excluded


class _Waiter(Generic[T]):
    __slots__ = ("ended", "wanted")

    def __init__(self, wanted: Wanted[T]) -> None:
        self.wanted = wanted
        self.ended = asyncio.Event()


class WaitingDesk(Generic[T]):
    """Where requests wait for a replica with room.

    Args:
        clock: Monotonic time.
        waiting_max: Most requests of one model that wait.
    """

    def __init__(self, clock: Clock, *, waiting_max: int) -> None:
        self._clock = clock
        self._waiting_max = waiting_max
        self._lines: dict[str, WaitingLine[T]] = {}
        self._waiters: dict[Place[T], _Waiter[T]] = {}
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        """How many wait, for all models."""
        return len(self._waiters)

    def at_once(self, model_id: str, subset: Subset, take: Callable[[], T | None]) -> T | None:
        """Gives a request its replica without a wait, where nobody waits before it.

        Args:
            model_id: Of which model.
            subset: Where it may go.
            take: As in `Wanted`.

        Returns:
            What it took; None where it has to wait.
        """
        return None if self.shared(model_id, subset) else take()

    def shared(self, model_id: str, subset: Subset) -> bool:
        """Whether anybody waits who may go to one of these replicas.

        Args:
            model_id: Their model.
            subset: The replicas; empty for all.
        """
        line = self._lines.get(model_id)
        return line is not None and line.shared(subset)

    async def wait(self, model_id: str, wanted: Wanted[T]) -> T:
        """Waits for room.

        Args:
            model_id: Of which model.
            wanted: By whom and for what.

        Raises:
            QuotaExceededError: Too many wait; it may turn out while this one does, where somebody has fewer places.
            DeadlineExceededError: There was no room in time.
        """
        line = self._lines.get(model_id)
        if line is None:
            line = self._lines[model_id] = WaitingLine(waiting_max=self._waiting_max, serves=_is_service)
        now_ns = self._clock.monotonic_ns()
        place = line.enter(
            wanted.tenant_id,
            wanted.subset(),
            rank=wanted.rank,
            weight=wanted.weight,
            milli_mu=wanted.milli_mu,
            prefill_ns=wanted.prefill_ns,
            now_ns=now_ns,
            deadline_ns=wanted.deadline_ns,
            excluded=wanted.excluded,
        )
        if place.displaced is not None:
            self._waiters[place.displaced].ended.set()
        waiter = self._waiters[place] = _Waiter(wanted)
        self._arrived.set()
        self._told(line.look(self._take, now_ns, newcomer=place))
        try:
            async with asyncio.timeout(max(0, wanted.deadline_ns - now_ns) / NS_PER_S):
                await waiter.ended.wait()
        except BaseException as error:
            if place.granted is not None:
                wanted.give_back(place.granted)
            if isinstance(error, TimeoutError):
                raise _late() from error
            raise
        finally:
            line.leave(place)
            del self._waiters[place]
        if place.end is End.DISPLACED:
            raise full(len(line))
        if place.granted is None:
            raise _late()
        return place.granted

    def freed(self, model_id: str, replica_id: str, worthwhile: Callable[[], bool] = lambda: True) -> None:
        """A replica may have got room.

        Args:
            model_id: Its model.
            replica_id: The replica.
            worthwhile: Whether it still has some; asked before everybody who might go there.
        """
        line = self._lines.get(model_id)
        if line is not None and len(line):
            now_ns = self._clock.monotonic_ns()
            self._told(line.look(self._take, now_ns, replica_id=replica_id, worthwhile=worthwhile))

    def moved(self, model_id: str) -> None:
        """Another assignment is in force for a model."""
        line = self._lines.get(model_id)
        if line is not None and len(line):
            line.move(lambda place: self._waiters[place].wanted.subset())
            self._look(line)

    def waiting(self) -> dict[str, dict[str, int]]:
        """How many wait, by model and tenant."""
        return {model_id: line.waiting() for model_id, line in self._lines.items() if len(line)}

    async def run(self) -> None:
        """Looks again while anybody waits, until cancelled."""
        while True:
            busy = [line for line in self._lines.values() if len(line)]
            for line in busy:
                self._look(line)
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if busy else None):
                    await self._arrived.wait()

    def _look(self, line: WaitingLine[T]) -> None:
        self._told(line.look(self._take, self._clock.monotonic_ns()))

    def _told(self, ended: Iterable[Place[T]]) -> None:
        for place in ended:
            self._waiters[place].ended.set()

    def _take(self, place: Place[T]) -> T | None:
        return self._waiters[place].wanted.take()


def _is_service(granted: object) -> bool:
    return not isinstance(granted, Exception)


def _late() -> DeadlineExceededError:
    return DeadlineExceededError(
        "the deadline passed while the request waited for a replica with room; allow more time or come back later"
    )
