"""The CLI's connection to the control plane and what is served beside it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc

from fairlead.admin.v1 import admin_pb2
from fairlead.admin.v1.admin_pb2_grpc import AdminServiceStub
from fairlead.admin.v1.calibration_pb2_grpc import CalibrationServiceStub
from fairlead.admin.v1.usage_pb2_grpc import UsageServiceStub
from fairlead.capacity.v1.capacity_pb2_grpc import CapacityServiceStub
from fairlead.errors import DeadlineExceededError, FairleadError, Reason, UnavailableError, from_rpc_error
from fairlead.inference.v1.decision_pb2_grpc import DecisionServiceStub
from fairlead.quota.v1.quota_pb2_grpc import RateLimiterServiceStub
from fairlead.sdk.settings import Tls, channel_options
from fairlead.sharding.v1.sharding_pb2_grpc import ShardingServiceStub

TIMEOUT_S = 10.0
"""Administration is quick or broken."""

Request = TypeVar("Request")
Response = TypeVar("Response")


# Channels of an interrupted command, kept until its process ends.
_ABANDONED: list[grpc.Channel] = []


class AdminConnection:
    """A channel to the control plane.

    Args:
        address: host:port.
        token: The admin token.
        tls: How to encrypt; None for plain text.
        timeout_s: Deadline of each call, seconds.
    """

    def __init__(self, address: str, token: str, tls: Tls | None, timeout_s: float = TIMEOUT_S) -> None:
        options = channel_options(tls)
        self._channel = (
            grpc.secure_channel(address, tls.credentials(), options=options)
            if tls
            else grpc.insecure_channel(address, options=options)
        )
        self._address = address
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._timeout_s = timeout_s
        self.admin = AdminServiceStub(self._channel)
        """Tenants, keys, models, reservations, replicas, services."""
        self.calibration = CalibrationServiceStub(self._channel)
        """Calibrations, cost profiles, drift, events."""
        self.capacity = CapacityServiceStub(self._channel)
        """Have, sold and used."""
        self.limiter = RateLimiterServiceStub(self._channel)
        """Leases."""
        self.sharding = ShardingServiceStub(self._channel)
        """Assignments."""
        self.decisions = DecisionServiceStub(self._channel)
        """What routers decided about requests."""
        self.usage = UsageServiceStub(self._channel)
        """What tenants were charged."""

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout_s: float | None = None
    ) -> Response:
        """Calls a method.

        Args:
            method: Of one of the stubs of this connection.
            request: What to send.
            timeout_s: Another deadline than this connection's, seconds.

        Raises:
            FairleadError: What the platform answered, or that it cannot be reached.
        """
        try:
            return method(request, timeout=timeout_s or self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as failure:
            raise self._worded(from_rpc_error(failure)) from None

    def stream(self, method: grpc.UnaryStreamMultiCallable[Request, Response], request: Request) -> Iterator[Response]:
        """Calls a method that answers for as long as there is something new. Ending the iteration ends the call.

        Args:
            method: Of one of the stubs of this connection.
            request: What to send.

        Raises:
            FairleadError: What the platform answered, or that it cannot be reached.
        """
        answers = method(request, metadata=self._metadata)
        try:
            yield from answers
        except grpc.RpcError as failure:
            raise self._worded(from_rpc_error(failure)) from None
        finally:
            answers.cancel()  # type: ignore[no-untyped-call]

    def tenants(self) -> list[admin_pb2.Tenant]:
        """Lists all tenants, page by page."""
        found: list[admin_pb2.Tenant] = []
        token = ""
        while True:
            page = self.call(self.admin.ListTenants, admin_pb2.ListTenantsRequest(page_size=1000, page_token=token))
            found.extend(page.tenants)
            token = page.next_page_token
            if not token:
                return found

    def models(self) -> list[admin_pb2.Model]:
        """Lists all models, page by page."""
        found: list[admin_pb2.Model] = []
        token = ""
        while True:
            page = self.call(self.admin.ListModels, admin_pb2.ListModelsRequest(page_size=1000, page_token=token))
            found.extend(page.models)
            token = page.next_page_token
            if not token:
                return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is KeyboardInterrupt:
            # Closing or collecting it may wait for ever for a call that the interrupt has torn apart.
            _ABANDONED.append(self._channel)
        else:
            self._channel.close()

    def _worded(self, error: FairleadError) -> FairleadError:
        if error.reason is not Reason.UNSPECIFIED:
            return error
        detail = error.message.rsplit(": ", 1)[-1].strip() or "no reason given"
        if isinstance(error, UnavailableError):
            return UnavailableError(
                f"cannot reach the control plane at {self._address} ({detail}): check --admin-address, and that the "
                "platform runs; `fairlead doctor` says what is wrong"
            )
        if isinstance(error, DeadlineExceededError):
            return DeadlineExceededError(
                f"the control plane at {self._address} did not answer within {self._timeout_s:g} s; `fairlead doctor` "
                "says what is wrong"
            )
        if "Method not found" in error.message:
            return UnavailableError(
                f"{self._address} does not serve the admin API: give the control plane's address with --admin-address"
            )
        return error


def new_request_id() -> str:
    """Names a mutation, so that a repeated one is executed once."""
    return uuid.uuid4().hex
