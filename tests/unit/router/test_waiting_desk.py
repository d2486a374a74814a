"""The desk that drives the waiting lines: time, events, and what goes wrong in between."""

from __future__ import annotations

import asyncio

import pytest

from common.clock import NS_PER_S, FakeClock
from data_plane.router.waiting_desk import WaitingDesk, Wanted
from fairlead.errors import DeadlineExceededError, QuotaExceededError
from tests.support.waiting import eventually


class Replica:
    """Has room or not, and remembers who it was given to.

    Attributes:
        room: Requests it takes.
        given_back: What came back.
    """

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.given_back: list[str] = []

    def wanted(self, name: str, *, deadline_s: float = 100.0, tenant_id: str = "a") -> Wanted[str]:
        """A request that waits for it."""

        def take() -> str | None:
            if not self.room:
                return None
            self.room -= 1
            return name

        return Wanted(tenant_id, 1, 1, 1, 0, int(deadline_s * NS_PER_S), lambda: ("r1",), take, self.given_back.append)


@pytest.fixture
async def desk() -> WaitingDesk[str]:
    return WaitingDesk(FakeClock(monotonic_ns=0), waiting_max=2)


async def test_room_that_nobody_announced_is_found(desk: WaitingDesk[str]) -> None:
    """What waits at a replica is worked off in silence: the desk looks by itself while somebody waits."""
    replica = Replica()
    running = asyncio.create_task(desk.run())
    waiting = asyncio.create_task(desk.wait("m", replica.wanted("one")))
    await eventually(lambda: desk.waiting() == {"m": {"a": 1}})
    replica.room = 1
    assert await asyncio.wait_for(waiting, 10.0) == "one"
    assert desk.waiting() == {}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_at_once_only_where_nobody_waits(desk: WaitingDesk[str]) -> None:
    """A newcomer does not take the room of those who wait, even where there is some."""
    replica = Replica(1)
    assert desk.at_once("m", ("r1",), replica.wanted("first").take) == "first"
    waiting = asyncio.create_task(desk.wait("m", replica.wanted("second")))
    await eventually(lambda: desk.waiting())
    replica.room = 1
    assert desk.at_once("m", ("r1",), replica.wanted("third").take) is None
    desk.freed("m", "r2")
    desk.freed("other", "r1")
    assert not waiting.done()
    desk.freed("m", "r1")
    assert await waiting == "second"


async def test_who_leaves_in_the_moment_of_getting_it_gives_it_back(desk: WaitingDesk[str]) -> None:
    """A cancellation that meets the grant returns what was granted, once."""
    replica = Replica()
    waiting = asyncio.create_task(desk.wait("m", replica.wanted("one")))
    await eventually(lambda: desk.waiting())
    replica.room = 1
    desk.freed("m", "r1")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    assert replica.given_back == ["one"]
    assert desk.waiting() == {}


async def test_deadlines_end_waits(desk: WaitingDesk[str]) -> None:
    """Whoever's time is over is told so, having taken nothing."""
    replica = Replica()
    with pytest.raises(DeadlineExceededError, match="come back later"):
        await desk.wait("m", replica.wanted("one", deadline_s=0.02))
    with pytest.raises(DeadlineExceededError):
        await desk.wait("m", replica.wanted("two", deadline_s=-1.0))
    assert desk.waiting() == {}


async def test_a_displaced_request_is_told_to_come_back(desk: WaitingDesk[str]) -> None:
    """The youngest of the tenant with most loses its place to another tenant's and is refused."""
    replica = Replica()
    waits = [asyncio.create_task(desk.wait("m", replica.wanted(f"flood {n}"))) for n in range(2)]
    await eventually(lambda: desk.waiting() == {"m": {"a": 2}})
    calm = asyncio.create_task(desk.wait("m", replica.wanted("calm", tenant_id="b")))
    with pytest.raises(QuotaExceededError, match="come back"):
        await waits[1]
    replica.room = 2
    desk.moved("m")
    assert sorted(await asyncio.gather(waits[0], calm)) == ["calm", "flood 0"]


async def test_an_arrival_asks_for_nobody_else() -> None:
    """However many wait for other replicas, one more asks once, for itself."""
    many: WaitingDesk[str] = WaitingDesk(FakeClock(monotonic_ns=0), waiting_max=1_000)
    asked: list[int] = []

    def wanted(number: int) -> Wanted[str]:
        def take() -> str | None:
            asked.append(number)
            return None

        return Wanted(f"t{number}", 1, 1, 1, 0, NS_PER_S, lambda: (f"r{number}",), take, lambda _: None)

    waits = [asyncio.create_task(many.wait("m", wanted(number))) for number in range(100)]
    await eventually(lambda: len(many.waiting().get("m", ())) == 100)
    assert asked == list(range(100))
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
