"""The batch queue against a naive one: bounds, fairness of the bound, order and what bends it, and one end each."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from data_plane.router.core.batch_queue import BatchQueue, End, Never, Ticket
from data_plane.router.core.holds import BucketKey, BucketView, Refusal, Refused
from fairlead.errors import QuotaExceededError, Reason

SECOND = 1_000_000_000
KEYS: tuple[BucketKey, ...] = (("a", "m"), ("a", "n"), ("b", "m"), ("c", "m"), ("c", "n"))
PLENTY = BucketView(10**9, 0, 0, 10**9, 10**9, 0)
WAITING_MAX, PER_LINE_MAX = 8, 5
LOOK_NS = SECOND // 4

keys = st.sampled_from(KEYS)


class BatchQueueMachine(RuleBasedStateMachine):
    """A queue of eight places, three tenants, two models."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: BatchQueue[str] = BatchQueue(waiting_max=WAITING_MAX, waiting_per_tenant_max=PER_LINE_MAX)
        self.now_ns = 0
        self.waiting: list[Ticket[str]] = []  # in order of arrival
        self.seniority: list[Ticket[str]] = []  # those that came back before all others
        self.ended: list[tuple[Ticket[str], End]] = []

    def end(self, ticket: Ticket[str], end: End) -> None:
        self.waiting.remove(ticket)
        self.seniority.remove(ticket)
        self.ended.append((ticket, end))

    def places(self) -> Counter[str]:
        return Counter(ticket.key[0] for ticket in self.waiting)

    def line(self, key: BucketKey) -> list[Ticket[str]]:
        mine = [ticket for ticket in self.waiting if ticket.key == key]
        return [each for each in mine if each.returned] + [each for each in mine if not each.returned]

    @rule(key=keys, amount=st.integers(0, 50), life_ns=st.integers(1, 30 * SECOND), returned=st.booleans())
    def enter(self, key: BucketKey, amount: int, life_ns: int, returned: bool) -> None:
        places = self.places()
        line_full = sum(ticket.key == key for ticket in self.waiting) >= PER_LINE_MAX
        most = max(places.values(), default=0)
        queue_full = len(self.waiting) >= WAITING_MAX and places[key[0]] > most - 2

        def attempt() -> Ticket[str]:
            deadline_ns = self.now_ns + life_ns
            return self.queue.enter(
                key, amount, deadline_ns=deadline_ns, bucket=PLENTY, now_ns=self.now_ns, returned=returned
            )

        if line_full or queue_full:
            with pytest.raises(QuotaExceededError) as caught:
                attempt()
            assert caught.value.reason is Reason.QUEUE_FULL
            assert caught.value.retry_after_s
            return
        ticket = attempt()
        victim = ticket.displaced
        assert (victim is not None) == (len(self.waiting) == WAITING_MAX)
        if victim is not None:
            assert places[victim.key[0]] == most
            assert victim is [each for each in self.seniority if each.key[0] == victim.key[0]][-1]
            self.end(victim, End.DISPLACED)
        self.waiting.append(ticket)
        self.seniority.insert(0 if returned else len(self.seniority), ticket)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting))
        self.queue.leave(ticket)
        self.queue.leave(ticket)
        self.end(ticket, End.LEFT)

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def leave_again(self, data: st.DataObject) -> None:
        self.queue.leave(data.draw(st.sampled_from(self.ended))[0])

    @rule(
        funds=st.fixed_dictionaries({key: st.integers(0, 120) for key in KEYS}),
        served=st.sets(keys),
        lease=st.integers(0, 50),
        more=st.integers(0, 20),
        rate=st.integers(0, 100),
        wait_ns=st.integers(LOOK_NS, 5 * SECOND),
    )
    def admit(
        self, funds: dict[BucketKey, int], served: set[BucketKey], lease: int, more: int, rate: int, wait_ns: int
    ) -> None:
        """Some time later there is money for some, and for some a replica; some are too large for now or for ever."""
        self.now_ns += wait_ns
        left = dict(funds)

        def take(key: BucketKey, amount: int) -> str | Refused | Never | None:
            if key not in served:
                return None
            if amount > lease:
                too_small = Refused(Refusal.TOO_SMALL, None)
                return too_small if amount <= lease + more else Never(too_small)
            if left[key] < amount:
                return Refused(Refusal.USED_UP, (amount - left[key]) / rate if rate else None)
            left[key] -= amount
            return "hold"

        ended = self.queue.admit(take, self.now_ns)
        admitted = [ticket for ticket in ended if ticket.end is End.ADMITTED]
        hopeless = [ticket for ticket in ended if ticket.end is not End.ADMITTED]
        assert all(ticket.refused is not None and ticket.granted is None for ticket in hopeless)
        assert all(ticket.granted == "hold" for ticket in admitted)
        naive: dict[BucketKey, list[Ticket[str]]] = {}
        for key in KEYS:
            money = funds[key] if key in served else -1
            for ticket in self.line(key):
                if ticket.deadline_ns <= self.now_ns:
                    self.end(ticket, End.LEFT)
                elif key in served and ticket.amount_milli_mu > lease + more:
                    assert ticket in hopeless
                    hopeless.remove(ticket)
                    self.end(ticket, End.REFUSED)
                elif key in served and ticket.amount_milli_mu > lease:
                    continue
                elif money >= ticket.amount_milli_mu:
                    money -= ticket.amount_milli_mu
                    naive.setdefault(key, []).append(ticket)
                else:
                    break
        assert {key: [each for each in admitted if each.key == key] for key in naive} == naive
        assert len(admitted) == sum(map(len, naive.values()))
        assert not hopeless
        # One per line and round: nobody's second comes before anybody's first.
        rounds = [naive[ticket.key].index(ticket) for ticket in admitted]
        assert rounds == sorted(rounds)
        for ticket in admitted:
            self.end(ticket, End.ADMITTED)

    @invariant()
    def books_agree(self) -> None:
        assert len(self.queue) == len(self.waiting) <= WAITING_MAX
        sums: Counter[BucketKey] = Counter()
        for ticket in self.waiting:
            sums[ticket.key] += ticket.amount_milli_mu
        assert self.queue.waiting() == {key: sums[key] for key in {ticket.key for ticket in self.waiting}}
        assert all(ticket.end is None for ticket in self.waiting)
        assert all(ticket.end is end for ticket, end in self.ended)
        assert (self.queue.next_ns is None) == (not self.waiting)
        if self.queue.next_ns is not None:
            assert self.queue.next_ns <= self.now_ns + LOOK_NS


BatchQueueMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestBatchQueue = BatchQueueMachine.TestCase
