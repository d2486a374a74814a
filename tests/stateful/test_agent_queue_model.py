"""The agent's queue and load account against a naive model: plain lists, recounted from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.agent.core.load import LoadAccount
from engines.agent.core.queue import AdmissionQueue, Priority, QueueLimits, Ticket

QUEUED_MAX, SEQUENCES_MAX, KV, PREFILL = 5, 4, 100, 600
NS_PER_MINUTE = 60_000_000_000


@dataclass
class Known:
    ticket: Ticket
    arrival: int
    length: int
    inside: bool = False
    produced: int = 0


class NaiveClass:
    """One class: counters of every tenant there ever was, and who waits for room."""

    def __init__(self) -> None:
        self.now = 0
        self.counters: dict[str, int] = {}
        self.weights: dict[str, int] = {}
        self.pinned: str | None = None

    def pay(self, ticket: Ticket, milli_mu: int) -> None:
        self.counters[ticket.tenant_id] += milli_mu * NS_PER_MINUTE // max(1, ticket.weight)


class AgentQueueModel(RuleBasedStateMachine):
    """Proves: classes overtake, tenants of a class go by virtual time and each tenant's requests by turn; who
    waits for room is not overtaken; slots, the kept slot, cache room, prefill inside and the queue's bound always hold;
    the load is the exact sum over those present, zero when nobody is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue = AdmissionQueue(QueueLimits(QUEUED_MAX, SEQUENCES_MAX, KV, PREFILL))
        self.account = LoadAccount()
        self.known: dict[str, Known] = {}
        self.classes = {priority: NaiveClass() for priority in Priority}
        self.count = 0

    def waiting(self, priority: Priority | None = None) -> list[Known]:
        return sorted(
            (
                each
                for each in self.known.values()
                if not each.inside and (priority is None or each.ticket.priority is priority)
            ),
            key=lambda each: each.arrival,
        )

    def inside(self) -> list[Known]:
        return [each for each in self.known.values() if each.inside]

    def first_of_each_tenant(self, priority: Priority) -> dict[str, Known]:
        firsts: dict[str, Known] = {}
        for each in sorted(self.waiting(priority), key=lambda each: (each.ticket.turn_s, each.arrival)):
            firsts.setdefault(each.ticket.tenant_id, each)
        return firsts

    def head(self) -> Known | None:
        for priority in sorted(Priority, reverse=True):
            counters, firsts = self.classes[priority].counters, self.first_of_each_tenant(priority)
            if (pinned := self.classes[priority].pinned) is not None:
                return self.known[pinned]
            if firsts:
                return min(firsts.values(), key=lambda each: (counters[each.ticket.tenant_id], each.arrival))
        return None

    @rule(
        priority=st.sampled_from(Priority),
        kv=st.integers(0, 130),
        prefill=st.integers(0, 1000),
        decode=st.integers(0, 1000),
        length=st.integers(1, 20),
        tenant=st.sampled_from("abc"),
        weight=st.sampled_from((0, 1_000, 3_000)),
        turn_s=st.sampled_from((0.0, 1.0, 2.0)),
    )
    def arrive_one(
        self,
        priority: Priority,
        kv: int,
        prefill: int,
        decode: int,
        length: int,
        tenant: str,
        weight: int,
        turn_s: float,
    ) -> None:
        self.count += 1
        self.arrive(Ticket(f"r{self.count}", priority, kv, tenant, weight, prefill, decode, turn_s), length)

    @rule(
        count=st.integers(2, 6),
        priority=st.sampled_from((Priority.BATCH, Priority.INTERACTIVE)),
        tenant=st.sampled_from("abc"),
    )
    def arrive_together(self, count: int, priority: Priority, tenant: str) -> None:
        for number in range(count):
            self.count += 1
            self.arrive(Ticket(f"r{self.count}", priority, 5, tenant, 1_000, 100 * number, number), 3)
        self.admit_all()

    def arrive(self, ticket: Ticket, length: int) -> None:
        ordinary = [each for each in self.waiting() if each.ticket.priority is not Priority.SYSTEM]
        offer = self.queue.offer(ticket)
        if offer.displaced is not None or not offer.accepted:
            assert ticket.priority is not Priority.SYSTEM
            assert len(ordinary) >= QUEUED_MAX
            victim = self.victim(ticket)
            assert offer.displaced == (victim.ticket if victim is not None else None)
            assert offer.accepted == (victim is not None)
            if victim is None:
                return
            self.end(victim.ticket.request_id)
        mine = self.classes[ticket.priority]
        if ticket.tenant_id not in self.first_of_each_tenant(ticket.priority):
            mine.counters[ticket.tenant_id] = max(mine.counters.get(ticket.tenant_id, mine.now), mine.now)
        mine.weights[ticket.tenant_id] = max(1, ticket.weight)
        self.known[ticket.request_id] = Known(ticket, self.count, length)
        self.account.queue(
            ticket.request_id,
            prefill_milli_mu=ticket.prefill_milli_mu,
            decode_milli_mu=ticket.decode_milli_mu,
            output_tokens=length,
        )

    def victim(self, newcomer: Ticket) -> Known | None:
        """Who has to leave, by the words of the documentation."""
        lowest = Priority.BATCH if self.waiting(Priority.BATCH) else Priority.INTERACTIVE
        line, weights = self.waiting(lowest), self.classes[lowest].weights
        sizes = {tenant: sum(each.ticket.tenant_id == tenant for each in line) for tenant in "abc"}
        last = {each.ticket.tenant_id: each for each in line}

        def excess(tenant: str) -> int:
            return (sizes[tenant] - 1) * NS_PER_MINUTE // weights[tenant]

        chosen = max(last, key=lambda tenant: (excess(tenant), last[tenant].arrival))
        if lowest < newcomer.priority:
            return last[chosen]
        if lowest > newcomer.priority:
            return None
        mine = sizes[newcomer.tenant_id] * NS_PER_MINUTE // max(1, newcomer.weight)
        return last[chosen] if mine < excess(chosen) else None

    @rule()
    def admit(self) -> None:
        self.admit_all()

    def admit_all(self) -> None:
        for ticket in self.queue.admit():
            head = self.head()
            assert head is not None
            assert ticket == head.ticket, "somebody overtook"
            assert self.takes(head)
            assert self.has_room(head)
            head.inside = True
            mine = self.classes[ticket.priority]
            mine.pinned = None
            mine.now = max(mine.now, mine.counters[ticket.tenant_id])
            mine.pay(ticket, ticket.prefill_milli_mu + ticket.decode_milli_mu)
            self.account.start(ticket.request_id)
        if (head := self.head()) is not None:
            assert not (self.takes(head) and self.has_room(head)), "the head of the line fits and was left outside"
            if self.takes(head):
                self.classes[head.ticket.priority].pinned = head.ticket.request_id

    def takes(self, head: Known) -> bool:
        inside = self.inside()
        if len(inside) >= SEQUENCES_MAX:
            return False
        if head.ticket.priority is Priority.SYSTEM:
            return True
        ordinary = [each for each in inside if each.ticket.priority is not Priority.SYSTEM]
        prefilling = [each.ticket for each in ordinary if not each.produced]
        own = sum(each.prefill_milli_mu for each in prefilling if each.tenant_id == head.ticket.tenant_id)
        here = self.waiting(Priority.BATCH) + self.waiting(Priority.INTERACTIVE) + ordinary
        alone = len({each.ticket.tenant_id for each in here}) == 1
        prefill = sum(each.prefill_milli_mu for each in prefilling)
        return len(ordinary) < SEQUENCES_MAX - 1 and prefill < PREFILL and (alone or own < PREFILL / 2)

    def has_room(self, head: Known) -> bool:
        inside = self.inside()
        used = sum(each.ticket.kv_tokens for each in inside)
        return head.ticket.priority is Priority.SYSTEM or not inside or used + head.ticket.kv_tokens <= KV

    @precondition(lambda self: self.inside())
    @rule(data=st.data(), tokens=st.integers(0, 8))
    def produce(self, data: st.DataObject, tokens: int) -> None:
        each = data.draw(st.sampled_from(self.inside()))
        each.produced += tokens
        assert self.account.produce(each.ticket.request_id, tokens) >= 0
        if tokens:
            self.queue.started(each.ticket.request_id)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.leave_one(data.draw(st.sampled_from(sorted(self.known))))

    @precondition(lambda self: self.inside())
    @rule()
    def all_inside_leave(self) -> None:
        for each in self.inside():
            self.leave_one(each.ticket.request_id)
        self.admit_all()

    def leave_one(self, name: str) -> None:
        each = self.known[name]
        decode = each.ticket.decode_milli_mu * each.produced // each.length
        assert self.queue.leave(name, decode_milli_mu=decode)
        assert self.end(name) == decode

    def end(self, name: str) -> int:
        decode = self.account.end(name)
        gone = self.known.pop(name)
        mine = self.classes[gone.ticket.priority]
        if gone.inside:
            mine.pay(gone.ticket, decode - gone.ticket.decode_milli_mu)
        if mine.pinned == name:
            mine.pinned = None
        if not any(each.ticket.priority is gone.ticket.priority for each in self.known.values()):
            mine.now = max(mine.now, *mine.counters.values())
        assert not self.queue.leave(name)
        return decode

    @invariant()
    def limits_hold(self) -> None:
        inside = self.inside()
        assert (self.queue.waiting, self.queue.inside) == (len(self.waiting()), len(inside))
        for priority in Priority:
            assert self.queue.waiting_of(priority) == len(self.waiting(priority))
        assert len(inside) <= SEQUENCES_MAX
        assert sum(each.ticket.priority is not Priority.SYSTEM for each in inside) <= SEQUENCES_MAX - 1

    @invariant()
    def load_is_the_exact_sum(self) -> None:
        load = self.account.load()
        everybody, inside = self.known.values(), self.inside()
        left = [
            each.ticket.decode_milli_mu * max(0, each.length - each.produced) // each.length
            for each in inside
            if each.produced < each.length
        ]
        assert load.queued_requests == len(everybody) - len(inside)
        assert load.running_requests == len(inside)
        assert load.pending_prefill_milli_mu == sum(
            each.ticket.prefill_milli_mu for each in everybody if not each.produced
        )
        assert load.decode_milli_mu == sum(left)
        assert load.queued_decode_milli_mu == sum(each.ticket.decode_milli_mu for each in self.waiting())


AgentQueueModel.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAgentQueueModel = AgentQueueModel.TestCase
