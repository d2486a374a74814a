"""Replicas and reservations become quotas, quotas become leases: allocator and limiter as real processes."""

from __future__ import annotations

import time

import grpc.aio
import pytest

from common import keys
from fairlead.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import NotLeaderError, from_rpc_error
from tests.integration.control.side import MODEL, Router, Side
from tests.support.waiting import eventually


async def configure(side: Side) -> None:
    await side.put_model()
    await side.put_replica("r1")
    await side.put_replica("r2")
    await side.put_reservation("a", 60_000, 150_000)
    await side.put_reservation("b", 50_000)


async def test_from_replica_to_lease_and_back(side: Side) -> None:
    """Proves the chain: a router gets its tenant's quota, a drained replica shrinks it, a goodbye frees it."""
    await configure(side)
    side.start("capacity", "cap-1")
    side.start("ratelimiter", "lim-1")
    router, other = Router(side, "router-1"), Router(side, "router-2")
    wants = {"a": 140_000, "b": 10_000}

    async def gets(rate: int) -> bool:
        return await router.report(wants) and router.rate("a") >= rate

    await eventually(lambda: gets(140_000), 30.0, "the burst ceiling, b's unused part included")
    assert router.rate("b") >= 10_000
    lease = router.lease("a")
    assert lease.burst_milli_mu == lease.rate_milli_mu_per_minute * 30 // 60
    assert 0 < lease.safe_rate_milli_mu_per_minute <= 60_000

    await side.put_replica("r2", state=engine_pb2.REPLICA_STATE_DRAINING)
    drained_s = time.monotonic()

    async def pushed_below(rate: int) -> bool:
        await router.watch()
        return router.rate("a") <= rate

    await eventually(lambda: pushed_below(75_000), 10.0, "its part of half the capacity, without another report")
    assert time.monotonic() - drained_s < 5.0

    async def other_gets(rate: int) -> bool:
        return await other.report({"a": 60_000}) and other.rate("a") >= rate

    await router.report({}, leaving=True)
    await eventually(lambda: other_gets(50_000), 5.0, "what the leaving router held, long before it would expire")

    async def forgotten() -> bool:
        return not (await side.store.list(keys.leases_of("router-1"))).entries

    await eventually(forgotten, 5.0, "its tables are deleted")


async def test_an_owner_gets_its_lent_reservation_back(side: Side) -> None:
    """Proves lending and reclaiming over two routers: the owner has its full reservation within a few reports."""
    await side.put_model()
    await side.put_replica("r1")
    await side.put_reservation("owner", 80_000)
    await side.put_reservation("borrower", 20_000, 100_000)
    side.start("capacity", "cap-1")
    side.start("ratelimiter", "lim-1")
    first, second = Router(side, "router-1"), Router(side, "router-2")

    async def lent() -> bool:
        await first.report({"borrower": 100_000})
        await second.report({})
        return first.rate("borrower") >= 55_000

    await eventually(lent, 30.0, "half of the idle reservation lent")
    start = second.reports

    async def reclaimed() -> bool:
        await first.report({"borrower": 100_000})
        await second.report({"owner": 80_000})
        return second.rate("owner") >= 78_000

    await eventually(reclaimed, 10.0, "the owner's reservation")
    assert second.reports > start


async def test_ledger_and_plan(side: Side) -> None:
    """Proves ListCapacity and PlanReservation on the leader, and that a standby refuses them by reason."""
    await configure(side)
    side.start("capacity", "cap-1")
    side.start("capacity", "cap-2")
    leader = await side.leader("capacity")
    stub = capacity_pb2_grpc.CapacityServiceStub(side.channel(leader.address))
    ledger = capacity_pb2.ModelCapacity()

    async def computed() -> bool:
        models = (await stub.ListCapacity(capacity_pb2.ListCapacityRequest())).models
        ledger.CopyFrom(models[0])
        return ledger.sold_milli_mu_per_minute == 110_000

    await eventually(computed, 20.0)
    assert (ledger.model_id, ledger.replicas_ready, ledger.have_milli_mu_per_minute) == (MODEL, 2, 200_000)
    assert [quota.tenant_id for quota in ledger.quotas] == ["a", "b"]
    plan = await stub.PlanReservation(
        capacity_pb2.PlanReservationRequest(model_id=MODEL, tenant_id="c", reserved_milli_mu_per_minute=100_000)
    )
    assert (plan.sellable, plan.headroom_milli_mu_per_minute) == (False, -10_000)
    standby_name = "cap-2" if leader.instance_id == "cap-1" else "cap-1"
    standby = await side.instance("capacity", standby_name)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await capacity_pb2_grpc.CapacityServiceStub(side.channel(standby.address)).ListCapacity(
            capacity_pb2.ListCapacityRequest()
        )
    assert isinstance(from_rpc_error(refused.value), NotLeaderError)
