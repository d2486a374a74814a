"""AdminService over gRPC: every call goes to the room's part that knows; mutations are remembered by request id."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

from google.protobuf.message import Message

from common.clock import Clock
from common.logs import get_logger
from control_plane.core import check
from control_plane.core.remembered import Remembered
from control_plane.directory import Directory
from control_plane.metrics import ControlPlaneMetrics
from control_plane.models import Models, Reservations
from control_plane.tenants import ApiKeys, Tenants
from fairlead.admin.v1 import admin_pb2, admin_pb2_grpc
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, InvalidArgumentError

log = get_logger(__name__)


class Mutation(Protocol):
    """What every mutating request has."""

    request_id: str
    validate_only: bool

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:
        """See protobuf."""
        ...


Q = TypeVar("Q", bound=Mutation)
A = TypeVar("A", bound=Message)


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Answers on every instance.

    Args:
        tenants: Tenants.
        api_keys: API keys.
        models: Models.
        reservations: Reservations.
        directory: What runs.
        clock: Ages remembered results.
        metrics: Counts mutations.
    """

    def __init__(
        self,
        *,
        tenants: Tenants,
        api_keys: ApiKeys,
        models: Models,
        reservations: Reservations,
        directory: Directory,
        clock: Clock,
        metrics: ControlPlaneMetrics,
    ) -> None:
        self._tenants = tenants
        self._api_keys = api_keys
        self._models = models
        self._reservations = reservations
        self._directory = directory
        self._clock = clock
        self._metrics = metrics
        self._remembered: Remembered[Message] = Remembered()
        self._running: dict[tuple[str, str], tuple[bytes, asyncio.Task[Any]]] = {}

    async def _mutate(self, method: str, request: Q, act: Callable[[Q], Awaitable[A]]) -> A:
        """Does a mutation once per request id; a caller that goes away does not leave it half done."""
        try:
            check.request_id(request.request_id)
            answer = await self._once(method, request, act)
        except FairleadError as error:
            self._metrics.mutations.labels(method, error.reason.value.lower()).inc()
            raise
        self._metrics.mutations.labels(method, "checked" if request.validate_only else "done").inc()
        if not request.validate_only:
            log.info("administered", method=method, request_id=request.request_id)
        return answer

    async def _once(self, method: str, request: Q, act: Callable[[Q], Awaitable[A]]) -> A:
        if request.validate_only or not request.request_id:
            return await act(request)
        fingerprint = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        known = self._remembered.recall(method, request.request_id, fingerprint, self._clock.monotonic_ns())
        if known is not None:
            return cast(A, known)
        name = (method, request.request_id)
        fingerprint_running, task = self._running.get(name, (fingerprint, None))
        if fingerprint_running != fingerprint:
            raise InvalidArgumentError("request_id is in use for a different request right now", field="request_id")
        if task is None:
            task = asyncio.ensure_future(self._act(method, request, fingerprint, act))
            self._running[name] = (fingerprint, task)
            task.add_done_callback(lambda done: self._forget(name, done))
        return cast(A, await asyncio.shield(task))

    def _forget(self, name: tuple[str, str], done: asyncio.Task[Any]) -> None:
        del self._running[name]
        if not done.cancelled():
            # The caller may have gone away; then nobody else looks at the failure, and a retry meets it again.
            done.exception()

    async def _act(self, method: str, request: Q, fingerprint: bytes, act: Callable[[Q], Awaitable[A]]) -> A:
        answer = await act(request)
        self._remembered.remember(method, request.request_id, fingerprint, answer, self._clock.monotonic_ns())
        return answer

    async def CreateTenant(self, request: admin_pb2.CreateTenantRequest, context: Any) -> admin_pb2.Tenant:
        """See the proto."""
        return await self._mutate("CreateTenant", request, self._tenants.create)

    async def GetTenant(self, request: admin_pb2.GetTenantRequest, context: Any) -> admin_pb2.Tenant:
        """See the proto."""
        return await self._tenants.get(request)

    async def ListTenants(self, request: admin_pb2.ListTenantsRequest, context: Any) -> admin_pb2.ListTenantsResponse:
        """See the proto."""
        return await self._tenants.list(request)

    async def UpdateTenant(self, request: admin_pb2.UpdateTenantRequest, context: Any) -> admin_pb2.Tenant:
        """See the proto."""
        return await self._mutate("UpdateTenant", request, self._tenants.update)

    async def DeleteTenant(
        self, request: admin_pb2.DeleteTenantRequest, context: Any
    ) -> admin_pb2.DeleteTenantResponse:
        """See the proto."""
        return await self._mutate("DeleteTenant", request, self._tenants.delete)

    async def CreateApiKey(
        self, request: admin_pb2.CreateApiKeyRequest, context: Any
    ) -> admin_pb2.CreateApiKeyResponse:
        """See the proto."""
        return await self._mutate("CreateApiKey", request, self._api_keys.create)

    async def ListApiKeys(self, request: admin_pb2.ListApiKeysRequest, context: Any) -> admin_pb2.ListApiKeysResponse:
        """See the proto."""
        return await self._api_keys.list(request)

    async def RevokeApiKey(
        self, request: admin_pb2.RevokeApiKeyRequest, context: Any
    ) -> admin_pb2.RevokeApiKeyResponse:
        """See the proto."""
        return await self._mutate("RevokeApiKey", request, self._api_keys.revoke)

    async def CreateModel(self, request: admin_pb2.CreateModelRequest, context: Any) -> admin_pb2.Model:
        """See the proto."""
        return await self._mutate("CreateModel", request, self._models.create)

    async def GetModel(self, request: admin_pb2.GetModelRequest, context: Any) -> admin_pb2.Model:
        """See the proto."""
        return await self._models.get(request)

    async def ListModels(self, request: admin_pb2.ListModelsRequest, context: Any) -> admin_pb2.ListModelsResponse:
        """See the proto."""
        return await self._models.list(request)

    async def UpdateModel(self, request: admin_pb2.UpdateModelRequest, context: Any) -> admin_pb2.Model:
        """See the proto."""
        return await self._mutate("UpdateModel", request, self._models.update)

    async def DeleteModel(self, request: admin_pb2.DeleteModelRequest, context: Any) -> admin_pb2.DeleteModelResponse:
        """See the proto."""
        return await self._mutate("DeleteModel", request, self._models.delete)

    async def SetReservation(self, request: admin_pb2.SetReservationRequest, context: Any) -> admin_pb2.Reservation:
        """See the proto."""
        return await self._mutate("SetReservation", request, self._reservations.set)

    async def ListReservations(
        self, request: admin_pb2.ListReservationsRequest, context: Any
    ) -> admin_pb2.ListReservationsResponse:
        """See the proto."""
        return await self._reservations.list(request)

    async def DeleteReservation(
        self, request: admin_pb2.DeleteReservationRequest, context: Any
    ) -> admin_pb2.DeleteReservationResponse:
        """See the proto."""
        return await self._mutate("DeleteReservation", request, self._reservations.delete)

    async def ListReplicas(
        self, request: admin_pb2.ListReplicasRequest, context: Any
    ) -> admin_pb2.ListReplicasResponse:
        """See the proto."""
        return await self._directory.replicas(request)

    async def DrainReplica(self, request: admin_pb2.DrainReplicaRequest, context: Any) -> engine_pb2.Replica:
        """See the proto."""
        return await self._mutate("DrainReplica", request, self._directory.drain)

    async def ListServices(
        self, request: admin_pb2.ListServicesRequest, context: Any
    ) -> admin_pb2.ListServicesResponse:
        """See the proto."""
        return await self._directory.services(request)
