"""A real control plane on a real etcd: usage of several routers is exported, routers' decisions are put together."""

from __future__ import annotations

import time
from collections import Counter

import grpc.aio
import pytest

from common import keys
from fairlead.admin.v1 import admin_pb2, usage_pb2, usage_pb2_grpc
from fairlead.errors import FailedPreconditionError, from_rpc_error
from fairlead.inference.v1 import decision_pb2, decision_pb2_grpc
from tests.integration.control.side import AUTH, Side
from tests.support.decisions import TellingRouter, completed, refused, serving
from tests.support.waiting import eventually
from tests.unit.control_plane.usage_lab import counts_of, write_table

PEPPER = bytes(range(32))
"""As in Side."""
THIS_HOUR_S = int(time.time()) // 3600 * 3600


async def export(side: Side, request: usage_pb2.ExportUsageRequest) -> list[usage_pb2.ExportUsageResponse]:
    address = (await side.instance("control-plane", "cp-1")).address
    stub = usage_pb2_grpc.UsageServiceStub(side.channel(address))
    try:
        return [answer async for answer in stub.ExportUsage(request, metadata=AUTH, timeout=20.0)]
    except grpc.aio.AioRpcError as failure:
        raise from_rpc_error(failure) from failure


async def test_export_adds_up_to_what_routers_wrote(side: Side) -> None:
    """Three routers, two processes each, several shards and hours: every counter is the sum of the tables."""
    side.start("control_plane", "cp-1")
    truth: Counter[tuple[int, str, str]] = Counter()
    rows_written = 0
    for back in range(3):
        for router in range(3):
            for incarnation in range(2):
                for shard in range(4):
                    hour_s = THIS_HOUR_S - 3600 * back
                    counts = {
                        (f"tenant-{shard}-{number}", f"model-{number % 2}"): [
                            1 + (router + 1) * (incarnation + 1) * (shard + 1) * (number + 1) * counter * 1_000_003
                            for counter in range(6)
                        ]
                        for number in range(50)
                    }
                    place = {"router": f"r{router}", "incarnation": f"i{incarnation}"}
                    await write_table(side.store, hour_s, counts, **place, shard=shard, write_s=time.time())
                    rows_written += len(counts)
                    for (tenant, model), values in counts.items():
                        for counter, value in enumerate(values):
                            truth[hour_s, f"{model}/{tenant}", str(counter)] += value
    answers = await export(side, usage_pb2.ExportUsageRequest())
    exported = [row for answer in answers for row in answer.rows]
    assert rows_written == 3_600
    assert len(exported) == 3 * 4 * 50
    names = [(row.hour.seconds, row.model_id, row.tenant_id) for row in exported]
    assert names == sorted(set(names))
    for row in exported:
        for counter, value in enumerate(counts_of(row)):
            truth[row.hour.seconds, f"{row.model_id}/{row.tenant_id}", str(counter)] -= value
    assert not +truth
    assert not -truth
    lag_s = time.time() - answers[0].complete_until_time.ToNanoseconds() / 1e9
    assert 15 < lag_s < 60


async def test_damaged_table_ends_the_export_with_an_error(side: Side) -> None:
    """Rows of good hours may arrive, but the call fails and names the key."""
    side.start("control_plane", "cp-1")
    await write_table(side.store, THIS_HOUR_S - 3600, {("a", "x"): (1, 1, 1, 1, 1, 1)})
    bad = await write_table(side.store, THIS_HOUR_S - 7200, {("a", "x"): (1, 1, 1, 1, 1, -1)})
    with pytest.raises(FailedPreconditionError, match="damaged") as refused_:
        await export(side, usage_pb2.ExportUsageRequest())
    assert refused_.value.metadata["key"] == bad


async def test_leader_forgets_old_usage(side: Side) -> None:
    """With a day of retention, the day before yesterday goes and today stays."""
    old = await write_table(side.store, THIS_HOUR_S - 48 * 3600, {("a", "x"): (1, 1, 1, 1, 1, 1)})
    new = await write_table(side.store, THIS_HOUR_S, {("a", "x"): (1, 1, 1, 1, 1, 1)})
    side.start("control_plane", "cp-1", "--usage-retention-days", "1")

    async def forgotten() -> bool:
        return await side.store.get(old) is None

    await eventually(forgotten, 30.0, "old usage deleted")
    assert await side.store.get(new) is not None


async def test_decisions_of_registered_routers_are_found(side: Side) -> None:
    """The control plane finds routers by their registrations and opens them with the platform's own token."""
    side.start("control_plane", "cp-1")
    first = TellingRouter(PEPPER, completed("q", arrive_s=200.0))
    second = TellingRouter(PEPPER, refused("q", arrive_s=100.0))
    async with serving(first, second):
        for name, router in (("router-1", first), ("router-2", second)):
            record = admin_pb2.ServiceInstance(service="router", instance_id=name, address=router.address)
            await side.store.put(keys.service("router", name), record.SerializeToString())
        address = (await side.instance("control-plane", "cp-1")).address
        stub = decision_pb2_grpc.DecisionServiceStub(side.channel(address))
        request = decision_pb2.GetDecisionRequest(request_id="q")
        found: list[decision_pb2.Decision] = []

        async def both() -> bool:
            try:
                found[:] = (await stub.GetDecision(request, metadata=AUTH, timeout=10.0)).decisions
            except grpc.aio.AioRpcError:
                return False
            return len(found) == 2

        await eventually(both, 20.0, "both routers asked")
    assert [decision.outcome for decision in found] == [
        decision_pb2.OUTCOME_COMPLETED,
        decision_pb2.OUTCOME_REFUSED,
    ]
