"""The export of usage and its retention, on a store in memory."""

from __future__ import annotations

from typing import Any

import pytest

from common import keys
from common.clock import NS_PER_S, FakeClock
from common.memory_store import MemoryStore
from common.store import Expect
from control_plane.core.usage import hour_name, hour_of
from control_plane.usage import BATCH_ROWS, MARGIN_NS, UsageService
from control_plane.usage_retention import UsageRetention
from fairlead.admin.v1 import admin_pb2, usage_pb2
from fairlead.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, Reason
from tests.unit.control_plane.usage_lab import counts_of, write_state, write_table

DAYS = 35
HOUR_S = hour_of("2026-11-22T19") or 0
NOW_S = HOUR_S + 600
ONE = (1, 100, 20, 30, 400, 500)


class Lab:
    """A service on a store, and what it exports."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = FakeClock(wall_ns=NOW_S * NS_PER_S)
        self.routers: dict[str, admin_pb2.ServiceInstance] = {}
        self.service = UsageService(self.store, lambda: self.routers, self.clock, retention_days=DAYS)

    async def answers(self, **fields: Any) -> list[usage_pb2.ExportUsageResponse]:
        request = usage_pb2.ExportUsageRequest()
        for name, value in fields.items():
            if name.endswith("_time"):
                getattr(request, name).seconds = value
            else:
                setattr(request, name, value)
        return [answer async for answer in self.service.ExportUsage(request, None)]

    async def rows(self, **fields: Any) -> list[tuple[str, str, str, tuple[int, ...]]]:
        rows = [row for answer in await self.answers(**fields) for row in answer.rows]
        return [(hour_name(row.hour.seconds), row.model_id, row.tenant_id, counts_of(row)) for row in rows]


@pytest.fixture
def lab() -> Lab:
    return Lab()


async def test_tables_of_all_routers_add_up(lab: Lab) -> None:
    """Routers, their earlier processes and their shards add up per hour, sorted by hour, model and tenant."""
    await write_table(lab.store, HOUR_S, {("b", "x"): ONE, ("a", "y"): ONE})
    await write_table(lab.store, HOUR_S, {("b", "x"): ONE}, incarnation="i2")
    await write_table(lab.store, HOUR_S, {("b", "x"): ONE}, router="r2", shard=3)
    await write_table(lab.store, HOUR_S - 3600, {("a", "y"): ONE}, router="r10")
    thrice = tuple(3 * value for value in ONE)
    before, now = "2026-11-22T18", "2026-11-22T19"
    assert await lab.rows() == [(before, "y", "a", ONE), (now, "x", "b", thrice), (now, "y", "a", ONE)]
    assert await lab.rows(tenant_id="b") == [(now, "x", "b", thrice)]
    assert await lab.rows(model_id="y", end_time=HOUR_S) == [(before, "y", "a", ONE)]
    assert await lab.rows(start_time=HOUR_S + 1) == [(now, "x", "b", thrice), (now, "y", "a", ONE)]


async def test_rows_come_in_batches_of_bounded_size(lab: Lab) -> None:
    """No message holds more than a thousand rows; hours are joined in one; only the first says how complete it is."""
    many = {(f"t{number:04}", "x"): ONE for number in range(1_500)}
    await write_table(lab.store, HOUR_S, many)
    await write_table(lab.store, HOUR_S - 3600, many)
    answers = await lab.answers()
    assert [len(answer.rows) for answer in answers] == [BATCH_ROWS, BATCH_ROWS, BATCH_ROWS]
    assert [answer.HasField("complete_until_time") for answer in answers] == [True, False, False]


async def test_nothing_used_is_an_empty_answer_with_its_time(lab: Lab) -> None:
    """A period without usage is no error, and says up to when that is known."""
    (answer,) = await lab.answers()
    assert not answer.rows
    assert answer.complete_until_time.ToNanoseconds() == NOW_S * NS_PER_S - MARGIN_NS


async def complete_lag_s(lab: Lab) -> float:
    """How old an export says that it is."""
    (answer,) = await lab.answers()
    return NOW_S - answer.complete_until_time.ToNanoseconds() / NS_PER_S


async def test_router_that_cannot_store_its_usage_holds_completeness_back(lab: Lab) -> None:
    """A registered router whose writes have failed for 20 minutes: complete until then, whatever others stored."""
    await write_table(lab.store, HOUR_S, {("a", "x"): ONE}, router="full", write_s=NOW_S - 1_200)
    await write_state(lab.store, NOW_S - 1_200, router="full")
    await write_state(lab.store, NOW_S - 5, router="fine")
    for name in ("full", "fine"):
        lab.routers[name] = admin_pb2.ServiceInstance(instance_id=name)
        lab.routers[name].start_time.seconds = NOW_S - 5_000
    assert await complete_lag_s(lab) == 1_200


async def test_router_that_crashed_hours_ago_holds_completeness_back_until_its_journal_is_stored(lab: Lab) -> None:
    """Three hours later nobody has what it settled last; once its journal is stored nothing is missing."""
    await write_table(lab.store, HOUR_S - 3 * 3600, {("a", "x"): ONE}, router="dead", write_s=NOW_S - 3 * 3600)
    await write_state(lab.store, NOW_S - 3 * 3600, router="dead")
    assert await complete_lag_s(lab) == 3 * 3600
    await write_state(lab.store, NOW_S - 1, router="dead", final=True)
    assert await complete_lag_s(lab) == MARGIN_NS / NS_PER_S


async def test_router_that_left_in_order_holds_nothing_back(lab: Lab) -> None:
    """Scaled in an hour ago with everything stored: what is complete depends on those that work."""
    await write_table(lab.store, HOUR_S - 3600, {("a", "x"): ONE}, router="left", write_s=NOW_S - 3_600)
    await write_state(lab.store, NOW_S - 3_600, router="left", final=True)
    await write_state(lab.store, NOW_S - 45, router="works")
    assert await complete_lag_s(lab) == 45


async def test_router_that_has_said_nothing_yet_counts_from_its_start(lab: Lab) -> None:
    """A new process is not covered by what an earlier one said at its end."""
    await write_state(lab.store, NOW_S - 400, incarnation="before", final=True)
    lab.routers["r1"] = admin_pb2.ServiceInstance(instance_id="r1")
    lab.routers["r1"].start_time.seconds = NOW_S - 300
    assert await complete_lag_s(lab) == 300
    await write_state(lab.store, NOW_S - 30, incarnation="now")
    assert await complete_lag_s(lab) == 30


async def test_damaged_state_leaves_completeness_unsaid_and_usage_exported(lab: Lab) -> None:
    """Rows are exact as ever; up to when they are all of it nobody can know."""
    await write_table(lab.store, HOUR_S, {("a", "x"): ONE})
    key = await write_state(lab.store, NOW_S - 5)
    for damage in (b"\xff\xff", b"", usage_pb2.UsageState(router_id="r2", incarnation_id="i1").SerializeToString()):
        await lab.store.put(key, damage)
        (answer,) = await lab.answers()
        assert len(answer.rows) == 1
        assert not answer.HasField("complete_until_time")


async def test_damage_of_this_hour_refuses_no_older_hour(lab: Lab) -> None:
    """Only the hours asked for matter, also for what is said of completeness."""
    bad = await write_table(lab.store, HOUR_S, {("a", "x"): ONE})
    await lab.store.put(bad, b"\xff\xff")
    await write_table(lab.store, HOUR_S - 7 * 3600, {("a", "x"): ONE})
    await write_state(lab.store, NOW_S - 25)
    (answer,) = await lab.answers(end_time=HOUR_S - 5 * 3600)
    assert len(answer.rows) == 1
    assert answer.complete_until_time.seconds == NOW_S - 25


@pytest.mark.parametrize("damage", ["value", "name", "place"])
async def test_damaged_table_refuses_its_hour_and_no_other(lab: Lab, damage: str) -> None:
    """An export that would not be exact ends with an error that names the key; other hours can be exported."""
    await write_table(lab.store, HOUR_S, {("a", "x"): ONE})
    old_s = HOUR_S - 5 * 3600
    bad = await write_table(lab.store, old_s, {("a", "x"): ONE}, router="r2")
    entry = await lab.store.get(bad)
    assert entry is not None
    if damage == "value":
        await lab.store.put(bad, b"\xff\xff\xff")
    elif damage == "name":
        bad = keys.USAGE + hour_name(old_s) + "/r3/x"
        await lab.store.put(bad, entry.value)
    else:
        bad = keys.usage(hour_name(old_s), "r2", "i1", 7)
        await lab.store.put(bad, entry.value)
    with pytest.raises(FailedPreconditionError, match="no export of its hour can be exact") as refused:
        await lab.rows()
    assert refused.value.metadata["key"] == bad
    assert len(await lab.rows(start_time=HOUR_S)) == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"start_time": NOW_S, "end_time": NOW_S}, "end_time"),
        ({"start_time": NOW_S, "end_time": NOW_S - 1}, "end_time"),
        ({"start_time": NOW_S + 5}, "end_time"),
        ({"start_time": NOW_S - (DAYS + 1) * 86_400}, "start_time"),
        ({"start_time": -1}, "start_time"),
        ({"end_time": 253_402_300_799}, "end_time"),
        ({"tenant_id": "No Tenant"}, "tenant_id"),
        ({"model_id": "a/b"}, "model_id"),
    ],
)
async def test_bad_requests_are_refused_by_name(lab: Lab, fields: dict[str, Any], field: str) -> None:
    """An empty or impossible period, one that is not kept any more, an impossible name."""
    with pytest.raises(InvalidArgumentError) as refused:
        await lab.rows(**fields)
    assert refused.value.field == field


async def test_unknown_names_are_refused_and_deleted_ones_exported(lab: Lab) -> None:
    """A tenant nobody heard of is a mistake; one that was deleted still has its usage; one that is idle has none."""
    await write_table(lab.store, HOUR_S, {("gone", "old"): ONE})
    await lab.store.put(keys.tenant("idle"), b"")
    await lab.store.put(keys.model("fresh"), b"")
    assert len(await lab.rows(tenant_id="gone", model_id="old")) == 1
    assert await lab.rows(tenant_id="idle", model_id="fresh") == []
    with pytest.raises(NotFoundError, match="'typo'") as refused:
        await lab.rows(tenant_id="typo")
    assert refused.value.reason is Reason.UNKNOWN_TENANT
    with pytest.raises(NotFoundError, match="'typo'") as refused:
        await lab.rows(tenant_id="idle", model_id="typo")
    assert refused.value.reason is Reason.UNKNOWN_MODEL


class Leader:
    """A leadership that can be lost."""

    def __init__(self) -> None:
        self.expects = Expect.absent("no such key")

    def fence(self) -> Expect:
        return self.expects


def retention(lab: Lab, leader: Leader) -> UsageRetention:
    return UsageRetention(lab.store, leader, lab.clock, retention_days=DAYS)  # type: ignore[arg-type]  # all it uses


async def write_hours(lab: Lab) -> None:
    for shard in range(130):
        await write_table(lab.store, HOUR_S - (DAYS * 24 + 2) * 3600, {("a", "x"): ONE}, shard=shard)
    await write_table(lab.store, HOUR_S - DAYS * 24 * 3600, {("a", "x"): ONE})
    await write_table(lab.store, HOUR_S, {("a", "x"): ONE})


async def test_old_usage_is_deleted_in_bounded_batches(lab: Lab) -> None:
    """What is past keeping goes, however much it is; the oldest hour that is exported stays."""
    await write_hours(lab)
    assert len(await lab.rows()) == 2
    assert await retention(lab, Leader()).sweep() == 130
    assert len((await lab.store.list(keys.USAGE)).entries) == 2
    assert len(await lab.rows()) == 2


async def test_states_are_forgotten_with_the_usage_they_tell_of(lab: Lab) -> None:
    """Processes whose last word is older than what is kept go, ended or not; what cannot be read stays to be seen."""
    await write_hours(lab)
    past_s = NOW_S - (DAYS * 24 + 2) * 3600
    for number in range(130):
        await write_state(lab.store, past_s, incarnation=f"i{number}", final=number % 2 == 0)
    left = {
        await write_state(lab.store, NOW_S - DAYS * 24 * 3600, router="r2", final=True),
        await write_state(lab.store, NOW_S - 86_400, router="r3"),
        keys.usage_state("r4", "i1"),
    }
    await lab.store.put(keys.usage_state("r4", "i1"), b"\xff")
    assert await retention(lab, Leader()).sweep() == 260
    assert {entry.key for entry in (await lab.store.list(keys.USAGE_STATES)).entries} == left


async def test_deposed_leader_deletes_nothing(lab: Lab) -> None:
    """Every batch carries the fence."""
    await write_hours(lab)
    leader = Leader()
    leader.expects = Expect("no such key", create_revision=7)
    assert await retention(lab, leader).sweep() == 0
    assert len((await lab.store.list(keys.USAGE)).entries) == 132


async def test_clock_that_stepped_ahead_deletes_nothing(lab: Lab) -> None:
    """A leader whose clock is a year ahead takes no usage with it: nothing was written in what it takes for today."""
    await write_hours(lab)
    lab.clock.advance(365 * 86_400)
    assert await retention(lab, Leader()).sweep() == 0
