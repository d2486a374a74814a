"""AssignmentService: whoever meets this agent gets the assignment it holds, or hands it a newer one."""

from __future__ import annotations

from typing import Any, Final

from engines.agent.assignments import AssignmentHolder
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc

SERVICE: Final = sharding_pb2.DESCRIPTOR.services_by_name["AssignmentService"].full_name


class AssignmentServicer(sharding_pb2_grpc.AssignmentServiceServicer):
    """Translates between gRPC and the holder.

    Args:
        holder: Holds the assignment.
    """

    def __init__(self, holder: AssignmentHolder) -> None:
        self._holder = holder

    async def ExchangeAssignments(
        self, request: sharding_pb2.ExchangeAssignmentsRequest, context: Any
    ) -> sharding_pb2.ExchangeAssignmentsResponse:
        """See AssignmentService."""
        return self._holder.exchange(request)
