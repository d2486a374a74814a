"""One address for people: the leaders' read-only calls, answered here by asking the leader.

ReportDemand and ReportWants are for the platform's own processes, which find the leaders themselves; they are not
forwarded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc.aio

from common.logs import get_logger
from common.rpc import LeaderClient
from control_plane.core.sales import LiveCapacity
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from fairlead.errors import FairleadError, PermissionDeniedError, from_rpc_error
from fairlead.quota.v1 import quota_pb2, quota_pb2_grpc

R = TypeVar("R")

log = get_logger(__name__)

_CALL_TIMEOUT_S = 3.0
# An allocator that hangs must not keep administrators from working: sales then go by replicas_max.
_LIVE_TIMEOUT_S = 1.0


async def ask(call: Callable[[], Awaitable[R]]) -> R:
    """Makes a call to another service.

    Raises:
        FairleadError: What the other service raised, or that it cannot be reached.
    """
    try:
        return await call()
    except grpc.aio.AioRpcError as failure:
        raise from_rpc_error(failure) from failure


class CapacityForwarder(capacity_pb2_grpc.CapacityServiceServicer):
    """CapacityService by way of the leading allocator.

    Args:
        leader: Finds it.
    """

    def __init__(self, leader: LeaderClient) -> None:
        self._leader = leader

    def _stub(self) -> capacity_pb2_grpc.CapacityServiceAsyncStub:
        return capacity_pb2_grpc.CapacityServiceStub(self._leader.channel())

    async def ListCapacity(
        self, request: capacity_pb2.ListCapacityRequest, context: Any
    ) -> capacity_pb2.ListCapacityResponse:
        """See CapacityService."""
        return await ask(lambda: self._stub().ListCapacity(request, timeout=_CALL_TIMEOUT_S))

    async def PlanReservation(
        self, request: capacity_pb2.PlanReservationRequest, context: Any
    ) -> capacity_pb2.PlanReservationResponse:
        """See CapacityService."""
        return await ask(lambda: self._stub().PlanReservation(request, timeout=_CALL_TIMEOUT_S))

    async def PlanCapacity(
        self, request: capacity_pb2.PlanCapacityRequest, context: Any
    ) -> capacity_pb2.PlanCapacityResponse:
        """See CapacityService."""
        return await ask(lambda: self._stub().PlanCapacity(request, timeout=_CALL_TIMEOUT_S))

    async def ExplainQuota(
        self, request: capacity_pb2.ExplainQuotaRequest, context: Any
    ) -> capacity_pb2.ExplainQuotaResponse:
        """See CapacityService."""
        return await ask(lambda: self._stub().ExplainQuota(request, timeout=_CALL_TIMEOUT_S))

    async def ReportDemand(
        self, request: capacity_pb2.ReportDemandRequest, context: Any
    ) -> capacity_pb2.ReportDemandResponse:
        """Refused."""
        raise PermissionDeniedError("demand is reported to the leading capacity allocator itself")

    async def live(self, reservation: admin_pb2.Reservation) -> LiveCapacity | None:
        """What the allocator says of a model; None where it cannot be asked or does not know the model yet.

        Args:
            reservation: One that is to be sold of the model.
        """
        request = capacity_pb2.PlanReservationRequest(
            model_id=reservation.model_id,
            tenant_id=reservation.tenant_id,
            reserved_milli_mu_per_minute=reservation.reserved_milli_mu_per_minute,
        )
        try:
            plan = await ask(lambda: self._stub().PlanReservation(request, timeout=_LIVE_TIMEOUT_S))
        except FairleadError as error:
            log.warning("live capacity unknown", model=reservation.model_id, error=error.message)
            return None
        return LiveCapacity(
            have=plan.have_milli_mu_per_minute,
            sellable=plan.sellable_milli_mu_per_minute,
            largest_domain=plan.largest_domain.capacity_milli_mu_per_minute,
        )


class RateLimiterForwarder(quota_pb2_grpc.RateLimiterServiceServicer):
    """RateLimiterService by way of the leading rate limiter.

    Args:
        leader: Finds it.
    """

    def __init__(self, leader: LeaderClient) -> None:
        self._leader = leader

    async def ListLeases(self, request: quota_pb2.ListLeasesRequest, context: Any) -> quota_pb2.ListLeasesResponse:
        """See RateLimiterService."""
        return await ask(
            lambda: quota_pb2_grpc.RateLimiterServiceStub(self._leader.channel()).ListLeases(
                request, timeout=_CALL_TIMEOUT_S
            )
        )

    async def ReportWants(self, request: quota_pb2.ReportWantsRequest, context: Any) -> quota_pb2.ReportWantsResponse:
        """Refused."""
        raise PermissionDeniedError("routers report to the leading rate limiter itself")
