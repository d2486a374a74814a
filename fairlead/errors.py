"""The one error tree of Fairlead: raised by the services, carried over the wire, raised again by the SDK.

    FairleadError                     code                  HTTP
    ├── InvalidArgumentError          INVALID_ARGUMENT      400
    ├── UnauthenticatedError          UNAUTHENTICATED       401
    ├── PermissionDeniedError         PERMISSION_DENIED     403
    ├── NotFoundError                 NOT_FOUND             404
    ├── AlreadyExistsError            ALREADY_EXISTS        409
    ├── ConflictError                 ABORTED               409
    ├── FailedPreconditionError       FAILED_PRECONDITION   400
    │   └── NotLeaderError            FAILED_PRECONDITION   400
    ├── QuotaExceededError            RESOURCE_EXHAUSTED    429
    ├── RequestCancelledError         CANCELLED             499
    ├── DeadlineExceededError         DEADLINE_EXCEEDED     504
    ├── UnavailableError              UNAVAILABLE           503
    └── InternalError                 INTERNAL              500

On the wire an error is a gRPC status with google.rpc details: ErrorInfo always (domain "fairlead", reason, metadata),
RetryInfo where a time to come back is known, QuotaFailure for quotas, BadRequest where one field is to blame. A status
without our ErrorInfo did not come from Fairlead and becomes the class of its code with reason UNSPECIFIED; but grpcio's
own RESOURCE_EXHAUSTED, for messages and metadata over its size limits, is no quota: it becomes InvalidArgumentError.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "fairlead"
STATUS_DETAILS_KEY = "grpc-status-details-bin"


class Reason(enum.StrEnum):
    """Why a request failed: stable, machine-readable, listed with its remedy in docs/errors.md."""

    UNSPECIFIED = "UNSPECIFIED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    MISSING_KEY = "MISSING_KEY"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    TENANT_SUSPENDED = "TENANT_SUSPENDED"
    MODEL_NOT_ALLOWED = "MODEL_NOT_ALLOWED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    UNKNOWN_TENANT = "UNKNOWN_TENANT"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    UNKNOWN_REPLICA = "UNKNOWN_REPLICA"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CONFLICT = "CONFLICT"
    REQUEST_IN_FLIGHT = "REQUEST_IN_FLIGHT"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    NOT_LEADER = "NOT_LEADER"
    CAPACITY_EXCEEDED = "CAPACITY_EXCEEDED"
    QUOTA_USED_UP = "QUOTA_USED_UP"
    QUOTA_HELD = "QUOTA_HELD"
    QUOTA_TOO_SMALL = "QUOTA_TOO_SMALL"
    QUEUE_FULL = "QUEUE_FULL"
    NO_REPLICA = "NO_REPLICA"
    REPLICA_LOST = "REPLICA_LOST"
    STREAM_BROKEN = "STREAM_BROKEN"
    ENGINE_FAILED = "ENGINE_FAILED"
    ENGINE_MISSING = "ENGINE_MISSING"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    NOT_READY = "NOT_READY"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT"
    REQUEST_QUARANTINED = "REQUEST_QUARANTINED"
    TICKETS_UNAVAILABLE = "TICKETS_UNAVAILABLE"
    TICKET_INVALID = "TICKET_INVALID"
    TICKET_MISMATCH = "TICKET_MISMATCH"
    TICKET_ELSEWHERE = "TICKET_ELSEWHERE"
    TICKET_EXPIRED = "TICKET_EXPIRED"
    TICKET_USED = "TICKET_USED"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class FairleadError(Exception):
    """Base of everything Fairlead raises on purpose.

    Args:
        message: One or two sentences for a person: what is wrong and what to do. Never a prompt, an output or a key.
        reason: Machine-readable reason; the class's default when left out.
        metadata: Further facts, as text: numbers with their unit in the key.
        retry_after_s: When trying again can succeed, seconds from now; None where trying again does not help or
            nothing is known.
        field: The request field to blame, dotted, or empty.
        subject: The quota to blame ("tenant/model"), or empty.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    http_status: ClassVar[int] = 500
    default_reason: ClassVar[Reason] = Reason.UNSPECIFIED

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        field: str = "",
        subject: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.field = field
        self.subject = subject

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reason.value}: {self.message})"


class InvalidArgumentError(FairleadError):
    """The request itself is wrong; the same request will always fail."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    default_reason = Reason.INVALID_ARGUMENT


class UnauthenticatedError(FairleadError):
    """No key, or a key nobody knows."""

    code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    default_reason = Reason.UNKNOWN_KEY


class PermissionDeniedError(FairleadError):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    default_reason = Reason.PERMISSION_DENIED


class NotFoundError(FairleadError):
    """What the request names does not exist, as far as the caller may know."""

    code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    default_reason = Reason.NOT_FOUND


class AlreadyExistsError(FairleadError):
    """The id is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS
    http_status = 409
    default_reason = Reason.ALREADY_EXISTS


class ConflictError(FairleadError):
    """Somebody else changed it first, or the same request is in flight: read again, then try again."""

    code = grpc.StatusCode.ABORTED
    http_status = 409
    default_reason = Reason.CONFLICT


class FailedPreconditionError(FairleadError):
    """The system is not in the state this needs."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 400
    default_reason = Reason.FAILED_PRECONDITION


class NotLeaderError(FailedPreconditionError):
    """This instance is a standby; the leader's address is in leaders/{service}."""

    default_reason = Reason.NOT_LEADER


class QuotaExceededError(FairleadError):
    """The tenant's quota does not admit this request now."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    default_reason = Reason.QUOTA_USED_UP


class RequestCancelledError(FairleadError):
    """The caller went away or cancelled."""

    code = grpc.StatusCode.CANCELLED
    http_status = 499
    default_reason = Reason.CANCELLED


class DeadlineExceededError(FairleadError):
    """The caller's deadline passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    default_reason = Reason.DEADLINE_EXCEEDED


class UnavailableError(FairleadError):
    """Something this needs is not there now; trying again later can succeed."""

    code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    default_reason = Reason.NOT_READY


class InternalError(FairleadError):
    """A defect of Fairlead. The message names an incident id that is in the service's log, and nothing else."""

    code = grpc.StatusCode.INTERNAL
    http_status = 500
    default_reason = Reason.INTERNAL


def _leaves(root: type[FairleadError]) -> list[type[FairleadError]]:
    return [kind for child in root.__subclasses__() for kind in (child, *_leaves(child))]


_BY_CODE: dict[grpc.StatusCode, type[FairleadError]] = {}
for _kind in _leaves(FairleadError):
    _BY_CODE.setdefault(_kind.code, _kind)
_KNOWN_REASONS = {reason.value: reason for reason in Reason}


def _kind_for(code: grpc.StatusCode, reason: Reason) -> type[FairleadError]:
    return NotLeaderError if reason is Reason.NOT_LEADER else _BY_CODE.get(code, InternalError)


def _pack(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def to_status(error: FairleadError) -> status_pb2.Status:
    """Turns an error into google.rpc.Status with its details.

    Args:
        error: Any error of the tree.

    Returns:
        The status; `ErrorInfo` is always the first detail.
    """
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=error.metadata)
    status.details.append(_pack(info))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(max(0, int(error.retry_after_s * 1e9)))
        status.details.append(_pack(retry))
    if isinstance(error, QuotaExceededError):
        violation = error_details_pb2.QuotaFailure.Violation(subject=error.subject, description=error.message)
        status.details.append(_pack(error_details_pb2.QuotaFailure(violations=[violation])))
    if error.field:
        blame = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        status.details.append(_pack(error_details_pb2.BadRequest(field_violations=[blame])))
    return status


def from_status(status: status_pb2.Status) -> FairleadError:
    """Turns a google.rpc.Status back into the error it came from.

    Args:
        status: As made by `to_status`, or any other server's.

    Returns:
        An error of the tree; one with reason UNSPECIFIED where the status carries no ErrorInfo of ours.
    """
    reason, metadata, retry_after_s, field, subject = Reason.UNSPECIFIED, {}, None, "", ""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    quota, bad = error_details_pb2.QuotaFailure(), error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = _KNOWN_REASONS.get(info.reason, Reason.UNSPECIFIED), dict(info.metadata)
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Unpack(quota) and quota.violations:
            subject = quota.violations[0].subject
        elif detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
    code = next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    kind, message = _kind_for(code, reason), status.message
    if kind is QuotaExceededError and reason is Reason.UNSPECIFIED:
        kind, message = InvalidArgumentError, f"{message}: more than the transport carries; send less text or metadata"
    return kind(message, reason=reason, metadata=metadata, retry_after_s=retry_after_s, field=field, subject=subject)


class RpcFailure(Protocol):
    """What grpcio's sync and asyncio call errors have in common."""

    def code(self) -> grpc.StatusCode:
        """The status code."""
        ...

    def details(self) -> str | None:
        """The status message."""
        ...

    def trailing_metadata(self) -> Any:
        """The trailers."""
        ...


def from_rpc_error(failure: RpcFailure) -> FairleadError:
    """Turns a failed call of grpcio (sync or asyncio) into the error the server raised.

    Args:
        failure: A `grpc.RpcError` of a finished call, or `grpc.aio.AioRpcError`.

    Returns:
        An error of the tree.
    """
    status = status_pb2.Status(code=failure.code().value[0], message=failure.details() or "")
    for key, value in failure.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            status.ParseFromString(value)
            break
    return from_status(status)
