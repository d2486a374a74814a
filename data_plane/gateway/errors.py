"""The platform's errors in OpenAI's shape."""

from __future__ import annotations

import math
import re
from typing import Final

import msgspec

from fairlead.errors import FairleadError, Reason

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    499: "cancelled_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}

# The codes OpenAI's clients and their users look for; every other reason is its own code in lower case.
_CODES: Final = {
    Reason.MISSING_KEY: "invalid_api_key",
    Reason.UNKNOWN_KEY: "invalid_api_key",
    Reason.UNKNOWN_TENANT: "invalid_api_key",
    Reason.UNKNOWN_MODEL: "model_not_found",
    Reason.PROMPT_TOO_LONG: "context_length_exceeded",
    Reason.QUOTA_USED_UP: "rate_limit_exceeded",
    Reason.QUOTA_HELD: "rate_limit_exceeded",
    Reason.QUOTA_TOO_SMALL: "insufficient_quota",
}

# Of requests that cannot be read to their end; all others are malformed.
_FAULTS: Final = {408: "request_timeout", 413: "body_too_large", 503: "overloaded"}

# Trying again cannot help, although the status says so to every HTTP client.
_FINAL: Final = frozenset({Reason.QUOTA_TOO_SMALL})

_PREFIX: Final = re.compile(r"^(sampling|chat)\.")


class _Error(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None
    reason: str
    request_id: str | None


class _Body(msgspec.Struct):
    error: _Error


def body(error: FairleadError, *, request_id: str | None) -> bytes:
    """The JSON body of an error answer.

    Args:
        error: What went wrong.
        request_id: Under which the platform remembers the request, or None where it was none for text.
    """
    return render(
        error.message,
        status=error.http_status,
        param=_PREFIX.sub("", error.field) or None,
        code=_CODES.get(error.reason, error.reason.value.lower()),
        reason=error.reason.value,
        request_id=request_id,
    )


def of_fault(status: int, message: str, *, request_id: str | None) -> bytes:
    """The JSON body of the answer to a request that could not be read to its end.

    Args:
        status: HTTP status.
        message: For a person.
        request_id: As in `body`.
    """
    code = _FAULTS.get(status, "malformed_http")
    reason = Reason.QUEUE_FULL if status == 503 else Reason.INVALID_ARGUMENT
    return render(message, status=status, code=code, reason=reason.value, request_id=request_id)


def render(
    message: str,
    *,
    status: int,
    param: str | None = None,
    code: str | None,
    reason: str,
    request_id: str | None = None,
) -> bytes:
    """The JSON body of any error answer.

    Args:
        message: For a person.
        status: HTTP status; decides the type.
        param: The field to blame, or None.
        code: What OpenAI would call it, or None.
        reason: The platform's reason.
        request_id: Under which the platform remembers the request, or None where it was none for text.
    """
    return msgspec.json.encode(
        _Body(_Error(message, _TYPES.get(status, "server_error"), param, code, reason, request_id))
    )


def lines_of(error: FairleadError) -> bytes:
    """When to come back, as HTTP and OpenAI's clients read it: headers, as they stand in a head."""
    if error.reason in _FINAL:
        return b"x-should-retry: false\r\n"
    if error.retry_after_s is None:
        return b""
    # Rounded up: a client that comes back early is refused again.
    seconds, milliseconds = math.ceil(error.retry_after_s), math.ceil(error.retry_after_s * 1000)
    return b"Retry-After: %d\r\nretry-after-ms: %d\r\n" % (max(1, seconds), max(1, milliseconds))
