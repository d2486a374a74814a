"""Words for errors that grpcio raised by itself; Fairlead's own say already what to do."""

from __future__ import annotations

from fairlead.errors import DeadlineExceededError, FairleadError, Reason, UnavailableError


def worded_for_caller(error: FairleadError, address: str, deadline_s: float | None) -> FairleadError:
    """Says what to do about an error that grpcio raised by itself; Fairlead's own say it already.

    Args:
        error: Any error of a call.
        address: Where the call went, host:port.
        deadline_s: The caller's deadline, seconds; None for no limit.
    """
    if error.reason is not Reason.UNSPECIFIED:
        return error
    if isinstance(error, UnavailableError):
        return UnavailableError(
            f"cannot reach a router at {address} ({_plain(error.message)}): check the address, and that the platform "
            "runs; `fairlead doctor` says what is wrong",
            reason=Reason.NOT_READY,
            metadata=error.metadata,
        )
    if isinstance(error, DeadlineExceededError):
        limit = "the deadline" if deadline_s is None else f"the deadline of {deadline_s:g} s"
        return DeadlineExceededError(
            f"{limit} passed before the answer was complete: allow more time with deadline_s, or ask for fewer tokens",
            metadata=error.metadata,
        )
    if "Method not found" in error.message or error.message.startswith("Received http2 header"):
        return UnavailableError(
            f"{address} does not serve Fairlead's inference API: give the address of a router's gRPC port",
            reason=Reason.NOT_READY,
            metadata=error.metadata,
        )
    return error


def _plain(details: str) -> str:
    # grpcio: "failed to connect to all addresses; last error: UNKNOWN: ipv4:...: ...: Connection refused (111)"
    return details.rsplit(": ", 1)[-1].strip() or "no reason given"
