"""The export of usage and its retention, on a store in memory."""

from __future__ import annotations

from typing import Any

import pytest

from common import keys
from common.clock import NS_PER_S, FakeClock
from common.memory_store import MemoryStore
from common.store import Expect
from control_plane.core.usage import hour_name, hour_of
from control_plane.usage import BATCH_ROWS, UNWRITTEN_NS, UsageService
from control_plane.usage_retention import UsageRetention
from fairlead.admin.v1 import admin_pb2, usage_pb2
from fairlead.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, Reason
from tests.unit.control_plane.usage_lab import counts_of, write_table

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
    assert answer.complete_until_time.ToNanoseconds() == NOW_S * NS_PER_S - UNWRITTEN_NS


async def test_router_that_vanished_bounds_completeness(lab: Lab) -> None:
    """What a router that is gone may not have written is not promised; a registered one is believed."""
    await write_table(lab.store, HOUR_S, {("a", "x"): ONE}, router="gone", write_s=NOW_S - 300)
    await write_table(lab.store, HOUR_S - 3600, {("a", "x"): ONE}, router="live", write_s=NOW_S - 2_000)
    lab.routers["live"] = admin_pb2.ServiceInstance(instance_id="live")
    (answer,) = await lab.answers()
    assert answer.complete_until_time.ToNanoseconds() == (NOW_S - 300) * NS_PER_S - UNWRITTEN_NS


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
