"""The agent's queue and load account against a naive model: plain lists, recounted from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.agent.core.load import LoadAccount
from engines.agent.core.queue import AdmissionQueue, Priority, QueueLimits, Ticket

QUEUED_MAX, SEQUENCES_MAX, KV = 5, 4, 100


@dataclass
class Known:
    ticket: Ticket
    arrival: int
    prefill: int
    decode: int
    length: int
    inside: bool = False
    produced: int = 0

    @property
    def order(self) -> tuple[int, int]:
        return (-self.ticket.priority, self.arrival)


class AgentQueueModel(RuleBasedStateMachine):
    """Proves: the line is (priority, arrival); slots, the kept slot, cache room and the queue's bound always hold; the
    load is the exact sum over those present, zero when nobody is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue = AdmissionQueue(QueueLimits(QUEUED_MAX, SEQUENCES_MAX, KV))
        self.account = LoadAccount()
        self.known: dict[str, Known] = {}
        self.count = 0

    def waiting(self) -> list[Known]:
        return sorted((each for each in self.known.values() if not each.inside), key=lambda each: each.order)

    def inside(self) -> list[Known]:
        return [each for each in self.known.values() if each.inside]

    @rule(
        priority=st.sampled_from(Priority),
        kv=st.integers(0, 130),
        prefill=st.integers(0, 1000),
        decode=st.integers(0, 1000),
        length=st.integers(1, 20),
    )
    def arrive_one(self, priority: Priority, kv: int, prefill: int, decode: int, length: int) -> None:
        self.arrive(priority, kv, prefill, decode, length)

    @rule(count=st.integers(2, 6), priority=st.sampled_from((Priority.BATCH, Priority.INTERACTIVE)))
    def arrive_together(self, count: int, priority: Priority) -> None:
        for number in range(count):
            self.arrive(priority, 5, number, number, 3)
        self.admit_all()

    def arrive(self, priority: Priority, kv: int, prefill: int, decode: int, length: int) -> None:
        self.count += 1
        name = f"r{self.count}"
        ordinary = [each for each in self.waiting() if each.ticket.priority is not Priority.SYSTEM]
        offer = self.queue.offer(Ticket(name, priority, kv))
        if offer.displaced is not None:
            lower = [each for each in ordinary if each.ticket.priority < priority]
            assert len(ordinary) >= QUEUED_MAX
            assert offer.displaced == max(lower, key=lambda each: each.order).ticket
            self.end(offer.displaced.request_id)
        if not offer.accepted:
            assert len(ordinary) >= QUEUED_MAX
            assert all(each.ticket.priority >= priority for each in ordinary)
            return
        self.known[name] = Known(Ticket(name, priority, kv), self.count, prefill, decode, length)
        self.account.queue(name, prefill_milli_mu=prefill, decode_milli_mu=decode, output_tokens=length)

    @rule()
    def admit(self) -> None:
        self.admit_all()

    def admit_all(self) -> None:
        for ticket in self.queue.admit():
            assert ticket == self.waiting()[0].ticket, "somebody overtook"
            self.known[ticket.request_id].inside = True
            self.account.start(ticket.request_id)
        if line := self.waiting():
            assert not self.would_fit(line[0]), "the head of the line fits and was left outside"

    def would_fit(self, head: Known) -> bool:
        inside = self.inside()
        if len(inside) >= SEQUENCES_MAX:
            return False
        if head.ticket.priority is Priority.SYSTEM:
            return True
        ordinary = [each for each in inside if each.ticket.priority is not Priority.SYSTEM]
        room = not inside or sum(each.ticket.kv_tokens for each in inside) + head.ticket.kv_tokens <= KV
        return len(ordinary) < SEQUENCES_MAX - 1 and room

    @precondition(lambda self: self.inside())
    @rule(data=st.data(), tokens=st.integers(0, 8))
    def produce(self, data: st.DataObject, tokens: int) -> None:
        each = data.draw(st.sampled_from(self.inside()))
        each.produced += tokens
        assert self.account.produce(each.ticket.request_id, tokens) >= 0

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.known)))
        assert self.queue.leave(name)
        self.end(name)

    @precondition(lambda self: self.inside())
    @rule()
    def all_inside_leave(self) -> None:
        for each in self.inside():
            assert self.queue.leave(each.ticket.request_id)
            self.end(each.ticket.request_id)
        self.admit_all()

    def end(self, name: str) -> None:
        self.account.end(name)
        del self.known[name]
        assert not self.queue.leave(name)

    @invariant()
    def limits_hold(self) -> None:
        inside = self.inside()
        assert (self.queue.waiting, self.queue.inside) == (len(self.waiting()), len(inside))
        assert len(inside) <= SEQUENCES_MAX
        assert sum(each.ticket.priority is not Priority.SYSTEM for each in inside) <= SEQUENCES_MAX - 1

    @invariant()
    def load_is_the_exact_sum(self) -> None:
        load = self.account.load()
        everybody, inside = self.known.values(), self.inside()
        left = [
            each.decode * max(0, each.length - each.produced) // each.length
            for each in inside
            if each.produced < each.length
        ]
        assert load.queued_requests == len(everybody) - len(inside)
        assert load.running_requests == len(inside)
        assert load.pending_prefill_milli_mu == sum(each.prefill for each in everybody if not each.produced)
        assert load.decode_milli_mu == sum(left)


AgentQueueModel.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAgentQueueModel = AgentQueueModel.TestCase
