"""The waiting line against a naive model: one list, searched anew for every decision."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from data_plane.router.core.waiting_group import End, Place, Subset
from data_plane.router.core.waiting_line import WaitingLine
from fairlead.errors import QuotaExceededError, Reason

MS = 1_000_000
NS_PER_MINUTE = 60_000_000_000
TENANTS = "abcd"
SUBSETS: tuple[Subset, ...] = (("r1",), ("r1", "r2"), ("r2", "r3"), ("r3",), ())
REPLICAS = ("r1", "r2", "r3")
WAITING_MAX = 6
AGEING = 4.0
NOBODY: frozenset[str] = frozenset()
EXCLUDED = (NOBODY, NOBODY, frozenset({"r2"}))
NO = "no replica"
"""What is said to a place instead of giving it a replica."""


@dataclass
class Naive:
    """One waiting request as the model sees it."""

    place: Place[str]
    tenant: str
    subset: Subset
    excluded: frozenset[str]
    rank: int
    weight: int
    cost: int
    due: tuple[float, int]
    deadline_ns: int
    entered: int

    def free(self, room: dict[str, int]) -> list[str]:
        """The replicas with room that it may go to."""
        return [name for name in self.place.subset or REPLICAS if room[name] and name not in self.excluded]


class LineMachine(RuleBasedStateMachine):
    """Random arrivals, departures, room and time, with the whole order predicted."""

    def __init__(self) -> None:
        super().__init__()
        self.line: WaitingLine[str] = WaitingLine(
            waiting_max=WAITING_MAX, ageing=AGEING, serves=lambda granted: granted != NO
        )
        self.now_ns = 0
        self.waiting: list[Naive] = []
        self.counters: dict[str, int] = {}
        self.virtual_ns = 0
        self.entered = 0
        self.room = dict.fromkeys(REPLICAS, 0)

    def count(self, tenant: str, rank: int | None = None) -> int:
        return sum(each.tenant == tenant and rank in (None, each.rank) for each in self.waiting)

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
        excluded=st.sampled_from(EXCLUDED),
        rank=st.integers(0, 2),
        weight=st.sampled_from((1_000, 60_000)),
        cost=st.integers(0, 50),
        prefill_ms=st.integers(0, 1_000),
        left_ms=st.integers(0, 3_000),
    )
    def enter(
        self,
        tenant: str,
        subset: Subset,
        excluded: frozenset[str],
        rank: int,
        weight: int,
        cost: int,
        prefill_ms: int,
        left_ms: int,
    ) -> None:
        """Who finds no place is refused, or takes that of a worse rank, or of the tenant with most of its own."""
        deadline_ns = self.now_ns + left_ms * MS
        self.entered += 1
        worst = max((each.rank for each in self.waiting), default=0)
        most = max(self.count(name, worst) for name in TENANTS)
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
                excluded=excluded,
            )
        except QuotaExceededError:
            assert crowded
            assert worst < rank or (worst == rank and most - 1 < self.count(tenant, rank) + 1)
            return
        assert crowded == (place.displaced is not None)
        if place.displaced is not None:
            gone = next(each for each in self.waiting if each.place is place.displaced)
            assert gone.rank == worst >= rank
            assert self.count(gone.tenant, worst) == most
            assert worst > rank or most - 1 >= self.count(tenant, rank) + 1
            rivals = [each for each in self.waiting if (each.tenant, each.rank) == (gone.tenant, worst)]
            assert gone.entered == max(each.entered for each in rivals)
            assert gone.place.end is End.DISPLACED
            self.drop(gone, served=False)
        if not self.count(tenant):
            self.counters[tenant] = max(self.counters.get(tenant, 0), self.virtual_ns)
        due = (self.now_ns + AGEING * prefill_ms * MS, self.entered)
        self.waiting.append(Naive(place, tenant, subset, excluded, rank, weight, cost, due, deadline_ns, self.entered))

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

    @rule(
        room=st.fixed_dictionaries({name: st.integers(0, 2) for name in REPLICAS}),
        freed=st.sampled_from(["", "r2"]),
        newest=st.booleans(),
        told=st.integers(0, 20),
        early=st.integers(0, 3),
    )
    def look(self, room: dict[str, int], freed: str, newest: bool, told: int, early: int) -> None:
        """Exactly those are let in whom the rules name, in that order; who is told something else pays nothing.

        `told` is the number of the arrival that is told that there is no replica; with `early` 0 the policy no longer
        waits for room, and whoever is asked goes to the first replica it may.
        """
        self.room = dict(room)
        newcomer = self.waiting[-1] if newest and self.waiting else None
        numbers = {each.place: each for each in self.waiting}
        expected = self.predict(dict(room), freed, newcomer, told, early == 0)

        def take(place: Place[str]) -> str | None:
            return self.answer(numbers[place], self.room, told, early == 0)

        newly = newcomer.place if newcomer is not None else None
        ended = self.line.look(take, self.now_ns, replica_id=freed, newcomer=newly)
        assert [(place, place.end, place.granted) for place in ended] == expected

    def answer(self, asked: Naive, room: dict[str, int], told: int, early: bool) -> str | None:
        """What a place is answered, and the room it takes."""
        free = asked.free(room)
        if asked.entered == told and free:
            return NO
        if early:
            return "anywhere"
        if not free:
            return None
        room[free[0]] -= 1
        return free[0]

    def predict(
        self, room: dict[str, int], freed: str, newcomer: Naive | None, told: int, early: bool
    ) -> list[tuple[Place[str], End, str | None]]:
        """What must come of a look."""
        result: list[tuple[Place[str], End, str | None]] = []
        closed: set[tuple[Subset, frozenset[str]]] = set()
        while True:
            heads: dict[tuple[int, str, Subset, frozenset[str]], Naive] = {}
            for each in self.waiting:
                row = (each.rank, each.tenant, each.subset, each.excluded)
                if newcomer is not None:
                    asked = row[2:] == (newcomer.subset, newcomer.excluded)
                else:
                    asked = not freed or not each.subset or freed in each.subset
                if asked and row[2:] not in closed:
                    heads[row] = min(heads.get(row, each), each, key=lambda one: one.due)
            if not heads:
                return result
            first = min(heads.values(), key=lambda one: (one.rank, self.counters[one.tenant], one.due[1]))
            if first.deadline_ns <= self.now_ns:
                result.append((first.place, End.LATE, None))
                self.drop(first, served=False)
                continue
            answer = self.answer(first, room, told, early)
            if answer is None:
                closed.add((first.subset, first.excluded))
                continue
            result.append((first.place, End.LET_IN, answer))
            self.drop(first, served=answer != NO)

    @invariant()
    def counted(self) -> None:
        """Lengths agree, in all and by tenant."""
        assert len(self.line) == len(self.waiting) <= WAITING_MAX
        assert self.line.waiting() == {name: self.count(name) for name in TENANTS if self.count(name)}
        for name in REPLICAS:
            expected = any(not each.subset or name in each.subset for each in self.waiting)
            assert self.line.shared((name,)) == expected


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


def waiting_in(line: WaitingLine[str], tenant: str, subset: Subset, *, rank: int = 1) -> Place[str]:
    """Somebody comes at time 0, with a minute."""
    return line.enter(
        tenant, subset, rank=rank, weight=60_000, milli_mu=60_000, prefill_ns=0, now_ns=0, deadline_ns=NS_PER_MINUTE
    )


def test_a_look_asks_once_per_subset_and_a_bounded_number_of_them() -> None:
    """However many wait, a newcomer asks for itself only, and regular looks take turns among the subsets."""
    line: WaitingLine[str] = WaitingLine(groups_max=4)
    for number in range(300):
        last = waiting_in(line, f"t{number}", (f"r{number % 10}",))
    asked: list[Subset] = []

    def take(place: Place[str]) -> str | None:
        asked.append(place.subset)
        return None

    assert line.look(take, 0, newcomer=last) == []
    assert asked == [("r9",)]
    asked.clear()
    for _ in range(5):
        assert line.look(take, 0) == []
    assert len(asked) == 20
    assert {*asked} == {(f"r{number}",) for number in range(10)}
    asked.clear()
    assert line.look(take, 0, replica_id="r3") == []
    assert asked == [("r3",)]
    assert line.look(take, 0, replica_id="r3", worthwhile=lambda: False) == []
    assert asked == [("r3",)]


def test_batch_gives_its_place_to_others_and_never_takes_theirs() -> None:
    """One tenant's batch is displaced by its own interactive requests too; batch that comes then is refused."""
    line: WaitingLine[str] = WaitingLine(waiting_max=2)
    batch = [waiting_in(line, "a", (), rank=2) for _ in range(2)]
    assert waiting_in(line, "a", ()).displaced is batch[1]
    assert waiting_in(line, "a", ()).displaced is batch[0]
    with pytest.raises(QuotaExceededError):
        waiting_in(line, "b", (), rank=2)


def test_what_is_not_a_replica_costs_no_turn() -> None:
    """A tenant whose request is told that it is too late is not set back behind others for it."""
    line: WaitingLine[str] = WaitingLine(serves=lambda granted: granted != NO)
    places = [waiting_in(line, "a", ()), waiting_in(line, "a", ()), waiting_in(line, "b", ())]
    answers = iter((NO, "r1", None))
    assert line.look(lambda _: next(answers), 0) == places[:2]
    assert [place.granted for place in places] == [NO, "r1", None]
