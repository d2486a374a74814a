"""Rounds of the sharder one after another, each of them checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from control_plane.core.sharding.assigner import Assigner
from control_plane.core.sharding.values import Cause, Placement, Round, View
from tests.support.sharder_checks import Purse, Seats, wrong_with_change, wrong_with_placement, wrong_with_sizes
from tests.support.sharder_world import World

ROUND_MS: Final = 15_000
"""control_plane's time between two regular rounds."""
ALWAYS: Final = 1_000_000_000
AGAIN: Final = 0.25
"""Part of the health rounds that are asked for a second time, which must change nothing."""


class Rounds(Protocol):
    """An assigner, or one with a mistake."""

    def round(self, view: View, previous: Placement | None, *, incarnation: int, now_ms: int, balance: bool) -> Round:
        """See Assigner."""


class Driver:
    """One model's sharder over a world.

    Args:
        world: Fleet and tenants.
        make: Makes assigners.
        twin_rounds: For so many rounds a second one is told the same in another order, and must answer the same.

    Attributes:
        placement: In force.
        past: All placements there were.
        causes: Load moved so far, mMU per minute, by cause.
    """

    def __init__(self, world: World, make: Callable[[], Rounds] = Assigner, *, twin_rounds: int = ALWAYS) -> None:
        self.world = world
        self.placement: Placement | None = None
        self.past: list[Placement] = []
        self.causes: Counter[Cause] = Counter()
        self._incarnation = 1
        self._assigner, self._twin, self._twin_rounds = make(), make(), twin_rounds
        self._purse, self._seats = Purse(), Seats()

    def lose(self) -> None:
        """The store is empty and nobody remembers: the next round starts from nothing."""
        self.placement = None
        self._incarnation += 1

    def go_back(self) -> None:
        """The store holds an older placement again."""
        if self.past:
            self.placement = self.world.random.choice(self.past)

    def regular(self, noise: float = 0.0) -> Placement:
        """A regular round after its pause, on honest reports; there must be replicas."""
        self.world.now_ms += ROUND_MS
        return self._in_force(self.world.view(self.placement, noise), balance=True)

    def health(self) -> Placement:
        """A health round a second later, on honest reports; there must be replicas."""
        self.world.now_ms += 1_000
        return self._in_force(self.world.view(self.placement), balance=False)

    def _in_force(self, view: View, *, balance: bool) -> Placement:
        self.round(view, balance=balance)
        assert self.placement is not None
        return self.placement

    def round(self, view: View, *, balance: bool) -> Placement | None:
        """One round.

        Args:
            view: What the sharder sees.
            balance: Whether it is a regular one.

        Returns:
            What it changed, as the sharder would write it.

        Raises:
            AssertionError: Something that must hold does not; it says what.
        """
        old, done = self.placement, self._ask(view, balance=balance)
        new = done.placement
        if not view.servers:
            assert new is None, "an empty view is not 'everyone is dead'"
            return None
        in_force = new or old
        assert in_force is not None, "replicas, and no placement"
        wrong = list(wrong_with_placement(in_force, view, self.world.now_ms))
        if new is not None and old is not None:
            wrong += wrong_with_change(old, new, view, self.world.now_ms, balance=balance)
            if balance:
                wrong += wrong_with_sizes(old, new, view, done.slice_loads)
        if new is not None:
            self.placement = new
            self.past.append(new)
            for move in new.moves:
                self.causes[move.cause] += move.load
            wrong += self._seats.wrong(old, new, view, self.world.now_ms)
        if balance and old is not None:
            wrong += self._purse.wrong(done, view)
        again = not balance and self.world.random.random() < AGAIN
        if again and (more := self._ask(view, balance=False).placement) is not None:
            wrong.append(f"the same round again changes more: {more.reason}, {more.moves[:3]}")
        assert not wrong, f"{len(wrong)} violations at {self.world.now_ms}: " + "\n".join(wrong[:5])
        return new

    def _ask(self, view: View, *, balance: bool) -> Round:
        """Asks the assigner, and its twin."""

        def ask(assigner: Rounds, seen: View) -> Round:
            return assigner.round(
                seen, self.placement, incarnation=self._incarnation, now_ms=self.world.now_ms, balance=balance
            )

        done = ask(self._assigner, view)
        if self._twin_rounds > 0:
            self._twin_rounds -= 1
            assert done == ask(self._twin, self.world.shuffled(view)), "the answer depends on the order of the input"
        return done
