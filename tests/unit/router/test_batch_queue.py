"""The batch queue case by case, and the desk that drives it; tests/stateful/test_batch_queue_model.py has the rest."""

from __future__ import annotations

import asyncio
import time

import pytest

from common.clock import FakeClock, SystemClock
from data_plane.router.batch_desk import BatchDesk
from data_plane.router.core.batch_gate import BatchGate, full_until_ns, may_return, may_wait
from data_plane.router.core.batch_queue import LOOK_NS_MAX, BatchQueue, End, Never, Ticket
from data_plane.router.core.crowd import Crowd
from data_plane.router.core.fleet import Room
from data_plane.router.core.holds import BucketKey, BucketView, Hold, Holds, LeaseTerms, Refusal, Refused
from fairlead.errors import DeadlineExceededError, QuotaExceededError, Reason
from tests.support.waiting import eventually

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
A: BucketKey = ("a", "m")
B: BucketKey = ("b", "m")
PLENTY = BucketView(10**9, 0, 0, 10**9, 10**9, 0)


def enter(queue: BatchQueue[str], key: BucketKey, amount: int = 10, *, now_ns: int = 0) -> Ticket[str]:
    return queue.enter(key, amount, deadline_ns=HOUR, bucket=PLENTY, now_ns=now_ns)


def no(retry_after_s: float | None) -> Refused:
    return Refused(Refusal.USED_UP, retry_after_s)


def test_lines_take_turns_and_keep_their_order() -> None:
    """Round robin between lines, first come first served inside, blocked lines do not block others."""
    queue: BatchQueue[str] = BatchQueue(waiting_max=10, waiting_per_tenant_max=4)
    tickets = [enter(queue, A) for _ in range(4)] + [enter(queue, B)]
    with pytest.raises(QuotaExceededError) as caught:
        enter(queue, A)
    assert caught.value.reason is Reason.QUEUE_FULL
    left = {A: 20, B: 100}

    def take(key: BucketKey, amount: int) -> str | Refused:
        if left[key] < amount:
            return no(None)
        left[key] -= amount
        return "hold"

    assert queue.admit(take, 0) == [tickets[0], tickets[4], tickets[1]]
    assert len(queue) == 2
    assert queue.waiting() == {A: 20}
    queue.leave(tickets[3])
    queue.leave(tickets[3])
    left[A] = 100
    assert queue.admit(take, SECOND) == [tickets[2]]
    assert (len(queue), queue.next_ns) == (0, None)


def test_a_newcomer_takes_the_place_of_whoever_has_most() -> None:
    """One tenant filled the queue: others get places until all have as many, and its youngest leave first."""
    queue: BatchQueue[str] = BatchQueue(waiting_max=6, waiting_per_tenant_max=6)
    first = [enter(queue, A) for _ in range(6)]
    taken = [enter(queue, B).displaced for _ in range(3)]
    assert taken == [first[5], first[4], first[3]]
    assert [ticket.end for ticket in first] == [None] * 3 + [End.DISPLACED] * 3
    for key in (A, B):
        with pytest.raises(QuotaExceededError) as caught:
            enter(queue, key)
        assert (caught.value.reason, caught.value.retry_after_s) == (Reason.QUEUE_FULL, 30.0)
    assert queue.waiting() == {A: 30, B: 30}


def test_models_of_one_tenant_share_its_places() -> None:
    """A tenant cannot have more of the queue by spreading over models."""
    queue: BatchQueue[str] = BatchQueue(waiting_max=4, waiting_per_tenant_max=4)
    mine = [enter(queue, ("a", f"m{number}")) for number in range(4)]
    assert enter(queue, B).displaced is mine[3]
    assert enter(queue, B).displaced is mine[2]
    with pytest.raises(QuotaExceededError):
        enter(queue, B)


def test_a_line_is_left_alone_until_its_refill() -> None:
    """A line that must wait is asked again when its quota is there, at least four times a second, others meanwhile."""
    queue: BatchQueue[str] = BatchQueue()
    enter(queue, A)
    asked: list[tuple[BucketKey, int]] = []

    def look(now_ns: int, answer: Refused | None) -> None:
        def take(key: BucketKey, amount: int) -> str | Refused | None:
            asked.append((key, now_ns))
            return answer

        assert queue.admit(take, now_ns) == []

    look(0, no(0.1))
    assert queue.next_ns == SECOND // 10 + 1
    look(SECOND // 10, no(0.1))
    assert asked == [(A, 0)]
    enter(queue, B, now_ns=SECOND // 10)
    look(SECOND // 10, no(0.0))
    assert asked[1:] == [(B, SECOND // 10)]
    assert queue.next_ns == SECOND // 10 + 1
    look(SECOND, no(100.0))
    assert queue.next_ns == SECOND + SECOND // 4
    look(2 * SECOND, None)
    assert queue.next_ns == 2 * SECOND + SECOND // 4


def test_who_needs_less_moves_up_when_the_first_leaves() -> None:
    """The pause was the first one's; whoever is first now is asked at once."""
    queue: BatchQueue[str] = BatchQueue()
    big, small = enter(queue, A, 100), enter(queue, A, 1)
    assert queue.admit(lambda _, amount: "hold" if amount < 10 else no(60.0), 0) == []
    queue.leave(big)
    assert queue.admit(lambda _, amount: "hold" if amount < 10 else no(60.0), 1) == [small]


def test_what_no_lease_can_hold_lets_others_pass() -> None:
    """Too large for the present lease: the next may try, and the first is first again when the lease has grown."""
    queue: BatchQueue[str] = BatchQueue()
    big, small, last = enter(queue, A, 100), enter(queue, A, 10), enter(queue, A, 10)
    funds = 10

    def take(_: BucketKey, amount: int) -> str | Refused:
        nonlocal funds
        if amount > 50:
            return Refused(Refusal.TOO_SMALL, None)
        if amount > funds:
            return no(60.0)
        funds -= amount
        return "hold"

    assert queue.admit(take, 0) == [small]
    assert queue.next_ns == LOOK_NS_MAX
    assert queue.admit(lambda *_: "hold", LOOK_NS_MAX) == [big, last]


def test_what_no_quota_can_hold_is_turned_away() -> None:
    """Where the whole quota is too small the wait ends at once, with the reason, and others go on."""
    queue: BatchQueue[str] = BatchQueue()
    big, small = enter(queue, A, 100), enter(queue, A, 10)
    too_small = Refused(Refusal.TOO_SMALL, None)
    assert queue.admit(lambda _, amount: Never(too_small) if amount > 50 else "hold", 0) == [big, small]
    assert (big.end, big.refused, big.granted) == (End.REFUSED, too_small, None)
    assert (small.end, len(queue), queue.next_ns) == (End.ADMITTED, 0, None)


def test_who_comes_back_is_in_front_and_not_looked_at_at_once() -> None:
    """A request that found no room goes before those that never had a hold, behind others that came back earlier."""
    queue: BatchQueue[str] = BatchQueue(waiting_max=4)

    def back() -> Ticket[str]:
        return queue.enter(A, 10, deadline_ns=HOUR, bucket=PLENTY, now_ns=0, returned=True)

    first = back()
    assert queue.next_ns == LOOK_NS_MAX
    fresh, second, third = enter(queue, A), back(), enter(queue, B)
    other = enter(queue, B)
    assert other.displaced is fresh  # who came back is no newcomer
    assert queue.admit(lambda *_: "hold", LOOK_NS_MAX) == [third, first, other, second]
    assert [ticket.end for ticket in (first, second, third, other)] == [End.ADMITTED] * 4


def test_one_goes_ahead_where_all_were_full() -> None:
    """After the pause one request per line is let in per look; with room again everybody is, with none nobody."""
    holds = Holds()
    holds.apply({A: LeaseTerms(0, 1_000, 0), B: LeaseTerms(0, 1_000, 0)}, expires_ns=HOUR, now_ns=0)
    room = Room.NONE
    gate = BatchGate(holds, lambda _: room)
    assert gate.take(A, 10, 0) is None
    room = Room.PROBE
    assert isinstance(holds.hold(A, 100, 0), Hold)
    assert isinstance(gate.take(A, 900, 0), Refused)  # batch leaves a share; a refusal is no probe
    assert isinstance(gate.take(A, 10, 0), Hold)
    assert gate.take(A, 10, LOOK_NS_MAX - 1) is None
    assert isinstance(gate.take(B, 10, LOOK_NS_MAX - 1), Hold)
    assert isinstance(gate.take(A, 10, LOOK_NS_MAX), Hold)
    assert gate.take(B, 10, LOOK_NS_MAX) is None
    room = Room.OPEN
    assert isinstance(gate.take(B, 10, LOOK_NS_MAX), Hold)
    assert holds.open_holds == 5


def test_one_look_lets_in_what_the_replicas_have_room_for() -> None:
    """Where requests wait for room, each line is let in up to it per look, and not at all where there is none."""
    holds = Holds()
    holds.apply({A: LeaseTerms(0, 1_000, 0), B: LeaseTerms(0, 1_000, 0)}, expires_ns=HOUR, now_ns=0)
    free = 15
    gate = BatchGate(holds, lambda _: Room.OPEN, lambda _: free)
    let_in = [isinstance(gate.take(key, 10, 0), Hold) for key in (A, A, A, B)]
    assert let_in == [True, True, False, True]
    assert isinstance(gate.take(A, 10, 1), Hold)
    free = 0
    assert gate.take(B, 10, 2) is None
    assert holds.open_holds == 4


def test_the_gate_tells_too_small_a_lease_from_too_small_a_quota() -> None:
    """What the whole quota could save up may wait; what it could not never comes."""
    holds = Holds()
    holds.apply({A: LeaseTerms(100, 1_000, 0, 300)}, expires_ns=HOUR, now_ns=0)
    gate = BatchGate(holds, lambda _: Room.OPEN)
    assert gate.take(A, 3_000, 0) == Refused(Refusal.TOO_SMALL, None)
    assert gate.take(A, 3_001, 0) == Never(Refused(Refusal.TOO_SMALL, None))
    assert may_wait(holds.view(B, 0), 10**9)  # no lease yet


def test_what_may_come_back_to_wait() -> None:
    """Fullness and absence pass; a loss does not, nor what was begun, nor what has no time left."""

    def returns(reason: Reason, *, delivered: bool = False, left_s: float = 1.5) -> bool:
        return may_return(reason, delivered=delivered, retry_after_s=1.0, left_ns=int(left_s * SECOND))

    assert returns(Reason.QUEUE_FULL)
    assert returns(Reason.NO_REPLICA)
    assert not returns(Reason.REPLICA_LOST)
    assert not returns(Reason.QUEUE_FULL, delivered=True)
    assert not returns(Reason.QUEUE_FULL, left_s=1.0)
    assert full_until_ns(5, 1.0, 0.0) == SECOND + 5
    assert full_until_ns(5, None, 1.0) == 5 * SECOND // 2 + 5


def test_nobody_is_let_in_after_its_deadline() -> None:
    """Passed deadlines leave by themselves, however many stand in front."""
    queue: BatchQueue[str] = BatchQueue()
    late = [queue.enter(A, 1, deadline_ns=SECOND, bucket=PLENTY, now_ns=0) for _ in range(3)]
    last = enter(queue, A)
    assert queue.admit(lambda *_: "hold", SECOND) == [last]
    assert {ticket.end for ticket in late} == {End.LEFT}


def test_what_the_quota_cannot_reach_in_time_is_refused_at_once() -> None:
    """With the wait in the error; what can just be reached waits, and so does everything before the rate is known."""
    queue: BatchQueue[str] = BatchQueue()
    bucket = BucketView(1_000, 2_000, 0, 10_000, 60_000, 3)  # 1,000 per second; batch leaves 2,000
    queue.enter(A, 8_000, deadline_ns=HOUR, bucket=bucket, now_ns=0)
    early = queue.enter(A, 1_000, deadline_ns=SECOND, bucket=bucket, now_ns=0)
    queue.leave(early)
    # 8,000 wait, 1,000 + 2,000 are needed, 1,000 are there and 2,000 may come back: 8 s.
    now_ns = 5 * SECOND
    with pytest.raises(QuotaExceededError) as caught:
        queue.enter(A, 1_000, deadline_ns=now_ns + 8 * SECOND - 1, bucket=bucket, now_ns=now_ns)
    error = caught.value
    assert (error.reason, error.metadata["expected_wait_s"]) == (Reason.QUOTA_USED_UP, "8.0")
    assert error.retry_after_s == pytest.approx(0.0, abs=1e-6)
    queue.enter(A, 1_000, deadline_ns=now_ns + 8 * SECOND, bucket=bucket, now_ns=now_ns)
    stale = BucketView(0, 0, 0, 10_000, 60_000, 0, expired=True)
    queue.enter(A, 1_000, deadline_ns=now_ns + 1, bucket=stale, now_ns=now_ns)
    assert len(queue) == 3


def test_ten_thousand_places_cost_no_more_than_ten() -> None:
    """Leaving, displacing and looking do not grow with the line: 16 times as many take less than 64 times as long."""

    def taken_s(places: int) -> float:
        queue: BatchQueue[str] = BatchQueue(waiting_max=places, waiting_per_tenant_max=places)
        begin = time.process_time()
        tickets = [enter(queue, A) for _ in range(places)]
        others = [enter(queue, (f"t{number}", "m")) for number in range(places // 2)]
        queue.admit(lambda *_: no(60.0), 0)
        for ticket in [*tickets[: places // 2], *others]:
            queue.leave(ticket)
        return time.process_time() - begin

    small = min(taken_s(500) for _ in range(3))
    assert min(taken_s(8_000) for _ in range(3)) < 64 * small


def test_a_crowd_of_nobody_has_no_youngest() -> None:
    """An empty crowd says so."""
    crowd: Crowd[str, int] = Crowd()
    with pytest.raises(IndexError):
        crowd.youngest_of_most()
    crowd.add("a", 1)
    crowd.remove("a", 1)
    with pytest.raises(KeyError):
        crowd.remove("a", 1)
    assert (len(crowd), crowd.most, crowd.count("a")) == (0, 0, 0)


class Lab:
    """A desk with one bucket of 1,000 and no refill, on the system's clock."""

    def __init__(self, *, waiting_max: int = 10, rate: int = 0) -> None:
        self.clock = SystemClock()
        self.holds = Holds()
        self.served = True
        now_ns = self.clock.monotonic_ns()
        terms = LeaseTerms(rate, 1_000, 0)
        self.holds.apply({A: terms, B: terms}, expires_ns=now_ns + HOUR, now_ns=now_ns)
        queue: BatchQueue[Hold] = BatchQueue(waiting_max=waiting_max)
        self.desk = BatchDesk(queue, self.holds, lambda _: Room.OPEN if self.served else Room.NONE, self.clock)

    def wait(self, key: BucketKey, amount: int, seconds: float = 60.0) -> asyncio.Task[Hold | Refused]:
        deadline_ns = self.clock.monotonic_ns() + int(seconds * SECOND)
        return asyncio.create_task(self.desk.wait(key, amount, deadline_ns))


async def test_who_loses_its_place_is_told() -> None:
    """The displaced request ends with QUEUE_FULL and holds nothing."""
    lab = Lab(waiting_max=2)
    lab.served = False
    waiting = [lab.wait(A, 10), lab.wait(A, 10)]
    await eventually(lambda: lab.desk.waiting() == {A: 20})
    other = lab.wait(B, 10)
    with pytest.raises(QuotaExceededError) as caught:
        await waiting[1]
    assert caught.value.reason is Reason.QUEUE_FULL
    lab.served = True
    runner = asyncio.create_task(lab.desk.run())
    holds = [await waiting[0], await other]
    assert lab.holds.open_holds == 2
    assert [hold.amount_milli_mu for hold in holds if isinstance(hold, Hold)] == [10, 10]
    runner.cancel()


async def test_batch_waits_for_a_replica_and_holds_nothing_meanwhile() -> None:
    """No replica takes requests: quota stays free for others; as soon as one does, the request is let in."""
    lab = Lab()
    lab.served = False
    runner = asyncio.create_task(lab.desk.run())
    task = lab.wait(A, 10)
    await eventually(lambda: lab.desk.waiting() == {A: 10})
    assert lab.holds.open_holds == 0
    lab.served = True
    hold = await task
    assert isinstance(hold, Hold)
    assert hold.amount_milli_mu == 10
    runner.cancel()


async def test_no_replica_until_the_deadline() -> None:
    """The wait has an end, and leaves nothing behind."""
    lab = Lab()
    lab.served = False
    with pytest.raises(DeadlineExceededError):
        await lab.wait(A, 10, seconds=0.02)
    assert (lab.desk.waiting(), lab.holds.open_holds) == ({}, 0)


async def test_a_cancelled_wait_gives_its_hold_back() -> None:
    """Let in and cancelled at the same moment: the hold is refunded, not leaked."""
    lab = Lab()
    lab.served = False
    task = lab.wait(A, 10)
    await eventually(lambda: lab.desk.waiting() == {A: 10})
    lab.served = True

    def let_in() -> bool:
        lab.desk.look()
        return not lab.desk.waiting()

    await eventually(let_in)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lab.holds.open_holds == 0


async def test_the_refill_wakes_the_desk() -> None:
    """Nobody has to poke it: quota that refills lets the next one in."""
    lab = Lab(rate=6_000_000)  # 100 per millisecond
    runner = asyncio.create_task(lab.desk.run())
    holds = await asyncio.gather(*(lab.wait(A, 700) for _ in range(5)))
    assert len(holds) == 5
    assert lab.desk.waiting() == {}
    runner.cancel()


def test_the_desk_needs_no_loop_to_look() -> None:
    """Looking at an empty queue is harmless anywhere: new leases do it every second."""
    desk = BatchDesk(BatchQueue[Hold](), Holds(), lambda _: Room.OPEN, FakeClock())
    desk.look()
    assert desk.waiting() == {}
