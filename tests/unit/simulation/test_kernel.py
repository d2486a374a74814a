"""Virtual time: the order of events, the random streams, the timeouts off the heap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simulation.books import TenantBook
from simulation.expiry import Expiry
from simulation.flight import Flight, Tenant
from simulation.kernel import Loop, mix, stream
from simulation.scenario import TenantSpec


@given(st.lists(st.integers(0, 20), max_size=50))
def test_events_run_in_order_of_time_and_then_of_planning(times: list[int]) -> None:
    """Whatever the order of planning, earlier times come first and equal ones in the order they were planned."""
    loop, seen = Loop(), []
    for number, at in enumerate(times):
        loop.at(at, seen.append, (at, number))
    loop.run(10)
    assert seen == sorted((at, number) for number, at in enumerate(times) if at <= 10)
    assert loop.now_ns == 10
    loop.run(20)
    assert len(seen) == loop.events == len(times)


def test_what_an_event_plans_for_now_runs_now() -> None:
    """An event may plan another for the same moment, or for a past one: both run at the present time, after it."""
    loop, seen = Loop(), []
    loop.at(5, lambda _: (loop.at(5, seen.append, "same"), loop.at(1, seen.append, "past")))
    loop.at(5, seen.append, "planned before")
    loop.run(5)
    assert seen == ["planned before", "same", "past"]
    assert loop.monotonic_ns() == 5


def test_streams_are_apart_and_repeatable() -> None:
    """One purpose always draws the same numbers, another one others."""
    assert stream(1, "a", 2).random() == stream(1, "a", 2).random()
    draws = {stream(seed, *path).random() for seed in (1, 2) for path in (("a", 2), ("a", 3), ("b",))}
    assert len(draws) == 6
    assert len({mix(number) % 7 for number in range(50)}) == 7


@given(st.lists(st.tuples(st.sampled_from([5, 50]), st.integers(0, 3), st.booleans()), max_size=40))
def test_timeouts_expire_when_they_are_due_and_only_those_that_wait(steps: list[tuple[int, int, bool]]) -> None:
    """Against a plain list: who waits longer than his limit is taken out at the next look, once, and nobody else."""
    tenant = Tenant(TenantSpec(id="t", model="m"), TenantBook())
    expiry, naive, now_ns = Expiry(), [], 0
    for number, (limit_ns, passed_ns, leaves) in enumerate(steps):
        now_ns += passed_ns
        flight = Flight(number, tenant, 1, 1)
        flight.arrived_ns = now_ns
        expiry.add(flight, limit_ns)
        if leaves:
            expiry.discard(flight, limit_ns)
            expiry.discard(flight, limit_ns)
        else:
            naive.append((flight, limit_ns))
        due = {flight.number for flight, limit in naive if now_ns - flight.arrived_ns >= limit}
        assert {flight.number for flight in expiry.expired(now_ns)} == due
        naive = [(flight, limit) for flight, limit in naive if flight.number not in due]
        assert len(expiry) == len(naive)
