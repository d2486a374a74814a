from __future__ import annotations

import pytest

from engines.agent.core.key_loads import HALF_LIFE_S, PARTS_MAX, REPORTED_MAX, KeyLoad, KeyLoads, key_part


def test_a_steady_load_reads_as_itself_and_halves_when_it_ends() -> None:
    """Proves the rate: 10 requests of 600 mMU per second are 360,000 mMU per minute, half of it 20 s after the last."""
    loads = KeyLoads()
    for tenth in range(3_000):
        loads.arrive(7, "a", 600, tenth / 10)
        loads.end(7)
    (steady,) = loads.loads(300.0, {})
    assert steady.rate_milli_mu_per_minute == pytest.approx(360_000, rel=0.01)
    (halved,) = loads.loads(300.0 + HALF_LIFE_S, {})
    assert halved.rate_milli_mu_per_minute == pytest.approx(steady.rate_milli_mu_per_minute / 2, abs=1)


def test_what_is_told_of_a_part() -> None:
    """Proves each field: where it begins, what is warm, who is in flight, and whose it is unless two share it."""
    loads = KeyLoads()
    key = 0xABCD_EF01_2345_6789
    loads.arrive(key_part(key), "a", 1_000, 0.0)
    loads.arrive(key_part(key), "a", 1_000, 0.0)
    loads.end(key_part(key))
    loads.arrive(3, "a", 10, 0.0)
    loads.arrive(3, "b", 10, 0.0)
    rate = round(2_000 * 60 * 0.6931471805599453 / HALF_LIFE_S)
    assert loads.loads(0.0, {key_part(key): 512, 5: 64}) == (
        KeyLoad(0xABCD_EF01_2000_0000, rate, 512, 1, "a"),
        KeyLoad(3 << 28, 42, 0, 2, ""),
        KeyLoad(5 << 28, 0, 64, 0, ""),
    )


def test_the_heaviest_are_reported_and_the_coldest_forgotten() -> None:
    """Proves both bounds: a report holds the heaviest parts, and memory the hottest, but never forgets who is in
    flight."""
    loads = KeyLoads()
    loads.arrive(10**6, "old", 1, 0.0)
    for part in range(20_000):
        loads.arrive(part, "a", 1 + part, 1.0)
        loads.end(part)
    assert len(loads) <= PARTS_MAX + 1_024 + 1
    told = loads.loads(1.0, {})
    assert len(told) == REPORTED_MAX
    assert [each.first_key >> 28 for each in told] == list(range(19_999, 19_999 - REPORTED_MAX, -1))
    loads.end(10**6)


def test_many_in_flight_are_all_remembered_at_little_cost() -> None:
    """Proves that forgetting stays rare although nobody can be forgotten."""
    loads = KeyLoads()
    for part in range(30_000):
        loads.arrive(part, "a", 1, 0.0)
    assert len(loads) == 30_000
    for part in range(30_000):
        loads.end(part)
    for part in range(30_000, 32_000):
        loads.arrive(part, "a", 9, 0.0)
        loads.end(part)
    assert len(loads) <= PARTS_MAX + 1_024 + 1


def test_time_that_stands_still_or_goes_back_does_no_harm() -> None:
    """Proves that a clock that is read out of order neither raises nor blows a rate up."""
    loads = KeyLoads()
    loads.arrive(1, "a", 100, 10.0)
    loads.arrive(1, "a", 100, 5.0)
    (told,) = loads.loads(5.0, {})
    assert told.rate_milli_mu_per_minute == round(200 * 60 * 0.6931471805599453 / HALF_LIFE_S)
