"""AdminService, CapacityService, RateLimiterService and ShardingService in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from control_plane.core import policies
from control_plane.core.sales import Sale
from fairlead.admin.v1 import admin_pb2, admin_pb2_grpc
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import (
    AlreadyExistsError,
    ConflictError,
    FairleadError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnauthenticatedError,
    UnavailableError,
)
from fairlead.quota.v1 import quota_pb2, quota_pb2_grpc
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc
from tests.support.fake_platform.calibration import FakeCalibration
from tests.support.fake_platform.capacity import FakeCapacity
from tests.support.fake_platform.router import abort
from tests.support.fake_platform.usage import FakeUsage

LEADERS = ("autoscaler", "capacity", "control-plane", "ratelimiter")


@dataclass
class FakeControlPlane(admin_pb2_grpc.AdminServiceServicer):
    """A control plane without a store."""

    token: str = "admin-token"
    tenants: dict[str, admin_pb2.Tenant] = field(default_factory=dict)
    keys: dict[str, admin_pb2.ApiKey] = field(default_factory=dict)
    models: dict[str, admin_pb2.Model] = field(default_factory=dict)
    reservations: dict[tuple[str, str], admin_pb2.Reservation] = field(default_factory=dict)
    replicas: dict[str, engine_pb2.Replica] = field(default_factory=dict)
    services: list[admin_pb2.ServiceInstance] = field(default_factory=list)
    failure: FairleadError | None = None
    """Every call ends with this."""
    without_limiter: bool = False
    clock_skew_s: float = 0.0
    silent_routers: list[str] = field(default_factory=list)
    """Routers that it could not ask about decisions."""
    mutations: list[Any] = field(default_factory=list)
    """Every mutating request, as it arrived."""

    def __post_init__(self) -> None:
        self.capacity = FakeCapacity(self)
        self.limiter = _Limiter(self)
        self.sharding = _Sharding(self)
        self.calibration = FakeCalibration(self)
        self.usage = FakeUsage(self)
        for name in (*LEADERS, "router"):
            self.services.append(
                admin_pb2.ServiceInstance(
                    service=name,
                    instance_id=f"{name}-1",
                    address="127.0.0.1:1",
                    leader=name != "router",
                    epoch=7,
                    pid=1,
                )
            )

    def seed(self) -> None:
        """One tenant with a key, one model with a ready replica, one reservation."""
        self.tenants["alpha"] = admin_pb2.Tenant(tenant_id="alpha", display_name="Alpha", etag="1")
        self.models["tiny"] = admin_pb2.Model(
            model_id="tiny",
            engine=admin_pb2.EngineSpec(engine="simulated", hardware="h100"),
            context_tokens=256,
            output_tokens_max=128,
            replicas_min=1,
            replicas_max=2,
            target_utilization=0.8,
            etag="1",
        )
        self.reservations["tiny", "alpha"] = admin_pb2.Reservation(
            tenant_id="alpha",
            model_id="tiny",
            reserved_milli_mu_per_minute=60_000,
            burst_ceiling_milli_mu_per_minute=120_000,
            etag="1",
        )
        self.replicas["tiny-r1"] = engine_pb2.Replica(
            replica_id="tiny-r1",
            address="127.0.0.1:1",
            model_id="tiny",
            hardware="h100",
            engine="simulated",
            capacity_milli_mu_per_minute=100_000,
            state=engine_pb2.REPLICA_STATE_READY,
            host="host-1",
        )

    async def check(self, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        if metadata.get("authorization") != f"Bearer {self.token}":
            await abort(context, UnauthenticatedError("the admin token is wrong", reason=Reason.UNKNOWN_KEY))
        if self.failure is not None:
            await abort(context, self.failure)

    async def _put(self, table: Any, key: Any, value: Any, request: Any, context: Any, *, create: bool) -> Any:
        await self.check(context)
        self.mutations.append(request)
        old = table.get(key)
        if create and old is not None:
            await abort(context, AlreadyExistsError(f"{key} exists"))
        if not create and old is None:
            await abort(context, NotFoundError(f"there is no {key}"))
        if not create and value.etag and value.etag != old.etag:
            await abort(context, ConflictError("somebody else changed it: read it again"))
        stored = type(value)()
        stored.CopyFrom(value)
        stored.etag = str(int(old.etag) + 1 if old is not None else 1)
        if not request.validate_only:
            table[key] = stored
        return stored

    async def _take(self, table: Any, key: Any, request: Any, context: Any) -> Any:
        await self.check(context)
        self.mutations.append(request)
        if key not in table:
            await abort(context, NotFoundError(f"there is no {key}", reason=Reason.NOT_FOUND))
        if not request.validate_only:
            del table[key]

    async def CreateTenant(self, request: Any, context: Any) -> Any:
        if not request.tenant.tenant_id.islower():
            await abort(context, InvalidArgumentError("tenant_id must be lower case", field="tenant.tenant_id"))
        return await self._put(self.tenants, request.tenant.tenant_id, request.tenant, request, context, create=True)

    async def GetTenant(self, request: Any, context: Any) -> Any:
        await self.check(context)
        if request.tenant_id not in self.tenants:
            await abort(context, NotFoundError(f"no tenant {request.tenant_id}", reason=Reason.UNKNOWN_TENANT))
        return self.tenants[request.tenant_id]

    async def ListTenants(self, request: Any, context: Any) -> Any:
        await self.check(context)
        names, size = sorted(self.tenants), request.page_size or 100
        start = int(request.page_token or 0)
        token = str(start + size) if start + size < len(names) else ""
        page = [self.tenants[name] for name in names[start : start + size]]
        return admin_pb2.ListTenantsResponse(tenants=page, next_page_token=token)

    async def UpdateTenant(self, request: Any, context: Any) -> Any:
        return await self._put(self.tenants, request.tenant.tenant_id, request.tenant, request, context, create=False)

    async def DeleteTenant(self, request: Any, context: Any) -> Any:
        await self._take(self.tenants, request.tenant_id, request, context)
        return admin_pb2.DeleteTenantResponse(keys_revoked=1, reservations_deleted=2)

    async def CreateApiKey(self, request: Any, context: Any) -> Any:
        await self.check(context)
        self.mutations.append(request)
        key = admin_pb2.ApiKey(
            key_id=f"key{len(self.keys)}", tenant_id=request.tenant_id, display_name=request.display_name
        )
        if request.validate_only:
            return admin_pb2.CreateApiKeyResponse(api_key=key)
        self.keys[key.key_id] = key
        return admin_pb2.CreateApiKeyResponse(api_key=key, secret_key=f"fl-{key.key_id}-secret")

    async def ListApiKeys(self, request: Any, context: Any) -> Any:
        await self.check(context)
        keys = [key for key in self.keys.values() if request.tenant_id in ("", key.tenant_id)]
        return admin_pb2.ListApiKeysResponse(api_keys=keys)

    async def RevokeApiKey(self, request: Any, context: Any) -> Any:
        await self._take(self.keys, request.key_id, request, context)
        return admin_pb2.RevokeApiKeyResponse()

    async def CreateModel(self, request: Any, context: Any) -> Any:
        return await self._put(self.models, request.model.model_id, request.model, request, context, create=True)

    async def GetModel(self, request: Any, context: Any) -> Any:
        await self.check(context)
        if request.model_id not in self.models:
            await abort(context, NotFoundError(f"no model {request.model_id}", reason=Reason.UNKNOWN_MODEL))
        return self.models[request.model_id]

    async def ListModels(self, request: Any, context: Any) -> Any:
        await self.check(context)
        return admin_pb2.ListModelsResponse(models=[self.models[name] for name in sorted(self.models)])

    async def UpdateModel(self, request: Any, context: Any) -> Any:
        return await self._put(self.models, request.model.model_id, request.model, request, context, create=False)

    async def DeleteModel(self, request: Any, context: Any) -> Any:
        await self._take(self.models, request.model_id, request, context)
        return admin_pb2.DeleteModelResponse()

    async def SetReservation(self, request: Any, context: Any) -> Any:
        await self.check(context)
        wanted = request.reservation
        key = (wanted.model_id, wanted.tenant_id)
        after = {**self.reservations, key: wanted}
        if not request.allow_oversell and wanted.model_id in self.models:
            sold = [policies.sold(table.values())[wanted.model_id] for table in (self.reservations, after)]
            live = self.capacity.live(self.models[wanted.model_id]) if request.live_capacity_only else None
            sale = Sale(self.models[wanted.model_id], *sold, live_only=request.live_capacity_only)
            if refusal := sale.refusal(live):
                await abort(context, refusal)
        stored = await self._put(self.reservations, key, wanted, request, context, create=key not in self.reservations)
        sold = sum(entry.reserved_milli_mu_per_minute for entry in self.reservations.values())
        answer = admin_pb2.Reservation(model_shortfall_milli_mu_per_minute=max(0, sold - 80_000))
        answer.MergeFrom(stored)
        return answer

    async def ApplyReservations(self, request: Any, context: Any) -> Any:
        await self.check(context)
        self.mutations.append(request)
        refusals = policies.Refusals()
        stored = {policies.Key(*key): entry for key, entry in self.reservations.items()}
        try:
            wanted = policies.checked(request.reservations, refusals)
            complete = set(request.complete_model_ids)
            policies.check_parents(wanted, complete, self.tenants.keys(), self.models.keys(), refusals)
            change = policies.changes(wanted, stored, complete, refusals)
            refusals.raise_if_any()
            after = {**stored, **change.created, **change.updated}
            before = policies.sold(stored.values())
            for model_id, sold in policies.sold(after.values()).items():
                refusal = Sale(self.models[model_id], before[model_id], sold).refusal(None)
                if refusal and not request.allow_oversell:
                    raise refusal
        except FairleadError as error:
            await abort(context, error)
        if not request.validate_only:
            for key, entry in {**change.created, **change.updated}.items():
                entry.etag = str(int(stored[key].etag) + 1 if key in stored else 1)
                self.reservations[tuple(key)] = entry
            for key in change.deleted:
                del self.reservations[tuple(key)]
        return admin_pb2.ApplyReservationsResponse(
            created=change.created.values(),
            updated=change.updated.values(),
            deleted=change.deleted.values(),
            unchanged=len(wanted) - len(change.created) - len(change.updated),
        )

    async def ListReservations(self, request: Any, context: Any) -> Any:
        await self.check(context)
        chosen = [
            reservation
            for key, reservation in sorted(self.reservations.items())
            if request.model_id in ("", key[0]) and request.tenant_id in ("", key[1])
        ]
        return admin_pb2.ListReservationsResponse(reservations=chosen)

    async def DeleteReservation(self, request: Any, context: Any) -> Any:
        await self._take(self.reservations, (request.model_id, request.tenant_id), request, context)
        return admin_pb2.DeleteReservationResponse()

    async def ListReplicas(self, request: Any, context: Any) -> Any:
        await self.check(context)
        chosen = [replica for replica in self.replicas.values() if request.model_id in ("", replica.model_id)]
        return admin_pb2.ListReplicasResponse(replicas=chosen)

    async def DrainReplica(self, request: Any, context: Any) -> Any:
        await self.check(context)
        self.mutations.append(request)
        if request.replica_id not in self.replicas:
            await abort(context, NotFoundError("no such replica", reason=Reason.UNKNOWN_REPLICA))
        replica = engine_pb2.Replica()
        replica.CopyFrom(self.replicas[request.replica_id])
        replica.state = engine_pb2.REPLICA_STATE_DRAINING
        if not request.validate_only:
            self.replicas[request.replica_id] = replica
        return replica

    async def ListServices(self, request: Any, context: Any) -> Any:
        await self.check(context)
        return admin_pb2.ListServicesResponse(services=self.services)


class _Limiter(quota_pb2_grpc.RateLimiterServiceServicer):
    """Every reservation is leased to one router."""

    def __init__(self, control: FakeControlPlane) -> None:
        self._control = control

    async def ListLeases(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        if self._control.without_limiter:
            await abort(context, UnavailableError("no leader of ratelimiter is known yet"))
        table = quota_pb2.LeaseTable(router_id="router-1", epoch=3, table_number=4)
        table.grant_time.FromNanoseconds(int((time.time() + self._control.clock_skew_s) * 1e9))
        for (model_id, tenant_id), entry in sorted(self._control.reservations.items()):
            if request.tenant_id in ("", tenant_id) and request.model_id in ("", model_id):
                rate = entry.reserved_milli_mu_per_minute
                table.leases.add(
                    tenant_id=tenant_id,
                    model_id=model_id,
                    rate_milli_mu_per_minute=rate,
                    burst_milli_mu=rate // 2,
                    safe_rate_milli_mu_per_minute=rate,
                )
        return quota_pb2.ListLeasesResponse(tables=[table])


class _Sharding(sharding_pb2_grpc.ShardingServiceServicer):
    """Tenant alpha on one replica, all others on every one."""

    def __init__(self, control: FakeControlPlane) -> None:
        self._control = control

    async def ListAssignments(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        answer = sharding_pb2.ListAssignmentsResponse()
        if request.tenant_id:
            answer.tenant_keys.first_key, answer.tenant_keys.last_key = 1 << 62, (1 << 62) + (1 << 32) - 1
        for model_id in sorted(self._control.models):
            replicas = sorted(r.replica_id for r in self._control.replicas.values() if r.model_id == model_id)
            if request.model_id in ("", model_id) and replicas:
                self._assign(answer, model_id, replicas)
        return answer

    def _assign(self, answer: Any, model_id: str, replicas: list[str]) -> None:
        everybody = range(len(replicas))
        assignment = answer.assignments.add(
            model_id=model_id, reason="tenant 'alpha' is hot", replica_ids=replicas, moved_milli_mu_per_minute=30_000
        )
        assignment.generation.incarnation, assignment.generation.number = 1, 17
        assignment.compute_time.GetCurrentTime()
        slices = (
            (0, everybody, "", 10_000),
            (1 << 62, [0], "alpha", 60_000),
            ((1 << 62) + (1 << 32), everybody, "", 0),
        )
        for first_key, places, tenant_id, load in slices:
            assignment.slices.add(first_key=first_key, replicas=places, tenant_id=tenant_id)
            answer.slices.add(model_id=model_id, first_key=first_key, load_milli_mu_per_minute=load)
        assignment.slices[1].frozen_until.seconds = assignment.compute_time.seconds + 600
        assignment.moves.add(
            first_key=1 << 62,
            tenant_id="alpha",
            from_replica_id="gone",
            to_replica_id=replicas[0],
            cause=sharding_pb2.MOVE_CAUSE_REMOVAL,
            load_milli_mu_per_minute=30_000,
            warm_tokens=4_096,
        )
        for replica_id in replicas:
            answer.replicas.add(
                replica_id=replica_id,
                model_id=model_id,
                load_milli_mu_per_minute=70_000 // len(replicas),
                capacity_milli_mu_per_minute=100_000,
                slices=3 if replica_id == replicas[0] else 2,
            )
