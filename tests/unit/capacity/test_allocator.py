"""The leader's loop: how soon a change is written, how changes are gathered, what it serves and says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from capacity.allocator import Allocator, Views
from capacity.config import CapacityConfig
from capacity.metrics import CapacityMetrics
from capacity.quota_book import ConflictAtStoreError, QuotaBook
from capacity.service import CapacityService
from capacity.translate import model_from, replica_from, reservation_from
from common import keys
from common.clock import FakeClock
from common.leadership import Election
from common.memory_store import MemoryStore
from common.mirror import Mirror
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import NotFoundError, Reason, UnavailableError
from fairlead.quota.v1 import quota_pb2
from tests.support.virtual_loop import run_virtually, virtual_loop


class LoopClock(FakeClock):
    """Follows the virtual loop."""

    def monotonic_ns(self) -> Any:
        return round(virtual_loop().time() * 1e9) + 1


class Desk:
    """An allocator on a store in memory, on virtual time."""

    def __init__(self) -> None:
        self.store = MemoryStore(LoopClock())
        self.registry = CollectorRegistry()
        self.clock = LoopClock()
        config = CapacityConfig(round_interval_s=30.0, takeover_caution_s=0.0)
        store = self.store
        views = Views(
            Mirror(store, keys.REPLICAS, lambda raw: replica_from(engine_pb2.Replica.FromString(raw))),
            Mirror(store, keys.MODELS, lambda raw: model_from(admin_pb2.Model.FromString(raw))),
            Mirror(store, keys.POLICIES, lambda raw: reservation_from(admin_pb2.Reservation.FromString(raw))),
        )
        self.election = Election(store, "capacity", admin_pb2.ServiceInstance(instance_id="me"), clock=self.clock)
        metrics = CapacityMetrics(self.registry)
        self.allocator = Allocator(views, QuotaBook(store, self.clock), self.election, config, self.clock, metrics)
        self.service = CapacityService(self.allocator, store, self.election, 1.0)
        self.loops = (views.replicas.run, views.models.run, views.reservations.run, self.election.run)

    async def put_replica(self, name: str, host: str, *, ready: bool = True) -> None:
        state = engine_pb2.REPLICA_STATE_READY if ready else engine_pb2.REPLICA_STATE_DRAINING
        record = engine_pb2.Replica(
            replica_id=name, model_id="m", capacity_milli_mu_per_minute=100_000, state=state, host=host
        )
        await self.store.put(keys.replica(name), record.SerializeToString())

    async def put_reservation(self, tenant: str, reserved: int, ceiling: int) -> None:
        record = admin_pb2.Reservation(
            tenant_id=tenant,
            model_id="m",
            reserved_milli_mu_per_minute=reserved,
            burst_ceiling_milli_mu_per_minute=ceiling,
        )
        await self.store.put(keys.policy("m", tenant), record.SerializeToString())

    async def stored(self) -> dict[str, int]:
        entries = (await self.store.list(keys.QUOTAS)).entries
        tables = [capacity_pb2.QuotaTable.FromString(entry.value) for entry in entries]
        return {quota.tenant_id: quota.granted_milli_mu_per_minute for table in tables for quota in table.quotas}

    async def demand(self, **rates: int) -> None:
        wants = [
            quota_pb2.Want(tenant_id=tenant, model_id="m", wants_milli_mu_per_minute=rate)
            for tenant, rate in rates.items()
        ]
        await self.service.ReportDemand(capacity_pb2.ReportDemandRequest(epoch=1, wants=wants), None)


def on_a_desk(play: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    """Plays with an allocator that leads a model of two replicas with two tenants, long enough to be quiet."""

    async def main() -> None:
        desk = Desk()
        model = admin_pb2.Model(model_id="m", target_utilization=1.0, headroom=admin_pb2.HEADROOM_HOST)
        await desk.store.put(keys.model("m"), model.SerializeToString())
        await desk.put_replica("r1", "h1")
        await desk.put_replica("r2", "h2")
        await desk.put_reservation("owner", 80_000, 80_000)
        await desk.put_reservation("borrower", 20_000, 200_000)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(loop()) for loop in (*desk.loops, desk.allocator.run)]
            await asyncio.sleep(5.0)
            await play(desk)
            for task in running:
                task.cancel()

    run_virtually(main())


def test_a_loss_is_written_at_once() -> None:
    """Proves that the first change after a quiet time waits for nothing, and what follows only for the pause."""

    async def play(desk: Desk) -> None:
        await desk.demand(owner=0, borrower=200_000)
        await asyncio.sleep(1.0)
        assert await desk.stored() == {"owner": 40_000, "borrower": 160_000}
        await desk.put_replica("r2", "h2", ready=False)
        await asyncio.sleep(0.001)
        assert await desk.stored() == {"owner": 40_000, "borrower": 60_000}
        await desk.put_replica("r2", "h2")
        await asyncio.sleep(0.09)
        assert (await desk.stored())["borrower"] == 60_000, "the pause gathers what follows"
        await asyncio.sleep(0.02)
        assert (await desk.stored())["borrower"] == 160_000

    on_a_desk(play)


def test_a_collapse_is_believed_when_its_doubt_ends() -> None:
    """Proves that quotas follow three seconds after a collapse, not at the next round; the doubt shows until then."""

    async def play(desk: Desk) -> None:
        for name in ("r1", "r2"):
            await desk.store.delete(keys.replica(name))
        await asyncio.sleep(2.9)
        assert sum((await desk.stored()).values()) > 0
        assert 'fairlead_capacity_doubted{model="m"} 1.0' in generate_latest(desk.registry).decode()
        await asyncio.sleep(0.2)
        assert sum((await desk.stored()).values()) == 0
        assert 'fairlead_capacity_doubted{model="m"} 0.0' in generate_latest(desk.registry).decode()

    on_a_desk(play)


def test_no_doubt_is_shown_of_a_deleted_model_or_by_a_deposed_leader() -> None:
    """Proves that the doubt's series goes with its model, and with the leadership."""

    async def play(desk: Desk) -> None:
        other = admin_pb2.Model(model_id="other", target_utilization=1.0)
        await desk.store.put(keys.model("other"), other.SerializeToString())
        await asyncio.sleep(1.0)
        assert 'fairlead_capacity_doubted{model="other"} 0.0' in generate_latest(desk.registry).decode()
        await desk.store.delete(keys.model("other"))
        await desk.store.delete(keys.replica("r1"))
        await desk.store.delete(keys.replica("r2"))
        await asyncio.sleep(1.0)
        page = generate_latest(desk.registry).decode()
        assert 'fairlead_capacity_doubted{model="m"} 1.0' in page
        assert 'fairlead_capacity_doubted{model="other"}' not in page
        await desk.store.set_down(True)
        await asyncio.sleep(60.0)
        assert not desk.election.is_leader
        assert "fairlead_capacity_doubted{" not in generate_latest(desk.registry).decode()

    on_a_desk(play)


@pytest.mark.parametrize(
    "failure", [ConflictAtStoreError(), UnavailableError("frozen", reason=Reason.STORE_UNAVAILABLE)]
)
def test_a_write_that_failed_is_done_again_soon(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that a loss whose write the store refused is written within a second, not at the next round."""
    write, failures = QuotaBook.write, []

    async def failing(self: QuotaBook, *args: Any) -> int:
        if failures:
            raise failures.pop()
        return await write(self, *args)

    async def play(desk: Desk) -> None:
        await desk.demand(owner=0, borrower=200_000)
        await asyncio.sleep(1.0)
        monkeypatch.setattr(QuotaBook, "write", failing)
        failures.append(failure)
        await desk.put_replica("r2", "h2", ready=False)
        await asyncio.sleep(0.001)
        assert (await desk.stored())["borrower"] == 160_000
        await asyncio.sleep(0.9)
        assert (await desk.stored())["borrower"] == 60_000

    on_a_desk(play)


def test_rising_demand_starts_a_round() -> None:
    """Proves that an owner that comes back is granted its reservation in the moment its demand is reported."""

    async def play(desk: Desk) -> None:
        await desk.demand(owner=0, borrower=200_000)
        await asyncio.sleep(1.0)
        await desk.demand(owner=80_000, borrower=200_000)
        await asyncio.sleep(0.001)
        assert (await desk.stored())["owner"] == 80_000

    on_a_desk(play)


def test_a_policy_that_is_not_kept_is_logged_once_and_again_when_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Proves that coverage is told when it changes, and by the metrics all the time."""
    caplog.set_level("INFO")

    def told(about: str) -> list[str]:
        return [message for message in caplog.messages if message.startswith(about)]

    async def play(desk: Desk) -> None:
        assert not told("reservations are")
        await desk.put_reservation("late", 30_000, 30_000)
        await asyncio.sleep(1.0)
        await desk.demand(owner=1_000)
        await asyncio.sleep(1.0)
        assert told("reservations are") == ["reservations are not covered"]
        page = generate_latest(desk.registry).decode()
        assert 'fairlead_capacity_sellable_milli_mu_per_minute{model="m"} 100000.0' in page
        assert 'fairlead_capacity_uncovered_after_loss_milli_mu_per_minute{model="m"} 30000.0' in page
        assert 'fairlead_capacity_granted_milli_mu_per_minute{model="m",tenant="late"} 30000.0' in page
        await desk.put_replica("r3", "h3")
        await asyncio.sleep(1.0)
        assert told("reservations are")[1:] == ["reservations are covered again"]

    on_a_desk(play)


def test_quotas_are_explained_and_plans_answered() -> None:
    """Proves ExplainQuota and PlanCapacity through the service, and that unknown names are refused."""

    async def play(desk: Desk) -> None:
        await desk.demand(owner=0, borrower=200_000)
        await asyncio.sleep(1.0)
        why = await desk.service.ExplainQuota(
            capacity_pb2.ExplainQuotaRequest(model_id="m", tenant_id="borrower"), None
        )
        parts = (why.quota.guaranteed_milli_mu_per_minute, why.borrowed_milli_mu_per_minute)
        assert parts == (20_000, 140_000)
        assert why.quota.granted_milli_mu_per_minute == sum(parts) == (await desk.stored())["borrower"]
        assert why.model.largest_domain.name == "h1"
        assert why.model.headroom == admin_pb2.HEADROOM_HOST
        assert not why.model.quotas
        assert len(why.steps) == 7
        for model_id, tenant_id in (("x", "owner"), ("m", "nobody")):
            with pytest.raises(NotFoundError, match=r"nobody|no model"):
                await desk.service.ExplainQuota(
                    capacity_pb2.ExplainQuotaRequest(model_id=model_id, tenant_id=tenant_id), None
                )
        plan = await desk.service.PlanCapacity(
            capacity_pb2.PlanCapacityRequest(model_id="m", without_hosts=["h2"]), None
        )
        assert (plan.before.have_milli_mu_per_minute, plan.after.have_milli_mu_per_minute) == (200_000, 100_000)
        assert not plan.covered
        assert plan.findings
        with pytest.raises(NotFoundError, match="no model"):
            await desk.service.PlanCapacity(capacity_pb2.PlanCapacityRequest(model_id="x"), None)

    on_a_desk(play)
