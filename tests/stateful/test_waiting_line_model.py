"""The waiting line against a naive model: one list, searched anew for every decision."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from data_plane.router.core.waiting_line import End, Place, Subset, WaitingLine
from fairlead.errors import QuotaExceededError, Reason

MS = 1_000_000
NS_PER_MINUTE = 60_000_000_000
TENANTS = "abcd"
SUBSETS: tuple[Subset, ...] = (("r1",), ("r1", "r2"), ("r2", "r3"), ("r3",), ())
REPLICAS = ("r1", "r2", "r3")
WAITING_MAX = 6
AGEING = 4.0


@dataclass
class Naive:
    """One waiting request as the model sees it."""

    place: Place[str]
    tenant: str
    subset: Subset
    rank: int
    weight: int
    cost: int
    due: tuple[float, int]
    deadline_ns: int
    entered: int


class LineMachine(RuleBasedStateMachine):
    """Random arrivals, departures, room and time, with the whole order predicted."""

    def __init__(self) -> None:
        super().__init__()
        self.line: WaitingLine[str] = WaitingLine(waiting_max=WAITING_MAX, ageing=AGEING)
        self.now_ns = 0
        self.waiting: list[Naive] = []
        self.counters: dict[str, int] = {}
        self.virtual_ns = 0
        self.entered = 0
        self.room = dict.fromkeys(REPLICAS, 0)

    def count(self, tenant: str) -> int:
        return sum(each.tenant == tenant for each in self.waiting)

    def drop(self, gone: Naive, *, served: bool) -> None:
        self.waiting.remove(gone)
        if served:
            self.virtual_ns = max(self.virtual_ns, self.counters[gone.tenant])
            self.counters[gone.tenant] += gone.cost * NS_PER_MINUTE // gone.weight
        if not self.waiting:
            self.virtual_ns = max(self.virtual_ns, *self.counters.values())
            self.counters.clear()

    @rule(
        tenant=st.sampled_from(TENANTS),
        subset=st.sampled_from(SUBSETS),
        rank=st.integers(0, 1),
        weight=st.sampled_from((1_000, 60_000)),
        cost=st.integers(0, 50),
        prefill_ms=st.integers(0, 1_000),
        left_ms=st.integers(0, 3_000),
    )
    def enter(
        self, tenant: str, subset: Subset, rank: int, weight: int, cost: int, prefill_ms: int, left_ms: int
    ) -> None:
        """Who finds no place is refused, or takes that of the youngest of the tenant with most."""
        deadline_ns = self.now_ns + left_ms * MS
        self.entered += 1
        most = max(map(self.count, TENANTS))
        crowded = len(self.waiting) >= WAITING_MAX
        try:
            place = self.line.enter(
                tenant,
                subset,
                rank=rank,
                weight=weight,
                milli_mu=cost,
                prefill_ns=prefill_ms * MS,
                now_ns=self.now_ns,
                deadline_ns=deadline_ns,
            )
        except QuotaExceededError:
            assert crowded
            assert most - 1 < self.count(tenant) + 1
            return
        assert crowded == (place.displaced is not None)
        if place.displaced is not None:
            gone = next(each for each in self.waiting if each.place is place.displaced)
            assert self.count(gone.tenant) == most
            assert gone.entered == max(each.entered for each in self.waiting if each.tenant == gone.tenant)
            assert gone.place.end is End.DISPLACED
            self.drop(gone, served=False)
        if not self.count(tenant):
            self.counters[tenant] = max(self.counters.get(tenant, 0), self.virtual_ns)
        due = (self.now_ns + AGEING * prefill_ms * MS, self.entered)
        self.waiting.append(Naive(place, tenant, subset, rank, weight, cost, due, deadline_ns, self.entered))

    @rule(at=st.integers(0, WAITING_MAX - 1))
    def leave(self, at: int) -> None:
        """Whoever gives up is gone, and giving up twice is harmless."""
        if at < len(self.waiting):
            gone = self.waiting[at]
            self.line.leave(gone.place)
            self.line.leave(gone.place)
            assert gone.place.end is End.LEFT
            self.drop(gone, served=False)

    @rule(ms=st.integers(1, 1_000))
    def pass_time(self, ms: int) -> None:
        """Time passes."""
        self.now_ns += ms * MS

    @rule(subsets=st.permutations(SUBSETS), seed=st.integers(0, 10))
    def reassign(self, subsets: list[Subset], seed: int) -> None:
        """With another assignment everybody waits for other replicas, in the same order."""
        if seed:
            return
        mapping = dict(zip(SUBSETS, subsets, strict=True))
        self.line.move(lambda place: mapping[place.subset])
        for each in self.waiting:
            each.subset = mapping[each.subset]
            assert each.place.subset == each.subset

    @rule(room=st.fixed_dictionaries({name: st.integers(0, 2) for name in REPLICAS}), freed=st.sampled_from(["", "r2"]))
    def look(self, room: dict[str, int], freed: str) -> None:
        """Exactly those are let in whom the rules name, in that order."""
        self.room = dict(room)
        expected = self.predict(dict(room), freed)

        def take(place: Place[str]) -> str | None:
            for name in place.subset or REPLICAS:
                if self.room[name]:
                    self.room[name] -= 1
                    return name
            return None

        ended = self.line.look(take, self.now_ns, replica_id=freed)
        assert [(place, place.end, place.granted) for place in ended] == expected

    def predict(self, room: dict[str, int], freed: str) -> list[tuple[Place[str], End, str | None]]:
        """What must come of a look."""
        result: list[tuple[Place[str], End, str | None]] = []
        closed: set[Subset] = set()
        while True:
            heads: dict[tuple[int, str, Subset], Naive] = {}
            for each in self.waiting:
                row = (each.rank, each.tenant, each.subset)
                if each.subset not in closed and (not freed or not each.subset or freed in each.subset):
                    heads[row] = min(heads.get(row, each), each, key=lambda one: one.due)
            if not heads:
                return result
            first = min(heads.values(), key=lambda one: (one.rank, self.counters[one.tenant], one.due[1]))
            if first.deadline_ns <= self.now_ns:
                result.append((first.place, End.LATE, None))
                self.drop(first, served=False)
                continue
            free = [name for name in first.subset or REPLICAS if room[name]]
            if not free:
                closed.add(first.subset)
                continue
            room[free[0]] -= 1
            result.append((first.place, End.LET_IN, free[0]))
            self.drop(first, served=True)

    @invariant()
    def counted(self) -> None:
        """Lengths agree, in all and by tenant."""
        assert len(self.line) == len(self.waiting) <= WAITING_MAX
        assert self.line.waiting() == {name: self.count(name) for name in TENANTS if self.count(name)}


TestLine = LineMachine.TestCase
TestLine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_long_prompt_is_overtaken_for_a_bounded_time() -> None:
    """Shorter prompts overtake a long one for `ageing` times its prefill and not longer."""
    line: WaitingLine[bool] = WaitingLine(ageing=4.0)

    def enter(prefill_s: float, now_s: float) -> Place[bool]:
        return line.enter(
            "a",
            ("r1",),
            rank=0,
            weight=1,
            milli_mu=1,
            prefill_ns=int(prefill_s * 1e9),
            now_ns=int(now_s * 1e9),
            deadline_ns=10**18,
        )

    long, soon, late = enter(1.0, 0.0), enter(0.1, 3.5), enter(0.1, 3.7)
    assert line.look(lambda _: True, 0) == [soon, long, late]


def test_a_flooding_tenant_cannot_keep_others_out() -> None:
    """A full line of one tenant makes room for a newcomer, and refuses only that tenant."""
    line: WaitingLine[bool] = WaitingLine(waiting_max=3)

    def enter(tenant: str) -> Place[bool]:
        return line.enter(tenant, (), rank=0, weight=1, milli_mu=1, prefill_ns=0, now_ns=0, deadline_ns=1)

    flood = [enter("flood") for _ in range(3)]
    with pytest.raises(QuotaExceededError, match="come back") as caught:
        enter("flood")
    assert caught.value.retry_after_s
    assert caught.value.reason is Reason.QUEUE_FULL
    assert enter("calm").displaced is flood[2]
