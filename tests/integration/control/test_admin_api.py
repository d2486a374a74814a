"""The control plane as real processes: the admin API on every instance, its lock, its forwarders and its sharder."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common import keys
from fairlead.admin.v1 import admin_pb2, usage_pb2
from fairlead.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    FairleadError,
    NotFoundError,
    PermissionDeniedError,
    Reason,
    UnauthenticatedError,
    from_rpc_error,
)
from fairlead.inference.v1 import decision_pb2
from fairlead.quota.v1 import quota_pb2, quota_pb2_grpc
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc
from tests.integration.control.side import AUTH, MODEL, Admin, Router, Side
from tests.support.agents import FakeAgent
from tests.support.waiting import eventually

SERVED = (admin_pb2, capacity_pb2, quota_pb2, sharding_pb2, usage_pb2, decision_pb2)


def methods() -> list[str]:
    """Every method of every API the control plane serves, from the descriptors."""
    return [
        f"/{service.full_name}/{method.name}"
        for module in SERVED
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


async def failure_of(call: Any) -> FairleadError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return from_rpc_error(failed.value)


async def furnish(admin: Admin) -> None:
    await admin.CreateTenant(admin_pb2.CreateTenantRequest(tenant=admin_pb2.Tenant(tenant_id="acme")))
    model = admin_pb2.Model(
        model_id=MODEL,
        engine=admin_pb2.EngineSpec(engine="simulated", hardware="h100"),
        context_tokens=1024,
        output_tokens_max=256,
        target_utilization=1.0,
        replicas_max=4,
    )
    await admin.CreateModel(admin_pb2.CreateModelRequest(model=model))


def reservation(reserved: int) -> admin_pb2.SetReservationRequest:
    return admin_pb2.SetReservationRequest(
        reservation=admin_pb2.Reservation(tenant_id="acme", model_id=MODEL, reserved_milli_mu_per_minute=reserved)
    )


async def test_every_method_needs_the_token(side: Side) -> None:
    """Proves deny by default: each method of each descriptor, and unknown ones, refuse a missing or wrong token."""
    side.start("control_plane", "cp-1")
    channel = side.channel((await side.instance("control-plane", "cp-1")).address)
    wrong = (
        (),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer a-token-for-tests-onlx"),),
        (("authorization", AUTH[0][1].replace("Bearer", "Basic")),),
        (("authorization", AUTH[0][1] + "x"),),
        (("authorization", "Bearer \u00e9".encode("latin-1").decode("latin-1")),),
    )
    for method in [*methods(), "/fairlead.admin.v1.AdminService/NoSuchMethod", "/no.such.Service/Method"]:
        for metadata in wrong[: 5 if "GetTenant" in method else 2]:
            error = await failure_of(channel.unary_unary(method, bytes, bytes)(b"", metadata=metadata))
            assert isinstance(error, UnauthenticatedError), method
    health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    admin = await side.admin()
    assert not (await admin.ListTenants(admin_pb2.ListTenantsRequest())).tenants


async def test_two_instances_two_administrators(side: Side) -> None:
    """Proves that every instance answers, and that two administrators on two of them meet a conflict."""
    side.start("control_plane", "cp-1")
    side.start("control_plane", "cp-2")
    one, two = await side.admin("cp-1"), await side.admin("cp-2")
    await furnish(one)
    read = await two.GetTenant(admin_pb2.GetTenantRequest(tenant_id="acme"))

    async def rename(admin: Admin, name: str) -> bool:
        change = admin_pb2.Tenant(tenant_id="acme", display_name=name, etag=read.etag)
        try:
            await admin.UpdateTenant(admin_pb2.UpdateTenantRequest(tenant=change))
        except ConflictError:
            return False
        return True

    assert sum(await asyncio.gather(rename(one, "one"), rename(two, "two"))) == 1
    request = admin_pb2.CreateTenantRequest(tenant=admin_pb2.Tenant(tenant_id="twin"))
    answers = await asyncio.gather(one.CreateTenant(request), two.CreateTenant(request), return_exceptions=True)
    assert [type(answer) for answer in answers if isinstance(answer, Exception)] == [AlreadyExistsError]
    made = await asyncio.gather(
        *(admin.CreateApiKey(admin_pb2.CreateApiKeyRequest(tenant_id="acme")) for admin in (one, two, one, two)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, admin_pb2.CreateApiKeyResponse) for answer in made) == 2
    services = (await two.ListServices(admin_pb2.ListServicesRequest())).services
    assert [(s.service, s.instance_id) for s in services] == [("control-plane", "cp-1"), ("control-plane", "cp-2")]
    assert sum(service.leader for service in services) == 1
    await one.DeleteTenant(admin_pb2.DeleteTenantRequest(tenant_id="acme"))
    with pytest.raises(NotFoundError):
        await two.GetTenant(admin_pb2.GetTenantRequest(tenant_id="acme"))


async def test_one_address_for_people(side: Side) -> None:
    """Proves the forwarders: ledger, plans, explanations, leases and assignments by one address; and that sales stop at
    what replicas_max covers, with the shortfall of live capacity said below that."""
    side.start("control_plane", "cp-1")
    side.start("capacity", "cap-1")
    side.start("ratelimiter", "lim-1")
    admin = await side.admin()
    await furnish(admin)
    await side.put_replica("r1", slot="seat-1")
    channel = side.channel((await side.instance("control-plane", "cp-1")).address)
    capacity = capacity_pb2_grpc.CapacityServiceStub(channel)

    async def has(rate: int) -> bool:
        answer = await capacity.ListCapacity(capacity_pb2.ListCapacityRequest(model_id=MODEL), metadata=AUTH)
        return bool(answer.models[0].have_milli_mu_per_minute == rate)

    await eventually(lambda: has(100_000), 30.0, "the replica in the ledger")
    oversold = await admin.SetReservation(reservation(130_000))
    assert oversold.model_shortfall_milli_mu_per_minute == 30_000
    with pytest.raises(FailedPreconditionError) as exceeded:
        await admin.SetReservation(reservation(400_001))
    assert exceeded.value.reason is Reason.CAPACITY_EXCEEDED
    assert "100 of its live capacity now, up to 4 replicas" in exceeded.value.message
    fits = await admin.SetReservation(reservation(90_000))
    assert fits.model_shortfall_milli_mu_per_minute == 0
    plan = capacity_pb2.PlanReservationRequest(model_id=MODEL, tenant_id="x", reserved_milli_mu_per_minute=20_000)
    assert (await capacity.PlanReservation(plan, metadata=AUTH)).headroom_milli_mu_per_minute == -10_000
    what_if = capacity_pb2.PlanCapacityRequest(model_id=MODEL, without_replica_ids=["r1"])
    lost = await capacity.PlanCapacity(what_if, metadata=AUTH)
    assert (lost.before.have_milli_mu_per_minute, lost.after.shortfall_milli_mu_per_minute) == (100_000, 90_000)
    asked = capacity_pb2.ExplainQuotaRequest(model_id=MODEL, tenant_id="acme")

    async def explained() -> bool:
        answer = await capacity.ExplainQuota(asked, metadata=AUTH)
        return bool(answer.quota.guaranteed_milli_mu_per_minute == 90_000 and answer.steps)

    await eventually(explained, 10.0, "the explanation of the new reservation")
    plan.model_id = "none"
    assert isinstance(await failure_of(capacity.PlanReservation(plan, metadata=AUTH)), NotFoundError)
    demand = capacity.ReportDemand(capacity_pb2.ReportDemandRequest(), metadata=AUTH)
    assert isinstance(await failure_of(demand), PermissionDeniedError)

    router = Router(side, "router-1")

    async def leased() -> bool:
        return await router.report({"acme": 1_000}) and router.rate("acme") == 90_000

    await eventually(leased, 20.0)
    limiter = quota_pb2_grpc.RateLimiterServiceStub(channel)
    (table,) = (await limiter.ListLeases(quota_pb2.ListLeasesRequest(tenant_id="acme"), metadata=AUTH)).tables
    assert (table.router_id, table.leases[0].rate_milli_mu_per_minute) == ("router-1", 90_000)
    wants = limiter.ReportWants(quota_pb2.ReportWantsRequest(), metadata=AUTH)
    assert isinstance(await failure_of(wants), PermissionDeniedError)

    sharding = sharding_pb2_grpc.ShardingServiceStub(channel)

    async def assigned() -> bool:
        answer = await sharding.ListAssignments(sharding_pb2.ListAssignmentsRequest(), metadata=AUTH)
        (heat,) = answer.replicas
        assert (heat.replica_id, heat.model_id, heat.capacity_milli_mu_per_minute) == ("r1", MODEL, 100_000)
        return list(answer.assignments[0].replica_ids) == ["r1"] and heat.slices == len(answer.assignments[0].slices)

    await eventually(assigned, 10.0)


class Agent(engine_pb2_grpc.EngineServiceServicer):
    """A replica agent that only drains."""

    def __init__(self) -> None:
        self.drained: list[str] = []

    async def Drain(self, request: engine_pb2.DrainRequest, context: Any) -> engine_pb2.DrainResponse:
        self.drained.append(request.replica_id)
        return engine_pb2.DrainResponse()

    def Generate(self, request: engine_pb2.EngineGenerateRequest, context: Any) -> AsyncIterator[Any]:
        raise AssertionError("nobody generates here")

    def Calibrate(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        raise AssertionError("nobody calibrates here")

    def WatchLoad(self, request: engine_pb2.WatchLoadRequest, context: Any) -> AsyncIterator[Any]:
        raise AssertionError("nobody watches here")


async def test_draining_goes_to_the_agent(side: Side) -> None:
    """Proves that DrainReplica reaches the replica's own agent, not with validate_only, and says when it cannot."""
    agent, server = Agent(), grpc.aio.server()
    engine_pb2_grpc.add_EngineServiceServicer_to_server(agent, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        side.start("control_plane", "cp-1")
        admin = await side.admin()
        await side.put_replica("r1", address=f"127.0.0.1:{port}")
        await admin.DrainReplica(admin_pb2.DrainReplicaRequest(replica_id="r1", validate_only=True))
        assert agent.drained == []
        answer = await admin.DrainReplica(admin_pb2.DrainReplicaRequest(replica_id="r1"))
        assert answer.state == engine_pb2.REPLICA_STATE_DRAINING
        assert agent.drained == ["r1"]
    finally:
        await server.stop(None)
    with pytest.raises(FairleadError, match="r2"):
        await admin.DrainReplica(admin_pb2.DrainReplicaRequest(replica_id="r2"))


async def assignment(side: Side) -> sharding_pb2.Assignment | None:
    entry = await side.store.get(keys.assignment(MODEL))
    return sharding_pb2.Assignment.FromString(entry.value) if entry else None


async def test_sharder_follows_the_fleet_over_a_takeover(side: Side) -> None:
    """Proves: assignments follow replicas, a killed sharder is replaced, generations grow, empty keeps the last."""
    await side.put_model()
    for number in range(4):
        await side.put_replica(f"r{number}")
    await side.put_reservation("a", 50_000)
    side.start("control_plane", "cp-1")
    side.start("control_plane", "cp-2")
    seen: list[tuple[int, int]] = []

    async def served_by(*replica_ids: str) -> bool:
        found = await assignment(side)
        if found is None or not set(found.replica_ids) <= set(replica_ids):
            return False
        seen.append((found.generation.incarnation, found.generation.number))
        assert all(len(each.replicas) == min(3, len(replica_ids)) for each in found.slices)
        return True

    await eventually(lambda: served_by("r0", "r1", "r2", "r3"), 30.0)
    for name in ("cp-1", "cp-2"):
        await side.instance("control-plane", name)
    leader = await side.leader_process("control-plane")
    leader.signal(signal.SIGKILL)
    await side.store.delete(keys.replica("r0"))
    await side.put_replica("r1", state=engine_pb2.REPLICA_STATE_UNHEALTHY)
    await eventually(lambda: served_by("r2", "r3"), 20.0, "the standby's assignment")
    for number in range(4):
        await side.store.delete(keys.replica(f"r{number}"))
    await side.put_model("other")
    await side.put_replica("o1", "other")

    async def other_assigned() -> bool:
        return await side.store.get(keys.assignment("other")) is not None

    await eventually(other_assigned, 10.0, "the sharder works on")
    assert await served_by("r2", "r3"), "an empty view keeps the last assignment"
    await side.store.delete(keys.model("other"))

    async def other_gone() -> bool:
        return not await other_assigned()

    await eventually(other_gone, 10.0, "a deleted model's assignment")
    assert seen == sorted(seen)
    assert len({incarnation for incarnation, _ in seen}) == 1, "a takeover goes on in the same line"


async def test_standbys_tell_of_load_what_the_leader_knows(side: Side) -> None:
    """Proves that every instance answers with the leader's figures, and with the placed load once nobody leads."""
    replica = FakeAgent("r1", MODEL)
    async with replica:
        await side.put_model()
        await side.store.put(keys.replica("r1"), replica.record().SerializeToString())
        side.start("control_plane", "cp-1", "--assign-interval-s", "1", election_ttl_s=5)
        side.start("control_plane", "cp-2", "--assign-interval-s", "1", election_ttl_s=5)
        stubs = [
            sharding_pb2_grpc.ShardingServiceStub(side.channel((await side.instance("control-plane", name)).address))
            for name in ("cp-1", "cp-2")
        ]
        replica.load(3 << 32, 40_000, "acme")

        async def all_say(rate: int) -> bool:
            loads = set()
            for stub in stubs:
                answer = await stub.ListAssignments(sharding_pb2.ListAssignmentsRequest(model_id=MODEL), metadata=AUTH)
                loads.add(answer.replicas[0].load_milli_mu_per_minute)
            return loads == {rate}

        await eventually(lambda: all_say(40_000), 30.0)
        leader = await side.leader_process("control-plane")
        stubs.pop(0 if leader.name == "cp-1" else 1)
        leader.signal(signal.SIGSTOP)
        answer = await stubs[0].ListAssignments(sharding_pb2.ListAssignmentsRequest(), metadata=AUTH)
        assert [heat.replica_id for heat in answer.replicas] == ["r1"], "a leader that hangs keeps nobody waiting"


async def test_bad_starts_are_explained(side: Side, tmp_path: Any) -> None:
    """Proves that a missing secret and a taken port end the process with a sentence, not a traceback."""
    process = side.start("control_plane", "cp-1", "--grpc-port", "70000")
    assert await process.ended() == 2
    assert "grpc" not in process.log() or "must be at least" in process.log()
    (tmp_path / "token").write_text("short")
    process = side.start("control_plane", "cp-2")
    assert await process.ended() == 1
    assert "it needs at least 16" in process.log()
    assert "Traceback" not in process.log()
