"""DecisionService in memory: a router opens a tenant's own decisions, the control plane everybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fairlead.errors import NotFoundError, Reason, UnauthenticatedError
from fairlead.inference.v1 import decision_pb2, decision_pb2_grpc
from tests.support.fake_platform.router import FakeRouter, abort

if TYPE_CHECKING:
    from tests.support.fake_platform.control import FakeControlPlane


async def found(
    decisions: list[decision_pb2.Decision], request: Any, tenant_id: str, context: Any
) -> decision_pb2.GetDecisionResponse:
    """Those asked for, newest first, of one tenant or of all; or the call ends with what a router says of none."""
    matching = [
        decision
        for decision in decisions
        if decision.request_id == request.request_id and tenant_id in ("", decision.tenant_id)
    ]
    if not matching:
        metadata = {"decisions_kept_max": "4096"}
        await abort(context, NotFoundError(f"{request.request_id} is not among the newest requests", metadata=metadata))
    matching.sort(key=lambda decision: decision.arrive_time.ToNanoseconds(), reverse=True)
    return decision_pb2.GetDecisionResponse(decisions=matching)


class RouterDecisions(decision_pb2_grpc.DecisionServiceServicer):
    """What the router decided, for its tenants."""

    def __init__(self, router: FakeRouter) -> None:
        self._router = router

    async def GetDecision(self, request: Any, context: Any) -> decision_pb2.GetDecisionResponse:
        key = dict(context.invocation_metadata()).get("authorization", "").removeprefix("Bearer ")
        if key not in self._router.keys:
            await abort(context, UnauthenticatedError("this key is unknown: create one", reason=Reason.UNKNOWN_KEY))
        return await found(self._router.decisions, request, self._router.keys[key], context)


class ControlDecisions(decision_pb2_grpc.DecisionServiceServicer):
    """What the routers decided, for administrators."""

    def __init__(self, control: FakeControlPlane, router: FakeRouter) -> None:
        self._control = control
        self._router = router

    async def GetDecision(self, request: Any, context: Any) -> decision_pb2.GetDecisionResponse:
        await self._control.check(context)
        answer = await found(self._router.decisions, request, request.tenant_id, context)
        answer.silent_router_ids.extend(self._control.silent_routers)
        return answer
