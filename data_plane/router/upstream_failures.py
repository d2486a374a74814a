"""What a failed call to an agent means for the request: whether another replica may do."""

from __future__ import annotations

from fairlead.errors import (
    FairleadError,
    InternalError,
    InvalidArgumentError,
    Reason,
    RequestCancelledError,
    UnavailableError,
)

# What grpc's transport says when the connection could not be made: nothing was started there.
_NOT_CONNECTED = ("failed to connect", "connection refused", "connections to all backends failing")


def meaning(error: FairleadError) -> FairleadError:
    """Reads the status of a call to an agent.

    Args:
        error: As it came.
    """
    if isinstance(error, UnavailableError) and error.reason is Reason.UNSPECIFIED:
        refused = any(sign in error.message.lower() for sign in _NOT_CONNECTED)
        error.reason = Reason.NOT_READY if refused else Reason.REPLICA_LOST
        return error
    if isinstance(error, RequestCancelledError):
        return UnavailableError("the replica cancelled the request", reason=Reason.REPLICA_LOST)
    if isinstance(error, InvalidArgumentError) and error.reason is Reason.UNSPECIFIED:
        # The transport's own limits, not the replica's queue.
        return InternalError("the message to the replica exceeds a transport limit")
    return error
