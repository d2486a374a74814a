from __future__ import annotations

from collections import Counter

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
    """Proves both bounds: of more tenants than a report has room for it holds the heaviest, and memory the hottest
    parts, but never forgets who is in flight."""
    loads = KeyLoads()
    loads.arrive(10**6, "old", 1, 0.0)
    for part in range(0, 320_000, 16):
        loads.arrive(part, "a", 1 + part, 1.0)
        loads.end(part)
    assert len(loads) <= PARTS_MAX + 1_024 + 1
    told = loads.loads(1.0, {})
    assert len(told) == REPORTED_MAX
    assert [each.first_key >> 32 for each in told] == list(range(19_999, 19_999 - REPORTED_MAX, -1))
    loads.end(10**6)


@pytest.mark.parametrize("tenants", [64, 300, REPORTED_MAX])
def test_every_tenant_is_told(tenants: int) -> None:
    """Proves that a report with too little room for all parts leaves no tenant and no load out: the hottest keep their
    parts, the coldest become one entry at the tenant's first key, with the sums and the name."""
    loads = KeyLoads()
    for part in range(tenants * 16):
        loads.arrive(part, f"t{part // 16}", 1_000 * (1 + part // 16), 0.0)
    warm = dict.fromkeys(range(tenants * 16), 10)
    told = loads.loads(0.0, warm)
    assert len(told) <= REPORTED_MAX
    assert {each.tenant_id for each in told} == {f"t{tenant}" for tenant in range(tenants)}
    assert all(each.first_key >> 32 == int(each.tenant_id[1:]) for each in told)
    assert sum(each.in_flight for each in told) == tenants * 16
    assert sum(each.warm_tokens for each in told) == tenants * 160
    rates = [sum(each.rate_milli_mu_per_minute for each in told if each.tenant_id == f"t{n}") for n in range(tenants)]
    assert rates == [round(1_000 * (1 + n) * 60 * 0.6931471805599453 / HALF_LIFE_S) * 16 for n in range(tenants)]
    entries = Counter(each.tenant_id for each in told)
    whole = [n for n in range(tenants) if entries[f"t{n}"] == 16]
    assert whole == list(range(tenants - len(whole), tenants)), "the hottest are told part by part"
    assert len(whole) == (REPORTED_MAX - tenants) // 15
    assert loads.loads(0.0, dict(reversed(warm.items()))) == told


def test_a_joined_entry_names_a_tenant_only_where_it_is_one_tenants() -> None:
    """Proves that tenants whose names share keys are not told as one of them."""
    loads = KeyLoads()
    for part in range(REPORTED_MAX):
        loads.arrive(1_600 + part, "big", 10**6, 0.0)
    loads.arrive(1, "a", 10, 0.0)
    loads.arrive(2, "b", 10, 0.0)
    loads.arrive(17, "c", 100, 0.0)
    told = {each.first_key: each.tenant_id for each in loads.loads(0.0, {18: 5})}
    assert (told[0], told[1 << 32]) == ("", "c")


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
