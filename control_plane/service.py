"""AdminService over gRPC: every call goes to the room's part that knows; mutations are remembered by request id."""

from __future__ import annotations

from typing import Any

from common.clock import Clock
from control_plane.directory import Directory
from control_plane.metrics import ControlPlaneMetrics
from control_plane.models import Models
from control_plane.mutations import Mutations
from control_plane.policies import Policies
from control_plane.reservations import Reservations
from control_plane.tenants import ApiKeys, Tenants
from fairlead.admin.v1 import admin_pb2, admin_pb2_grpc
from fairlead.engine.v1 import engine_pb2


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """Answers on every instance.

    Args:
        tenants: Tenants.
        api_keys: API keys.
        models: Models.
        reservations: Reservations.
        policies: Many reservations at once.
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
        policies: Policies,
        directory: Directory,
        clock: Clock,
        metrics: ControlPlaneMetrics,
    ) -> None:
        self._tenants = tenants
        self._api_keys = api_keys
        self._models = models
        self._reservations = reservations
        self._policies = policies
        self._directory = directory
        self._mutate = Mutations(clock, metrics).run

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

    async def ApplyReservations(
        self, request: admin_pb2.ApplyReservationsRequest, context: Any
    ) -> admin_pb2.ApplyReservationsResponse:
        """See the proto."""
        return await self._mutate("ApplyReservations", request, self._policies.apply)

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
