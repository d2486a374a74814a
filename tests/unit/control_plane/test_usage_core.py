"""Usage adds up exactly, and a table that cannot be true is refused by name."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.core.usage import (
    COUNTER_MAX,
    COUNTERS,
    HourSum,
    TableKey,
    complete_until_ns,
    hour_name,
    hour_of,
    process_key,
    table_key,
    whole_hours,
)
from fairlead.admin.v1 import usage_pb2
from fairlead.errors import FailedPreconditionError

HOUR_S = hour_of("2026-11-22T19") or 0
MINUTE_NS = 60 * 10**9

counts = st.tuples(*(st.integers(0, 1 << 50) for _ in COUNTERS))
rows = st.dictionaries(st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz")), counts, max_size=8)
processes = st.tuples(st.sampled_from(["r1", "r2", "r3"]), st.sampled_from(["i1", "i2"]), st.integers(0, 3))


def table(where: TableKey, found: dict[tuple[str, str], tuple[int, ...]], hour_s: int = HOUR_S) -> usage_pb2.UsageTable:
    """A table as a router writes it."""
    written = usage_pb2.UsageTable(
        router_id=where.router_id, incarnation_id=where.incarnation_id, shard=int(where.shard)
    )
    written.hour.seconds = hour_s
    for (tenant_id, model_id), values in sorted(found.items()):
        written.rows.add(tenant_id=tenant_id, model_id=model_id, **dict(zip(COUNTERS, values, strict=True)))
    return written


def place(router: str = "r1", incarnation: str = "i1", shard: int = 0) -> TableKey:
    """Where a table is."""
    return TableKey("2026-11-22T19", router, incarnation, str(shard))


@given(st.dictionaries(processes, rows, max_size=10), st.sampled_from(["", "a", "d"]), st.sampled_from(["", "x"]))
def test_sum_equals_a_naive_sum(
    tables: dict[tuple[str, str, int], dict[tuple[str, str], tuple[int, ...]]], tenant_id: str, model_id: str
) -> None:
    """Whatever routers wrote, every counter of every tenant and model is the sum of the tables', sorted, once each."""
    summed = HourSum(HOUR_S, tenant_id, model_id)
    naive: Counter[tuple[str, str, str]] = Counter()
    names = set()
    for process, found in tables.items():
        where = place(*process)
        summed.add(where, "key", table(where, found))
        for (tenant, model), values in found.items():
            if tenant_id in ("", tenant) and model_id in ("", model):
                names.add((model, tenant))
                for counter, value in zip(COUNTERS, values, strict=True):
                    naive[model, tenant, counter] += value
    result = list(summed.rows())
    assert [(row.model_id, row.tenant_id) for row in result] == sorted(names)
    assert all(row.hour.seconds == HOUR_S for row in result)
    for row in result:
        assert {c: getattr(row, c) for c in COUNTERS} == {c: naive[row.model_id, row.tenant_id, c] for c in COUNTERS}


ONE = {("a", "x"): (1, 2, 0, 3, 4, 5)}


@pytest.mark.parametrize(
    ("where", "hour_s", "found"),
    [
        (place("r2"), HOUR_S, ONE),
        (place(incarnation="i2"), HOUR_S, ONE),
        (place(shard=1), HOUR_S, ONE),
        (place(), HOUR_S + 3600, ONE),
        (place(), HOUR_S, {("a", "x"): (1, 2, 0, 3, 4, -5)}),
        (place(), HOUR_S, {("", "x"): (1, 2, 0, 3, 4, 5)}),
    ],
)
def test_table_that_cannot_be_true_is_refused_by_name(
    where: TableKey, hour_s: int, found: dict[tuple[str, str], tuple[int, ...]]
) -> None:
    """Another router's, process's, shard's or hour's table, a negative counter, a nameless row: nothing is added."""
    summed = HourSum(HOUR_S)
    with pytest.raises(FailedPreconditionError, match="usage/of/r1"):
        summed.add(place(), "usage/of/r1", table(where, found, hour_s))
    assert not list(summed.rows())


def test_row_named_twice_is_refused() -> None:
    """Two rows of one tenant and model could mean that one of them is old: nobody may guess."""
    doubled = table(place(), ONE)
    doubled.rows.add().CopyFrom(doubled.rows[0])
    with pytest.raises(FailedPreconditionError, match="twice"):
        HourSum(HOUR_S).add(place(), "key", doubled)


def test_sum_beyond_64_bits_is_refused() -> None:
    """A sum that a row cannot hold is named, never wrapped around."""
    summed = HourSum(HOUR_S)
    for router in ("r1", "r2"):
        summed.add(place(router), "key", table(place(router), {("a", "x"): (1, 0, 0, 0, 0, COUNTER_MAX)}))
    with pytest.raises(FailedPreconditionError, match=r"decode_milli_mu of a on x in the hour 2026-11-22T19"):
        list(summed.rows())


@given(st.integers(0, 4_000_000_000))
def test_names_of_hours_are_read_back_and_sort_by_time(second: int) -> None:
    """An hour's name means the hour, and later hours have later names."""
    hour_s = second // 3600 * 3600
    assert hour_of(hour_name(second)) == hour_s
    assert hour_name(hour_s) < hour_name(hour_s + 3600)


@pytest.mark.parametrize("name", ["", "2026-11-22", "2026-11-22T24", "2026-11-22T7", "2026-13-01T00", "x"])
def test_what_is_no_hour_is_not_read_as_one(name: str) -> None:
    """Only the exact form counts."""
    assert hour_of(name) is None
    assert table_key(f"{name}/r/i/0") is None


def test_keys_are_taken_apart() -> None:
    """Four parts, none empty."""
    assert table_key("2026-11-22T19/r1/i1/7") == TableKey("2026-11-22T19", "r1", "i1", "7")
    assert table_key("2026-11-22T19/r1/i1") is None
    assert table_key("2026-11-22T19/r1//7") is None


def test_periods_are_widened_to_whole_hours() -> None:
    """The start goes down and the end up; whole hours stay."""
    assert whole_hours(3600 * 5 + 0.5, 3600 * 6 + 0.5) == (3600 * 5, 3600 * 7)
    assert whole_hours(3600 * 5, 3600 * 6) == (3600 * 5, 3600 * 6)


def state(router: str, minute: int, *, final: bool = False) -> usage_pb2.UsageState:
    """What a process said of itself."""
    said = usage_pb2.UsageState(router_id=router, incarnation_id="i", final=final)
    said.stored_until_time.FromNanoseconds(minute * MINUTE_NS)
    return said


@pytest.mark.parametrize(
    ("states", "registered", "expected"),
    [
        ([], {}, 99),
        ([state("busy", 100)], {"busy": 5}, 99),
        ([state("slow", 80), state("busy", 100)], {"slow": 5, "busy": 5}, 80),
        ([state("dead", 60), state("busy", 100)], {"busy": 5}, 60),
        ([state("dead", 60), state("dead", 99, final=True)], {}, 60),
        ([state("left", 60, final=True)], {}, 99),
        ([state("forgotten", 9)], {}, 99),
        ([state("kept", 10)], {}, 10),
        ([], {"silent": 90}, 90),
        ([state("again", 60, final=True)], {"again": 90}, 90),
        ([state("lingering", 95, final=True)], {"lingering": 90}, 99),
    ],
)
def test_completeness_is_that_of_the_process_furthest_behind(
    states: list[usage_pb2.UsageState], registered: dict[str, int], expected: int
) -> None:
    """Processes that have not ended count by their word, silent ones from their start; ended ones not at all."""
    starts_ns = {router: minute * MINUTE_NS for router, minute in registered.items()}
    found = complete_until_ns(100 * MINUTE_NS, states, starts_ns, oldest_ns=10 * MINUTE_NS, margin_ns=MINUTE_NS)
    assert found == expected * MINUTE_NS


def test_keys_of_states_are_taken_apart() -> None:
    """Two parts, none empty."""
    assert process_key("r1/i1") == ("r1", "i1")
    assert not any(map(process_key, ("r1", "r1/", "/i1", "r1/i1/0")))
