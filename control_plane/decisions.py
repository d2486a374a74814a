"""DecisionService for administrators: every registered router is asked, and what they say is put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from common.decisions import Collected, collect_decisions, nothing_remembered
from control_plane.core import check
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import FairleadError, InvalidArgumentError, Reason, UnavailableError
from fairlead.inference.v1 import decision_pb2, decision_pb2_grpc


class DecisionService(decision_pb2_grpc.DecisionServiceServicer):
    """Answers on every instance.

    Args:
        routers: The routers that are registered, by anything.
        token: The platform's own, which opens every tenant's decisions at routers.
    """

    def __init__(self, routers: Callable[[], Mapping[str, admin_pb2.ServiceInstance]], token: str) -> None:
        self._routers = routers
        self._token = token

    async def GetDecision(
        self, request: decision_pb2.GetDecisionRequest, context: Any
    ) -> decision_pb2.GetDecisionResponse:
        """See DecisionService."""
        if not request.request_id:
            raise InvalidArgumentError("request_id is required", field="request_id")
        check.request_id(request.request_id)
        if request.tenant_id:
            check.tenant_id(request.tenant_id)
        routers = {router.instance_id: router.address for router in self._routers().values()}
        if not routers:
            raise UnavailableError(
                "no router is registered, so nobody can explain requests: `fairlead services` shows what runs",
                reason=Reason.NOT_READY,
            )
        found = await collect_decisions(routers, request, self._token)
        if not found.decisions:
            raise _nothing(request.request_id, found, len(routers))
        return decision_pb2.GetDecisionResponse(decisions=found.decisions, silent_router_ids=found.silent_router_ids)


def _nothing(request_id: str, found: Collected, asked: int) -> FairleadError:
    if len(found.silent_router_ids) == asked:
        return UnavailableError(
            f"no router could be asked about {request_id} ({', '.join(found.silent_router_ids)}): see that they run, "
            "and that they were started with the same key_pepper_file as the control plane",
            reason=Reason.NOT_READY,
        )
    return nothing_remembered(request_id, asked, found)
