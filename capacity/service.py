"""CapacityService over gRPC: translation only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from capacity.allocator import Allocator
from capacity.core.explain import explain
from capacity.core.plan import plan_reservation
from capacity.core.values import ModelLedger
from capacity.core.what_if import what_if
from capacity.current import read_current
from capacity.requests import change_from, name, wanted_from
from capacity.translate import capacity_to, demand_from, domain_to, headroom_to, quota_to
from common.leadership import Election
from common.store import Store
from fairlead.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from fairlead.errors import NotFoundError, NotLeaderError, Reason, UnavailableError


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
        response = capacity_pb2.ListCapacityResponse(
            models=[capacity_to(ledger) for ledger in self._ledgers() if request.model_id in ("", ledger.model_id)]
        )
        response.compute_time.FromNanoseconds(self._allocator.computed_wall_ns)
        return response

    async def PlanReservation(
        self, request: capacity_pb2.PlanReservationRequest, context: Any
    ) -> capacity_pb2.PlanReservationResponse:
        """Whether a reservation could be sold."""
        self._check_leader()
        wanted = wanted_from(request)
        now = await read_current(self._store, request.model_id)
        plan = plan_reservation(now.replicas, now.model, now.reservations, wanted)
        return capacity_pb2.PlanReservationResponse(
            sellable=plan.sellable,
            have_milli_mu_per_minute=plan.ledger.have,
            sold_milli_mu_per_minute=plan.ledger.sold,
            headroom_milli_mu_per_minute=plan.headroom,
            explanation=plan.explanation,
            headroom=headroom_to(plan.ledger.headroom),
            largest_domain=domain_to(plan.ledger.largest_domain),
            sellable_milli_mu_per_minute=plan.ledger.sellable,
            reservable_milli_mu_per_minute=plan.reservable,
        )

    async def PlanCapacity(
        self, request: capacity_pb2.PlanCapacityRequest, context: Any
    ) -> capacity_pb2.PlanCapacityResponse:
        """What the ledger of a model would be."""
        self._check_leader()
        change = change_from(request)
        now = await read_current(self._store, request.model_id)
        demand = self._allocator.demand.get(request.model_id, {})
        prospect = what_if(now.model, now.replicas, now.reservations, demand, change)
        return capacity_pb2.PlanCapacityResponse(
            before=capacity_to(prospect.before),
            after=capacity_to(prospect.after),
            findings=prospect.findings,
            covered=prospect.after.covered,
        )

    async def ExplainQuota(
        self, request: capacity_pb2.ExplainQuotaRequest, context: Any
    ) -> capacity_pb2.ExplainQuotaResponse:
        """One tenant's quota with every number of the last round's computation."""
        self._check_leader()
        model_id, tenant_id = name("model_id", request.model_id), name("tenant_id", request.tenant_id)
        ledger = next((ledger for ledger in self._ledgers() if ledger.model_id == model_id), None)
        if ledger is None:
            raise NotFoundError(f"there is no model {model_id!r}", reason=Reason.UNKNOWN_MODEL, field="model_id")
        quota = ledger.quota(tenant_id)
        if quota is None:
            raise NotFoundError(
                f"{tenant_id!r} has no reservation on {model_id!r}, so it has no quota there",
                reason=Reason.UNKNOWN_TENANT,
                field="tenant_id",
            )
        response = capacity_pb2.ExplainQuotaResponse(
            quota=quota_to(model_id, quota),
            tier=quota.tier,
            weight=quota.weight,
            counted_wants_milli_mu_per_minute=quota.counted,
            kept_milli_mu_per_minute=quota.kept,
            lent_milli_mu_per_minute=quota.lent,
            borrowed_milli_mu_per_minute=quota.borrowed,
            idle_share_milli_mu_per_minute=quota.idle,
            model=capacity_to(ledger, with_quotas=False),
            steps=explain(ledger, quota, doubted=model_id in self._allocator.doubted),
        )
        response.compute_time.FromNanoseconds(self._allocator.computed_wall_ns)
        return response

    async def ReportDemand(
        self, request: capacity_pb2.ReportDemandRequest, context: Any
    ) -> capacity_pb2.ReportDemandResponse:
        """Takes the limiter's view of demand."""
        self._check_leader()
        self._allocator.take_demand(request.epoch, demand_from(request.wants))
        response = capacity_pb2.ReportDemandResponse()
        response.refresh_interval.FromNanoseconds(round(self._demand_interval_s * 1e9))
        return response

    def _ledgers(self) -> Sequence[ModelLedger]:
        if not self._allocator.computed_wall_ns:
            raise UnavailableError("the ledger has not been computed yet; try again in a second", retry_after_s=1.0)
        return self._allocator.ledgers

    def _check_leader(self) -> None:
        if not self._election.is_leader:
            raise NotLeaderError("this instance of the capacity allocator is a standby; ask the leader")
