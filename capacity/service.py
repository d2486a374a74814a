"""CapacityService over gRPC: translation only."""

from __future__ import annotations

from typing import Any

from capacity.allocator import Allocator, Views
from capacity.core.allocate import Reservation
from capacity.core.plan import plan_reservation
from capacity.translate import capacity_to, demand_from
from common.leadership import Election
from fairlead.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from fairlead.errors import InvalidArgumentError, NotFoundError, NotLeaderError, Reason, UnavailableError
from model_units.units import MilliModelUnitsPerMinute as Rate


class CapacityService(capacity_pb2_grpc.CapacityServiceServicer):
    """Answers while this instance leads.

    Args:
        allocator: Has the ledger and takes demand.
        views: For plans.
        election: Whether this instance leads.
        demand_interval_s: How often demand should be reported.
    """

    def __init__(self, allocator: Allocator, views: Views, election: Election, demand_interval_s: float) -> None:
        self._allocator = allocator
        self._views = views
        self._election = election
        self._demand_interval_s = demand_interval_s

    async def ListCapacity(
        self, request: capacity_pb2.ListCapacityRequest, context: Any
    ) -> capacity_pb2.ListCapacityResponse:
        """The ledger of the last round."""
        self._check_leader()
        if not self._allocator.computed_wall_ns:
            raise UnavailableError("the ledger has not been computed yet; try again in a second", retry_after_s=1.0)
        response = capacity_pb2.ListCapacityResponse(
            models=[
                capacity_to(ledger) for ledger in self._allocator.ledgers if request.model_id in ("", ledger.model_id)
            ]
        )
        response.compute_time.FromNanoseconds(self._allocator.computed_wall_ns)
        return response

    async def PlanReservation(
        self, request: capacity_pb2.PlanReservationRequest, context: Any
    ) -> capacity_pb2.PlanReservationResponse:
        """Whether a reservation could be sold."""
        self._check_leader()
        if not self._views.synced:
            raise UnavailableError("the store has not been read yet; try again in a second", retry_after_s=1.0)
        if not request.tenant_id:
            raise InvalidArgumentError("tenant_id is required", field="tenant_id")
        if request.reserved_milli_mu_per_minute <= 0:
            raise InvalidArgumentError(
                "reserved_milli_mu_per_minute must be above 0", field="reserved_milli_mu_per_minute"
            )
        model = self._views.models.items.get(request.model_id)
        if model is None:
            raise NotFoundError(
                f"there is no model {request.model_id!r}", reason=Reason.UNKNOWN_MODEL, field="model_id"
            )
        rate = Rate(request.reserved_milli_mu_per_minute)
        plan = plan_reservation(
            list(self._views.replicas.items.values()),
            model,
            list(self._views.reservations.items.values()),
            Reservation(request.tenant_id, request.model_id, rate, rate),
        )
        return capacity_pb2.PlanReservationResponse(
            sellable=plan.sellable,
            have_milli_mu_per_minute=plan.have,
            sold_milli_mu_per_minute=plan.sold,
            headroom_milli_mu_per_minute=plan.headroom,
            explanation=plan.explanation,
        )

    async def ReportDemand(
        self, request: capacity_pb2.ReportDemandRequest, context: Any
    ) -> capacity_pb2.ReportDemandResponse:
        """Takes the limiter's view of demand."""
        self._check_leader()
        self._allocator.take_demand(request.epoch, demand_from(request.wants))
        response = capacity_pb2.ReportDemandResponse()
        response.refresh_interval.FromNanoseconds(round(self._demand_interval_s * 1e9))
        return response

    def _check_leader(self) -> None:
        if not self._election.is_leader:
            raise NotLeaderError("this instance of the capacity allocator is a standby; ask the leader")
