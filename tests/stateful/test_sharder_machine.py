"""The sharder through whatever order of events Hypothesis finds, each round checked; shrunk to the shortest story."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.support.sharder_driver import Driver
from tests.support.sharder_world import PARTS, Demand, World

SEATS = st.integers(0, 7)
SEATS_MAX = 12


class SharderMachine(RuleBasedStateMachine):
    """A small fleet, a few tenants, and a sharder that may forget."""

    @initialize(replicas=st.integers(1, 6), unequal=st.booleans(), load=st.sampled_from([0.05, 0.6, 3.0]))
    def start(self, replicas: int, unequal: bool, load: float) -> None:
        self.world = World(replicas, replicas, unequal=unequal, tenants=4, load=load)
        self.driver = Driver(self.world)

    @rule(seat=SEATS)
    def crash(self, seat: int) -> None:
        self.world.seats[seat % len(self.world.seats)].up = False

    @rule(seat=SEATS)
    def restart(self, seat: int) -> None:
        self.world.restart(self.world.seats[seat % len(self.world.seats)])

    @rule(seat=SEATS, leaving=st.booleans())
    def drain(self, seat: int, leaving: bool) -> None:
        self.world.seats[seat % len(self.world.seats)].leaving = leaving

    @precondition(lambda self: len(self.world.seats) < SEATS_MAX)
    @rule()
    def grow(self) -> None:
        self.world.add_seat()

    @rule(seat=SEATS, capacity=st.sampled_from([0, 1, 50_000, 200_000, 10**12]))
    def calibrate(self, seat: int, capacity: int) -> None:
        """Another capacity; the world itself spreads load by at least 1."""
        self.world.seats[seat % len(self.world.seats)].capacity = max(1, capacity)

    @rule(tenant=st.integers(0, 5), rate=st.sampled_from([0, 1, 10_000, 400_000, 10**9]), hot=st.integers(0, PARTS - 1))
    def demand(self, tenant: int, rate: int, hot: int) -> None:
        weights = [50.0 if part == hot else 1.0 for part in range(PARTS)]
        self.world.tenants[f"tenant-{tenant}"] = Demand(rate, weights)

    @rule(tenant=st.integers(0, 5))
    def leave(self, tenant: int) -> None:
        self.world.tenants.pop(f"tenant-{tenant}", None)

    @rule(seconds=st.sampled_from([1, 15, 61, 400, 700, -120]))
    def wait(self, seconds: int) -> None:
        self.world.now_ms += seconds * 1_000

    @rule()
    def lose(self) -> None:
        self.driver.lose()

    @rule()
    def go_back(self) -> None:
        self.driver.go_back()

    @rule(balance=st.booleans())
    def honest_round(self, balance: bool) -> None:
        self.driver.round(self.world.view(self.driver.placement), balance=balance)

    @rule(balance=st.booleans())
    def round_of_nonsense(self, balance: bool) -> None:
        self.driver.round(self.world.nonsense(self.world.view(self.driver.placement)), balance=balance)


TestSharder = SharderMachine.TestCase
TestSharder.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
