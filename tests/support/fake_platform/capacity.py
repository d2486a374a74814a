"""CapacityService in memory: a ledger that follows from the fake control plane's tables, without demand or tiers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from control_plane.core.sales import LiveCapacity
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, NotFoundError, Reason
from tests.support.fake_platform.router import abort

if TYPE_CHECKING:
    from tests.support.fake_platform.control import FakeControlPlane


class FakeCapacity(capacity_pb2_grpc.CapacityServiceServicer):
    """The ledger, as it follows from the tables."""

    def __init__(self, control: FakeControlPlane) -> None:
        self._control = control
        self.failure: FairleadError | None = None
        """Every listing ends with this."""

    def ledger(
        self,
        model: admin_pb2.Model,
        reservations: Iterable[admin_pb2.Reservation],
        replicas: Iterable[engine_pb2.Replica],
    ) -> capacity_pb2.ModelCapacity:
        """Have, sellable and sold of one model; guarantees in the order of the names."""
        ready = [
            replica
            for replica in replicas
            if replica.model_id == model.model_id and replica.state == engine_pb2.REPLICA_STATE_READY
        ]
        sold = [entry for entry in reservations if entry.model_id == model.model_id]
        have = sum(replica.capacity_milli_mu_per_minute for replica in ready) * 8 // 10
        total = sum(entry.reserved_milli_mu_per_minute for entry in sold)
        answer = capacity_pb2.ModelCapacity(
            model_id=model.model_id,
            replicas_ready=len(ready),
            have_milli_mu_per_minute=have,
            sold_milli_mu_per_minute=total,
            used_milli_mu_per_minute=12_000,
            shortfall_milli_mu_per_minute=max(0, total - have),
            headroom=model.headroom,
        )
        held_back = 0
        if model.headroom > admin_pb2.HEADROOM_NONE and ready:
            largest = max(ready, key=lambda replica: replica.capacity_milli_mu_per_minute)
            held_back = largest.capacity_milli_mu_per_minute * 8 // 10
            answer.largest_domain.MergeFrom(
                capacity_pb2.FailureDomain(
                    kind=model.headroom,
                    name=largest.replica_id,
                    replicas=1,
                    capacity_milli_mu_per_minute=held_back,
                )
            )
        answer.sellable_milli_mu_per_minute = have - held_back
        answer.uncovered_after_loss_milli_mu_per_minute = max(0, total - have + held_back)
        left = have
        for entry in sorted(sold, key=lambda entry: entry.tenant_id):
            guaranteed = min(entry.reserved_milli_mu_per_minute, left)
            left -= guaranteed
            answer.quotas.add(
                tenant_id=entry.tenant_id,
                model_id=model.model_id,
                reserved_milli_mu_per_minute=entry.reserved_milli_mu_per_minute,
                guaranteed_milli_mu_per_minute=guaranteed,
                granted_milli_mu_per_minute=guaranteed + 5_000,
                burst_ceiling_milli_mu_per_minute=entry.burst_ceiling_milli_mu_per_minute,
                wants_milli_mu_per_minute=20_000,
                used_milli_mu_per_minute=12_000,
            )
        return answer

    def live(self, model: admin_pb2.Model) -> LiveCapacity:
        """What may be sold of a model now."""
        now = self._now(model)
        have, sellable = now.have_milli_mu_per_minute, now.sellable_milli_mu_per_minute
        return LiveCapacity(have, sellable, have - sellable)

    def _now(self, model: admin_pb2.Model) -> capacity_pb2.ModelCapacity:
        return self.ledger(model, self._control.reservations.values(), self._control.replicas.values())

    async def _model(self, model_id: str, context: Any) -> admin_pb2.Model:
        await self._control.check(context)
        if model_id not in self._control.models:
            await abort(context, NotFoundError(f"there is no model {model_id!r}", reason=Reason.UNKNOWN_MODEL))
        return self._control.models[model_id]

    async def ListCapacity(self, request: Any, context: Any) -> Any:
        await self._control.check(context)
        if self.failure is not None:
            await abort(context, self.failure)
        answer = capacity_pb2.ListCapacityResponse()
        answer.compute_time.FromNanoseconds(int((time.time() + self._control.clock_skew_s) * 1e9))
        for model_id in sorted(self._control.models):
            if request.model_id in ("", model_id):
                answer.models.append(self._now(self._control.models[model_id]))
        return answer

    async def PlanReservation(self, request: Any, context: Any) -> Any:
        model = await self._model(request.model_id, context)
        now, asked = self._now(model), request.reserved_milli_mu_per_minute
        others = sum(quota.reserved_milli_mu_per_minute for quota in now.quotas if quota.tenant_id != request.tenant_id)
        left = now.sellable_milli_mu_per_minute - others
        return capacity_pb2.PlanReservationResponse(
            sellable=asked <= left,
            have_milli_mu_per_minute=now.have_milli_mu_per_minute,
            sold_milli_mu_per_minute=others + asked,
            headroom_milli_mu_per_minute=left - asked,
            explanation=f"{now.sellable_milli_mu_per_minute / 1000:g} MU/min may be sold.",
            headroom=now.headroom,
            largest_domain=now.largest_domain if now.HasField("largest_domain") else None,
            sellable_milli_mu_per_minute=now.sellable_milli_mu_per_minute,
            reservable_milli_mu_per_minute=max(0, left),
        )

    async def PlanCapacity(self, request: Any, context: Any) -> Any:
        model = await self._model(request.model_id, context)
        changed = admin_pb2.Model()
        changed.CopyFrom(model)
        changed.headroom = request.headroom or model.headroom
        replaced = {*request.without_tenant_ids, *(entry.tenant_id for entry in request.reservations)}
        reservations = [
            entry
            for entry in self._control.reservations.values()
            if entry.model_id != model.model_id or entry.tenant_id not in replaced
        ]
        replicas = [
            replica
            for replica in self._control.replicas.values()
            if replica.replica_id not in request.without_replica_ids and replica.host not in request.without_hosts
        ]
        for number in range(request.add_replicas):
            replicas.append(
                engine_pb2.Replica(
                    replica_id=f"added-{number}",
                    model_id=model.model_id,
                    capacity_milli_mu_per_minute=request.add_replica_capacity_milli_mu_per_minute or 100_000,
                    state=engine_pb2.REPLICA_STATE_READY,
                )
            )
        after = self.ledger(changed, [*reservations, *request.reservations], replicas)
        uncovered = after.uncovered_after_loss_milli_mu_per_minute
        return capacity_pb2.PlanCapacityResponse(
            before=self._now(model),
            after=after,
            findings=[f"{uncovered / 1000:g} MU/min would not be covered."],
            covered=not uncovered,
        )

    async def ExplainQuota(self, request: Any, context: Any) -> Any:
        model = await self._model(request.model_id, context)
        now = self._now(model)
        quota = next((quota for quota in now.quotas if quota.tenant_id == request.tenant_id), None)
        if quota is None:
            await abort(context, NotFoundError(f"{request.tenant_id} has no reservation on {request.model_id}"))
        bare = capacity_pb2.ModelCapacity()
        bare.CopyFrom(now)
        bare.ClearField("quotas")
        return capacity_pb2.ExplainQuotaResponse(
            quota=quota,
            tier=5,
            weight=1,
            counted_wants_milli_mu_per_minute=20_480,
            kept_milli_mu_per_minute=40_960,
            lent_milli_mu_per_minute=19_040,
            idle_share_milli_mu_per_minute=5_000,
            model=bare,
            steps=["60 MU/min are reserved.", "19.04 MU/min of them are lent."],
        )
