"""CapacityService over gRPC: translation only."""

from __future__ import annotations

from typing import Any

from capacity.allocator import Allocator
from capacity.core.allocate import Reservation
from capacity.core.plan import plan_reservation
from capacity.current import read_current
from capacity.translate import capacity_to, demand_from
from common.leadership import Election
from common.store import Store
from fairlead.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from fairlead.errors import InvalidArgumentError, NotLeaderError, UnavailableError
from model_units.units import MilliModelUnitsPerMinute as Rate


class CapacityService(capacity_pb2_grpc.CapacityServiceServicer):
    """Answers while this instance leads.

    Args:
        allocator: Has the ledger and takes demand.
        store: For plans.
        election: Whether this instance leads.
        demand_interval_s: How often demand should be reported.
    """

    def __init__(self, allocator: Allocator, store: Store, election: Election, demand_interval_s: float) -> None:
        self._allocator = allocator
        self._store = store
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
        if not request.tenant_id:
            raise InvalidArgumentError("tenant_id is required", field="tenant_id")
        if request.reserved_milli_mu_per_minute <= 0:
            raise InvalidArgumentError(
                "reserved_milli_mu_per_minute must be above 0", field="reserved_milli_mu_per_minute"
            )
        now = await read_current(self._store, request.model_id)
        rate = Rate(request.reserved_milli_mu_per_minute)
        wanted = Reservation(request.tenant_id, request.model_id, rate, rate)
        plan = plan_reservation(now.replicas, now.model, now.reservations, wanted)
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
