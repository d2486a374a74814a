"""The router's side of AssignmentService: it hands its assignments to whoever belongs to the platform."""

from __future__ import annotations

from typing import Any

import grpc.aio

from common.platform_token import is_platform
from data_plane.router.assignments import Assignments
from data_plane.router.metadata import authorization
from fairlead.errors import Reason, UnauthenticatedError
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc

ServicerContext = grpc.aio.ServicerContext[Any, Any]

ASSIGNMENT_SERVICE_NAME = sharding_pb2.DESCRIPTOR.services_by_name["AssignmentService"].full_name


class AssignmentService(sharding_pb2_grpc.AssignmentServiceServicer):
    """See sharding.proto.

    Args:
        assignments: What is held.
        token: The platform's own: an assignment names tenants and decides where their requests go.
    """

    def __init__(self, assignments: Assignments, token: str) -> None:
        self._assignments = assignments
        self._token = token

    async def ExchangeAssignments(
        self, request: sharding_pb2.ExchangeAssignmentsRequest, context: ServicerContext
    ) -> sharding_pb2.ExchangeAssignmentsResponse:
        """See sharding.proto.

        Raises:
            UnauthenticatedError: The platform's token is missing or wrong.
        """
        if not is_platform(authorization(context), self._token):
            raise UnauthenticatedError(
                "assignments are exchanged within the platform only; send `authorization: Platform TOKEN`",
                reason=Reason.MISSING_KEY,
            )
        return self._assignments.exchange(request)
