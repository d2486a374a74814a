"""The supervisor's decisions: replacing, backing off, rolling, giving up."""

from __future__ import annotations

import math

import pytest

from data_plane.supervisor.core.crew import Action, Crew, Kill, Leave, Phase, RollEnded, Start, Why
from data_plane.supervisor.core.patience import BACKOFF_MAX_S, SETTLED_S, Patience, pause_s

PATIENCE = Patience(start_s=60.0, hang_s=15.0, drain_s=40.0)


class Play:
    """A crew and the time."""

    def __init__(self, slots: int) -> None:
        self.crew = Crew(slots, PATIENCE)
        self.now_s = 100.0

    def step(self, later_s: float = 0.0) -> list[Action]:
        self.now_s += later_s
        return self.crew.step(self.now_s)

    def ready(self, *workers: int) -> None:
        for worker in workers:
            self.crew.ready(worker, self.now_s)

    def ended(self, worker: int, *, refused: bool = False) -> None:
        self.crew.ended(worker, self.now_s, refused=refused)


@pytest.fixture
def play() -> Play:
    """Two workers that serve."""
    play = Play(2)
    assert play.step() == [Start(1, 0, 0, False), Start(2, 1, 0, False)]
    play.ready(1, 2)
    assert play.step() == []
    return play


def test_a_roll_replaces_one_after_the_other(play: Play) -> None:
    """The new one comes first, the old one leaves when it is ready, and the next slot waits for the old one's end."""
    play.crew.roll()
    assert play.step() == [Start(3, 0, 1, True)]
    assert play.step(5.0) == []
    play.ready(3)
    assert play.step() == [Leave(1)]
    assert play.step(5.0) == []
    play.ended(1)
    assert play.step() == [Start(4, 1, 1, True)]
    play.ready(4)
    assert play.step() == [Leave(2)]
    play.ended(2)
    assert play.step() == [RollEnded(None)]
    assert [worker.turn for worker in play.crew.workers()] == [1, 1]
    play.crew.roll()
    assert play.step() == [Start(5, 0, 0, True)]


def test_a_roll_asked_for_twice_meanwhile_follows_once(play: Play) -> None:
    """However often SIGHUP comes during a roll, one more roll follows."""
    play.crew.roll()
    number = 2
    for asked in (2, 0):
        for old in (number - 1, number):
            (start, *_) = [action for action in play.step() if isinstance(action, Start)]
            for _ in range(asked):
                play.crew.roll()
            play.ready(start.worker)
            assert play.step() == [Leave(old)]
            play.ended(old)
        number += 2
    assert play.step() == [RollEnded(None)]
    assert play.step(1000.0) == [Kill(5, Why.SILENT), Kill(6, Why.SILENT)]  # nothing but the silence of this test


def test_a_worker_that_leaves_by_itself_while_its_replacement_comes_is_replaced_once(play: Play) -> None:
    """It was going anyway: nobody else is started beside the one on its way, and the roll goes on with that."""
    play.crew.roll()
    assert play.step() == [Start(3, 0, 1, True)]
    play.crew.leaves(1, play.now_s)
    assert play.step() == []
    play.ended(1)
    assert play.step() == []
    play.ready(3)
    assert play.step() == [Start(4, 1, 1, True)]


@pytest.mark.parametrize("how", ["dies", "never ready"])
def test_a_replacement_that_does_not_come_up_leaves_the_old_one(play: Play, how: str) -> None:
    """The roll ends there and is said; the old worker was not touched, nor the slots after it."""
    play.crew.roll()
    assert play.step() == [Start(3, 0, 1, True)]
    if how == "never ready":
        for _ in range(59):
            play.now_s += 1.0
            for worker in (1, 2, 3):
                play.crew.heard(worker, play.now_s)
            assert play.step() == []
        assert play.crew.next_s() == pytest.approx(play.now_s + 1.0)
        assert play.step(1.0) == [Kill(3, Why.NOT_READY)]
    play.ended(3)
    assert play.step() == [RollEnded(0)]
    assert [(worker.number, worker.phase) for worker in play.crew.workers()] == [(1, Phase.READY), (2, Phase.READY)]


def test_an_old_worker_that_dies_during_its_roll_is_not_started_again(play: Play) -> None:
    """The one that was coming takes the slot, and the roll goes on with it."""
    play.crew.roll()
    play.step()
    play.ended(1)
    assert play.step() == []
    assert play.crew.uncovered() == {0}
    play.ready(3)
    assert play.step() == [Start(4, 1, 1, True)]
    assert play.crew.uncovered() == set()


def test_a_worker_that_dies_is_replaced_at_once_then_after_growing_pauses(play: Play) -> None:
    """Under the same name; the pauses end with a worker that has served a while."""
    number, pauses = 1, []
    for _ in range(10):
        ended = play.crew.ended(number, play.now_s)
        assert not ended.expected
        pauses.append(ended.pause_s)
        if ended.pause_s:
            assert play.step(ended.pause_s * 0.99) == []
            assert play.crew.next_s() == pytest.approx(play.now_s + ended.pause_s * 0.01)
        (start,) = [action for action in play.step(ended.pause_s) if isinstance(action, Start)]
        assert (start.slot, start.turn, start.replaces) == (0, 0, False)
        number = start.worker
        for other in (2, number):
            play.crew.heard(other, play.now_s)
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    play.ready(number)
    play.now_s += SETTLED_S
    assert play.crew.ended(number, play.now_s).pause_s == 0.0


def test_pauses_are_bounded() -> None:
    """However often it fails."""
    assert pause_s(10_000) == BACKOFF_MAX_S


def test_silence_kills(play: Play) -> None:
    """A worker that says nothing for so long is killed, and replaced once it has ended."""
    play.now_s += 10.0
    play.crew.heard(2, play.now_s)
    assert play.crew.next_s() == pytest.approx(play.now_s + 5.0)
    assert play.step(4.9) == []
    assert play.step(0.2) == [Kill(1, Why.SILENT)]
    assert play.crew.uncovered() == {0}
    assert play.step(1.0) == []
    play.ended(1)
    assert play.step() == [Start(3, 0, 0, False)]


def test_nobody_is_late_where_the_machine_stood_still(play: Play) -> None:
    """The supervisor that wakes up late forgives as much."""
    play.now_s += 100.0
    play.crew.pardon(90.0)
    assert play.step() == []
    assert play.step(5.1) == [Kill(1, Why.SILENT), Kill(2, Why.SILENT)]


def test_a_worker_alone_may_take_its_time() -> None:
    """Where nothing else serves, one that waits for its configuration is not killed as long as it is alive."""
    play = Play(1)
    play.step()
    for _ in range(500):
        play.now_s += 1.0
        play.crew.heard(1, play.now_s)
        assert play.step() == []


def test_a_worker_that_never_says_anything_is_killed() -> None:
    """Its start is over after a while, heard or not."""
    play = Play(1)
    play.step()
    assert play.step(59.0) == []
    assert play.step(1.0) == [Kill(1, Why.NOT_READY)]


def test_a_worker_that_somebody_else_asked_to_leave_is_replaced_under_the_other_name(play: Play) -> None:
    """kill WORKER_PID: it drains, and its slot is served again at once; with both names taken the slot waits."""
    play.crew.leaves(1, play.now_s)
    assert play.step() == [Start(3, 0, 1, False)]
    play.crew.leaves(3, play.now_s)
    assert play.step() == []
    assert play.crew.next_s() > play.now_s
    play.ended(1)
    assert play.step() == [Start(4, 0, 0, False)]


def test_stopping_asks_everybody_and_kills_who_stays(play: Play) -> None:
    """Also who is just starting; nothing is started any more."""
    play.crew.roll()
    play.step()
    play.crew.stop(play.now_s)
    assert play.step() == [Leave(1), Leave(2), Leave(3)]
    play.ended(1)
    play.ended(3)
    assert play.step(39.0) == []
    assert play.step(1.0) == [Kill(2, Why.NOT_GONE)]
    play.ended(2)
    assert play.step(100.0) == []
    assert (play.crew.workers(), play.crew.next_s()) == ([], math.inf)


def test_what_cannot_start_at_all_is_given_up() -> None:
    """A first worker that says why it cannot serve ends everything; after a ready one it is only replaced."""
    play = Play(2)
    play.step()
    play.ended(1, refused=True)
    assert play.crew.hopeless
    assert play.step() == [Leave(2)]
    again = Play(1)
    again.step()
    again.ready(1)
    again.ended(1, refused=True)
    assert not again.crew.hopeless
    assert again.step() == [Start(2, 0, 0, False)]


def test_a_roll_does_not_wait_for_a_slot_that_never_comes_up(play: Play) -> None:
    """A slot whose workers die one after the other ends the roll there."""
    play.crew.roll()
    play.step()
    play.ended(1)
    play.ended(3)
    assert play.step() == [RollEnded(0)]
