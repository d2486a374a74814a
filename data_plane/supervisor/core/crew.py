"""Which worker is started, asked to leave or killed next. No I/O and no clock: events and the time come in.

Every slot has sockets of its own, which outlive its workers. At most one worker serves a slot and at most one more is
coming to replace it; any number may be leaving. Two processes that live at the same time never have the same name, so a
slot has two, called *turns*, and a replacement takes the other one.

A roll (SIGHUP) replaces slot after slot: start the new worker, wait until it is ready, ask the old one to leave, wait
for its end. A replacement that does not become ready ends the roll, and the old worker serves on: what keeps one from
starting would keep all. A roll that is asked for meanwhile begins afterwards, once however often it was asked for.

A worker that ends without being asked is replaced at once, and after growing pauses while that goes on.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_plane.supervisor.core.patience import SETTLED_S, Patience, pause_s


class Phase(enum.Enum):
    """How far a worker is."""

    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"


class Why(enum.Enum):
    """Why a worker is killed."""

    SILENT = "silent"
    """It says nothing any more."""
    NOT_READY = "not_ready"
    """It did not become ready in time."""
    NOT_GONE = "not_gone"
    """It did not end in time."""


@dataclass(slots=True)
class Worker:
    """One process.

    Attributes:
        number: Its own, never used again.
        slot: Whose sockets it has.
        turn: Which of the slot's two names it has, 0 or 1.
        roll: How many rolls had begun when it was started.
        phase: How far it is.
        since_s: When that phase began.
        heard_s: When it last said something; None before the first time.
        told: Whether it was asked to leave, or began to by itself.
        killed: Why it was killed.
    """

    number: int
    slot: int
    turn: int
    roll: int
    since_s: float
    phase: Phase = Phase.STARTING
    heard_s: float | None = None
    told: bool = False
    killed: Why | None = None


@dataclass(slots=True)
class Slot:
    """What is known of one slot.

    Attributes:
        serving: Its worker, ready or on the way.
        coming: The one that replaces it once it is ready.
        leaving: Those that finish what they have.
        turn: The name of the newest serving worker.
        failures: Ends in a row that nobody asked for.
        again_s: No start before this time.
    """

    serving: Worker | None = None
    coming: Worker | None = None
    leaving: list[Worker] = field(default_factory=list)
    turn: int = 0
    failures: int = 0
    again_s: float = -math.inf

    def workers(self) -> Iterator[Worker]:
        """All of them."""
        yield from (worker for worker in (self.serving, self.coming) if worker is not None)
        yield from self.leaving

    def move_up(self) -> None:
        """Its worker is gone or goes: whoever was coming is the slot's worker now."""
        self.serving, self.coming = self.coming, None
        if self.serving is not None:
            self.turn = self.serving.turn

    def free_turn(self) -> int | None:
        """A name that no living process has, best the last one; None while there is none."""
        taken = {worker.turn for worker in self.workers()}
        return next((turn for turn in (self.turn, 1 - self.turn) if turn not in taken), None)


@dataclass(frozen=True, slots=True)
class Start:
    """Start a process; `replaces` says that another one serves the slot meanwhile."""

    worker: int
    slot: int
    turn: int
    replaces: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """Ask a process to finish what it has and to end."""

    worker: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End a process at once."""

    worker: int
    why: Why


@dataclass(frozen=True, slots=True)
class RollEnded:
    """A roll is over; `failed_slot` is where it was given up, None where every worker was replaced."""

    failed_slot: int | None


Action = Start | Leave | Kill | RollEnded


@dataclass(frozen=True, slots=True)
class Ended:
    """What the end of a worker means.

    Attributes:
        worker: As it was.
        expected: Whether it was asked to end.
        failures: Ends in a row of its slot that nobody asked for.
        pause_s: Until the slot's next start.
    """

    worker: Worker
    expected: bool
    failures: int
    pause_s: float


class Crew:
    """All workers of one supervisor.

    Args:
        slots: How many there are.
        patience: How long it waits for what.

    Attributes:
        stopping: Whether everything ends.
        hopeless: Whether it ends because no worker can start at all.
        rolling: The slot that a roll has reached, or None.
    """

    def __init__(self, slots: int, patience: Patience) -> None:
        self.slots = [Slot() for _ in range(slots)]
        self.stopping = False
        self.hopeless = False
        self.rolling: int | None = None
        self._patience = patience
        self._workers: dict[int, Worker] = {}
        self._last_number = 0
        self._roll = 0
        self._roll_wanted = False
        self._roll_failed_at: int | None = None
        self._ever_ready = False

    # ------------------------------------------------------------------ events

    def ready(self, number: int, now_s: float) -> None:
        """A worker serves."""
        worker = self._heard(number, now_s)
        if worker is None or worker.phase is not Phase.STARTING or worker.killed is not None:
            return
        worker.phase, worker.since_s, self._ever_ready = Phase.READY, now_s, True
        slot = self.slots[worker.slot]
        if slot.coming is worker:
            if slot.serving is not None:
                self._goes(slot, slot.serving, now_s)
            slot.serving, slot.coming, slot.turn = worker, None, worker.turn

    def heard(self, number: int, now_s: float) -> None:
        """A worker is alive."""
        self._heard(number, now_s)

    def leaves(self, number: int, now_s: float) -> None:
        """A worker takes nothing new any more: it was asked to, by whomever."""
        worker = self._heard(number, now_s)
        if worker is not None and worker.phase is not Phase.LEAVING:
            worker.told = True
            self._goes(self.slots[worker.slot], worker, now_s)

    def ended(self, number: int, now_s: float, *, refused: bool = False) -> Ended:
        """A worker's process has ended, or could not be started.

        Args:
            number: Which.
            now_s: When.
            refused: It said why it cannot serve, and would say so again: bad settings, a missing file.

        Returns:
            What that means.
        """
        worker = self._workers.pop(number)
        slot = self.slots[worker.slot]
        expected = worker.phase is Phase.LEAVING
        if slot.coming is worker:
            slot.coming, self._roll_failed_at = None, worker.slot
        elif slot.serving is worker:
            if worker.phase is Phase.READY and now_s - worker.since_s >= SETTLED_S:
                slot.failures = 0
            slot.failures += 1
            slot.again_s = now_s + pause_s(slot.failures)
            slot.move_up()
        else:
            slot.leaving.remove(worker)
        if refused and not self._ever_ready and not self.stopping:
            self.hopeless = True
            self.stop(now_s)
        return Ended(worker, expected, slot.failures, max(0.0, slot.again_s - now_s))

    def roll(self) -> None:
        """All workers are to be replaced."""
        self._roll_wanted = True

    def stop(self, now_s: float) -> None:
        """All workers are to leave, and none is started any more."""
        self.stopping = True
        for slot in self.slots:
            for worker in list(slot.workers()):
                self._goes(slot, worker, now_s)

    def pardon(self, late_s: float) -> None:
        """The supervisor itself stood still that long, and most likely the whole machine: nobody is late for it."""
        for worker in self._workers.values():
            worker.since_s += late_s
            if worker.heard_s is not None:
                worker.heard_s += late_s

    # --------------------------------------------------------------- decisions

    def step(self, now_s: float) -> list[Action]:
        """Decides what is to be done now; what it returns counts as done.

        Args:
            now_s: The time; never before that of an earlier call or event.

        Returns:
            In this order.
        """
        actions: list[Action] = []
        if not self.stopping:
            actions += self._advance_roll(now_s)
            for number, slot in enumerate(self.slots):
                if slot.serving is None and now_s >= slot.again_s and (turn := slot.free_turn()) is not None:
                    slot.serving, start = self._start(number, turn, now_s, replaces=False)
                    slot.turn = turn
                    actions.append(start)
        for worker in self._workers.values():
            if worker.phase is Phase.LEAVING and not worker.told:
                worker.told = True
                actions.append(Leave(worker.number))
            at_s, why = self._limit(worker)
            if now_s >= at_s:
                worker.killed = why
                actions.append(Kill(worker.number, why))
        return actions

    def next_s(self) -> float:
        """When `step` has something to do although nothing happens; infinity for never. To be asked after `step`."""
        times = [self._limit(worker)[0] for worker in self._workers.values()]
        if not self.stopping:
            waiting = (slot for slot in self.slots if slot.serving is None and slot.free_turn() is not None)
            times += [slot.again_s for slot in waiting]
        return min(times, default=math.inf)

    def worker(self, number: int) -> Worker | None:
        """One worker; None once its end is known."""
        return self._workers.get(number)

    def workers(self) -> list[Worker]:
        """Every worker whose end is not known."""
        return list(self._workers.values())

    def uncovered(self) -> frozenset[int]:
        """Slots of which no worker is ready: the others take their connections meanwhile."""
        ready = (worker for worker in self._workers.values() if worker.phase is Phase.READY)
        covered = {worker.slot for worker in ready if worker.killed is None}
        return frozenset(range(len(self.slots))) - covered

    # ------------------------------------------------------------------- parts

    def _heard(self, number: int, now_s: float) -> Worker | None:
        worker = self._workers.get(number)
        if worker is not None:
            worker.heard_s = now_s
        return worker

    def _goes(self, slot: Slot, worker: Worker, now_s: float) -> None:
        """Moves a worker to those that leave."""
        if worker.phase is Phase.LEAVING:
            return
        if slot.serving is worker:
            slot.move_up()
        elif slot.coming is worker:
            slot.coming = None
        worker.phase, worker.since_s = Phase.LEAVING, now_s
        slot.leaving.append(worker)

    def _start(self, slot: int, turn: int, now_s: float, *, replaces: bool) -> tuple[Worker, Start]:
        self._last_number += 1
        worker = Worker(self._last_number, slot, turn, self._roll, now_s)
        self._workers[worker.number] = worker
        return worker, Start(worker.number, slot, turn, replaces)

    def _advance_roll(self, now_s: float) -> Iterator[Action]:
        while self.rolling is not None or self._roll_wanted:
            if self.rolling is None:
                self._roll_wanted, self._roll_failed_at, self.rolling = False, None, 0
                self._roll += 1
            slot = self.slots[self.rolling]
            if self._roll_failed_at is not None or self._never_comes(slot):
                failed, self.rolling, self._roll_failed_at = self.rolling, None, None
                yield RollEnded(failed)
            elif slot.serving is None or slot.coming is not None or slot.leaving:
                return
            elif slot.serving.roll < self._roll:
                slot.coming, start = self._start(self.rolling, 1 - slot.turn, now_s, replaces=True)
                yield start
                return
            elif slot.serving.phase is not Phase.READY:
                return
            else:
                self.rolling = self.rolling + 1 if self.rolling + 1 < len(self.slots) else None
                if self.rolling is None:
                    yield RollEnded(None)

    def _never_comes(self, slot: Slot) -> bool:
        """Whether the slot has lost worker after worker: a roll does not wait for the end of that."""
        return slot.serving is None and slot.failures > 1

    def _limit(self, worker: Worker) -> tuple[float, Why]:
        """When a worker is killed if nothing happens, and why."""
        if worker.killed is not None:
            return math.inf, worker.killed
        if worker.phase is Phase.LEAVING:
            return worker.since_s + self._patience.drain_s, Why.NOT_GONE
        not_ready_s = silent_s = math.inf
        if worker.heard_s is not None:
            silent_s = worker.heard_s + self._patience.hang_s
        if worker.phase is Phase.STARTING and (worker.heard_s is None or self.slots[worker.slot].coming is worker):
            not_ready_s = worker.since_s + self._patience.start_s
        return min((silent_s, Why.SILENT), (not_ready_s, Why.NOT_READY), key=lambda limit: limit[0])
