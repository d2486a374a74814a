"""Virtual time between tenants: shares by weight, no credit for pauses, bounded state."""

from __future__ import annotations

from collections import Counter, deque
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_units.virtual_time import NS_PER_MINUTE, VirtualTime


class Line:
    """Requests of several tenants that wait for one server; sums what each was served."""

    def __init__(self, time: VirtualTime, weights: dict[str, int]) -> None:
        self.time = time
        self.weights = weights
        self.next = time.next
        self.orders = 0
        self.waiting: dict[str, deque[tuple[int, int]]] = {name: deque() for name in weights}
        self.served: Counter[str] = Counter()
        self.count = 0

    def send(self, tenant: str, *milli_mu: int) -> None:
        for each in milli_mu:
            self.orders += 1
            self.waiting[tenant].append((self.orders, each))
            if len(self.waiting[tenant]) == 1:
                self.time.wait(tenant, self.orders)

    def serve(self, times: int = 1) -> list[str]:
        """Serves the next requests to their ends."""
        chosen = []
        for _ in range(times):
            tenant = self.next()
            assert tenant is not None
            _, milli_mu = self.waiting[tenant].popleft()
            following = self.waiting[tenant][0][0] if self.waiting[tenant] else None
            self.time.serve(tenant, milli_mu, self.weights[tenant], following)
            self.time.end(tenant, 0, self.weights[tenant])
            self.served[tenant] += milli_mu
            chosen.append(tenant)
        return chosen


def test_equals_take_turns_and_a_newcomer_stands_level() -> None:
    """Proves the worked example: a and b take turns; c, which comes later, gets its third and nothing for before."""
    line = Line(VirtualTime(), {"a": 60_000, "b": 60_000, "c": 60_000})
    line.send("a", *[1_000] * 10)
    line.send("b", *[1_000] * 10)
    assert line.serve(6) == ["a", "b"] * 3
    line.send("c", *[1_000] * 10)
    later = Counter(line.serve(9))
    assert later == {"a": 3, "b": 3, "c": 3}


def test_weights_are_shares() -> None:
    """Proves that a tenant of three times the weight is served three times the work."""
    line = Line(VirtualTime(), {"small": 10_000, "large": 30_000})
    line.send("small", *[500] * 100)
    line.send("large", *[500] * 100)
    assert Counter(line.serve(80)) == {"small": 20, "large": 60}


def test_a_pause_earns_nothing() -> None:
    """Proves that who was away while another was served a hundred requests does not get a hundred in a row."""
    line = Line(VirtualTime(), {"busy": 1, "away": 1})
    line.send("away", 10)
    line.send("busy", *[10] * 200)
    line.serve(100)
    line.send("away", *[10] * 50)
    assert line.serve(10).count("away") <= 6


def test_one_request_does_not_wash_off_what_was_served() -> None:
    """Proves that a tenant cannot get ahead by leaving between its requests: its advance is remembered while it is."""
    time = VirtualTime()
    line = Line(time, {"a": 1, "b": 1})
    line.send("b", *[10] * 20)
    line.send("a", 1_000)
    line.serve(2)
    line.send("a", 10)
    assert line.serve(19) == ["b"] * 19


def test_estimates_are_put_right() -> None:
    """Proves that a request that cost more than it was charged is paid for by its tenant's next ones, and the other
    way round."""
    time = VirtualTime()
    time.wait("a", 1)
    time.wait("b", 2)
    time.serve("a", 100, NS_PER_MINUTE, 3)
    time.serve("b", 100, NS_PER_MINUTE, 4)
    time.end("a", 50, NS_PER_MINUTE)
    assert time.next() == "b"
    time.end("b", 75, NS_PER_MINUTE)
    assert time.next() == "a"
    time.serve("a", 1, NS_PER_MINUTE, None)
    assert (time.counter_ns("a"), time.counter_ns("b")) == (151, 175)


def test_idle_means_empty() -> None:
    """Proves that nobody is remembered when nobody waits or is in service, and everybody stands level afterwards."""
    time = VirtualTime()
    line = Line(time, {"a": 1, "b": 1})
    line.send("a", 10_000)
    line.serve()
    assert len(time) == 0
    line.send("a", 10)
    line.send("b", 10)
    assert line.serve(2) == ["a", "b"]


def test_strangers_do_not_pile_up() -> None:
    """Proves that a million tenants of one request each leave no more than the stated number behind."""
    time = VirtualTime(ahead_max=50)
    time.wait("waits", 0)
    for number in range(1, 5_000):
        name = f"t{number}"
        time.wait(name, number)
        time.serve(name, 10, 1, None)
        time.end(name, 0, 1)
        assert len(time) <= 52
    assert time.next() == "waits"


def test_who_leaves_the_line_is_not_chosen() -> None:
    """Proves that a tenant whose last request left without service is passed over."""
    time = VirtualTime()
    time.wait("a", 1)
    time.wait("b", 2)
    time.rest("a")
    assert time.next() == "b"
    time.rest("b")
    assert (time.next(), len(time)) == (None, 0)


@settings(max_examples=150, deadline=None)
@given(
    weights=st.lists(st.integers(1, 1_000), min_size=2, max_size=5),
    sizes=st.lists(st.lists(st.integers(0, 5_000), min_size=5, max_size=40), min_size=5, max_size=5),
    rounds=st.integers(1, 60),
)
def test_two_that_wait_all_the_time_differ_by_one_request_each(
    weights: list[int], sizes: list[list[int]], rounds: int
) -> None:
    """Proves the stated bound for every pair that waits all the time, whoever else comes, that somebody is served as
    long as anybody waits, and that each tenant's requests go in their order."""
    names = [f"t{number}" for number in range(len(weights))]
    line = Line(VirtualTime(), dict(zip(names, weights, strict=True)))
    for name, own in zip(names, sizes, strict=False):
        line.send(name, *own)
    for _ in range(min(rounds, sum(map(len, line.waiting.values())))):
        line.serve()
        always = [name for name in names if line.waiting[name]]
        for one in always:
            for other in always:
                assert abs(_share(line, one) - _share(line, other)) <= _largest(sizes, names, weights, one) + _largest(
                    sizes, names, weights, other
                )
    assert line.time.next() is not None or not any(line.waiting.values())


def test_the_bound_can_be_missed() -> None:
    """Proves that the check above sees a comparator that is unfair: first come first served exceeds the bound."""
    line = Line(VirtualTime(), {"a": 1, "b": 1})
    line.send("a", *[10] * 20)
    line.send("b", *[10] * 20)
    line.next = lambda: min((name for name in "ab" if line.waiting[name]), key=lambda name: line.waiting[name][0])
    line.serve(10)
    assert abs(_share(line, "a") - _share(line, "b")) > 20


@pytest.mark.parametrize("weight", [0, -5])
def test_no_weight_counts_as_one(weight: int) -> None:
    """Proves that a weight nobody set does not divide by zero and does not stand still."""
    time = VirtualTime()
    time.wait("a", 1)
    time.serve("a", 1, weight, 2)
    assert time.counter_ns("a") == NS_PER_MINUTE


def _share(line: Line, name: str) -> Fraction:
    return Fraction(line.served[name], line.weights[name])


def _largest(sizes: list[list[int]], names: list[str], weights: list[int], name: str) -> Fraction:
    at = names.index(name)
    # Counters are whole nanoseconds: every request may be rounded by one.
    return Fraction(max(sizes[at]), weights[at]) + Fraction(len(sizes[at]), NS_PER_MINUTE)
