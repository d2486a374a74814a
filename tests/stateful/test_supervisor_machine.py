"""The supervisor's decisions against worlds of processes that start, hang, die and end as they like."""

from __future__ import annotations

import math
from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from data_plane.supervisor.core.crew import Action, Crew, Kill, Leave, Phase, RollEnded, Start, Why
from data_plane.supervisor.core.patience import BACKOFF_MAX_S, Patience

PATIENCE = Patience(start_s=20.0, hang_s=5.0, drain_s=10.0)
LONG_S = 2 * (PATIENCE.start_s + PATIENCE.drain_s + BACKOFF_MAX_S)


class Machine(RuleBasedStateMachine):
    """Processes are kept naively, by what the crew was told and what it asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.alive: dict[int, Start] = {}
        self.serving: set[int] = set()
        self.asked: set[int] = set()
        self.killed: set[int] = set()
        self.started_s: dict[int, deque[float]] = {}
        self.rolled: list[int | None] = []
        self.rolls = 0

    @initialize(slots=st.integers(1, 3))
    def begin(self, slots: int) -> None:
        self.crew = Crew(slots, PATIENCE)
        self.started_s = {slot: deque(maxlen=20) for slot in range(slots)}
        self.act()
        assert len(self.alive) == slots

    def act(self) -> None:
        for action in self.crew.step(self.now_s):
            self.obey(action)
        assert self.crew.step(self.now_s) == []
        assert self.crew.next_s() > self.now_s

    def obey(self, action: Action) -> None:
        match action:
            case Start(number, slot, turn, replaces):
                assert not self.crew.stopping
                names = [(each.slot, each.turn) for each in self.alive.values()]
                assert (slot, turn) not in names, "two living processes with one name"
                staying = [n for n, each in self.alive.items() if each.slot == slot and n not in self.asked]
                assert len(staying) == replaces, "a start beside a worker that stays, without replacing it"
                self.alive[number] = action
                self.started_s[slot].append(self.now_s)
            case Leave(number):
                assert number in self.alive
                assert number not in self.asked, "asked twice"
                slot = self.alive[number].slot
                successors = [n for n in self.serving if n != number and self.alive[n].slot == slot]
                assert self.crew.stopping or set(successors) - self.asked, "asked to leave with nobody in its place"
                self.asked.add(number)
                self.serving.discard(number)
            case Kill(number, why):
                assert number in self.alive
                assert number not in self.killed, "killed twice"
                assert why is not Why.NOT_GONE or number in self.asked
                self.killed.add(number)
            case RollEnded(failed):
                self.rolled.append(failed)

    def pick(self, choice: int, among: set[int]) -> int:
        return sorted(among)[choice % len(among)]

    @rule(choice=st.integers(0, 9))
    @precondition(lambda self: self.alive)
    def becomes_ready(self, choice: int) -> None:
        number = self.pick(choice, set(self.alive))
        if number not in self.asked | self.killed:
            self.serving.add(number)
        self.crew.ready(number, self.now_s)
        self.act()

    @rule()
    def everybody_speaks(self) -> None:
        for number in self.alive:
            self.crew.heard(number, self.now_s)
        self.act()

    @rule(choice=st.integers(0, 9), refused=st.booleans())
    @precondition(lambda self: self.alive)
    def ends(self, choice: int, refused: bool) -> None:
        number = self.pick(choice, set(self.alive))
        self.gone(number, refused)
        self.act()

    @rule(choice=st.integers(0, 9))
    @precondition(lambda self: self.alive)
    def is_asked_by_somebody_else(self, choice: int) -> None:
        number = self.pick(choice, set(self.alive))
        self.crew.leaves(number, self.now_s)
        self.asked.add(number)
        self.serving.discard(number)
        self.act()

    @rule(slot=st.integers(0, 2), times=st.integers(1, 4))
    def dies_again_and_again(self, slot: int, times: int) -> None:
        for _ in range(times):
            for number in [n for n, each in self.alive.items() if each.slot == slot and n not in self.asked]:
                self.gone(number, False)
            self.act()

    def gone(self, number: int, refused: bool) -> None:
        del self.alive[number]
        self.serving.discard(number)
        ended = self.crew.ended(number, self.now_s, refused=refused)
        assert ended.expected == (number in self.asked)
        assert 0.0 <= ended.pause_s <= BACKOFF_MAX_S

    @rule()
    def hup(self) -> None:
        self.crew.roll()
        self.rolls += 1
        self.act()

    @rule(later_s=st.floats(0.01, 40.0))
    def time_passes(self, later_s: float) -> None:
        """Nothing happens between two times at which the crew wants to be asked."""
        end_s = self.now_s + later_s
        while (next_s := self.crew.next_s()) <= end_s:
            if next_s - self.now_s > 0.002:
                assert self.crew.step(next_s - 0.001) == []
            self.now_s = next_s
            self.act()
        self.now_s = end_s
        assert self.crew.step(self.now_s) == []

    @rule()
    @precondition(lambda self: not self.crew.stopping)
    def good_times(self) -> None:
        """With processes that do what they are asked to, everything serves soon and every roll is over."""
        for _ in range(int(LONG_S * 4)):
            self.now_s += 0.25
            for number in list(self.alive):
                if number in self.asked | self.killed:
                    self.gone(number, False)
                else:
                    self.crew.ready(number, self.now_s)
                    self.crew.heard(number, self.now_s)
                    self.serving.add(number)
            self.act()
        assert self.crew.rolling is None
        assert self.crew.uncovered() == set()
        assert len(self.alive) == len(self.crew.slots)
        assert all(worker.phase is Phase.READY for worker in self.crew.workers())
        before = set(self.alive)
        self.crew.roll()
        count = len(self.rolled)
        while len(self.rolled) == count:
            self.act()
            covered = {self.alive[number].slot for number in self.serving}
            assert covered == set(range(len(self.crew.slots))), "a roll leaves a slot without a worker"
            for number in list(self.alive):
                if number in self.asked:
                    self.gone(number, False)
                else:
                    self.crew.ready(number, self.now_s)
                    self.serving.add(number)
        assert self.rolled[-1] is None
        assert not before & set(self.alive)

    @rule()
    @precondition(lambda self: not self.crew.stopping)
    def stop(self) -> None:
        self.crew.stop(self.now_s)
        self.act()
        assert set(self.alive) == self.asked & set(self.alive)

    @invariant()
    def starts_are_bounded(self) -> None:
        """No slot spins: of 20 starts in a row, those that nobody asked for take their pauses."""
        for times in self.started_s.values():
            if len(times) == 20 and self.rolls == 0 and not self.asked:
                assert times[-1] - times[0] >= BACKOFF_MAX_S

    @invariant()
    def knows_who_lives(self) -> None:
        if hasattr(self, "crew"):
            assert {worker.number for worker in self.crew.workers()} == set(self.alive)
            assert self.crew.uncovered() == set(range(len(self.crew.slots))) - {
                self.alive[number].slot for number in self.serving - self.killed
            }
            assert self.crew.next_s() < math.inf or not self.alive or self.killed >= set(self.alive)


TestSupervisor = Machine.TestCase
TestSupervisor.settings = settings(max_examples=150, stateful_step_count=40)
