"""How a call of gRPC ends: its status as a block of trailers, and the time its caller gives it.

A status is `grpc-status`, `grpc-message` in percent encoding and, for errors of Fairlead, `grpc-status-details-bin`
with the google.rpc.Status. What is always the same is made once.
"""

from __future__ import annotations

import base64
import enum
from typing import Final
from urllib.parse import quote

from data_plane.relay.http2.header_blocks import encoded, literal
from fairlead.errors import STATUS_DETAILS_KEY, FairleadError, to_status

CONTENT_TYPE: Final = b"application/grpc"

HEAD: Final = encoded(((b":status", b"200"), (b"content-type", CONTENT_TYPE)))
"""Headers of every answer that is one of gRPC."""

OK: Final = literal(b"grpc-status", b"0")
"""Trailers of a call that went well."""

MESSAGE_BYTES_MAX: Final = 2_048
"""What of an error's text is sent, in percent encoding: together with the details it must fit into the 8 KiB that
clients take for headers where nobody says otherwise."""

DETAILS_BYTES_MAX: Final = 4_096
"""Longer details are shortened to the class, the reason and the beginning of the text."""

_BRIEF_CHARS: Final = 150
_UNQUOTED: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT_DIGITS_MAX: Final = 8


class Code(enum.IntEnum):
    """Status codes that the wire itself can end a call with; the others come from `fairlead.errors`."""

    CANCELLED = 1
    UNKNOWN = 2
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class RpcFaultError(Exception):
    """The caller broke a rule of gRPC, or asked for what there is not: a status without details.

    Args:
        code: The status code.
        message: For people.
        trailers: Further trailers, a header block.
    """

    def __init__(self, code: Code, message: str, trailers: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.trailers = trailers


def failure(error: FairleadError | RpcFaultError) -> bytes:
    """The trailers of an error."""
    if isinstance(error, RpcFaultError):
        return status(error.code, error.message) + error.trailers
    return status(error.code.value[0], error.message) + literal(STATUS_DETAILS_KEY.encode(), binary(_details(error)))


def _details(error: FairleadError) -> bytes:
    details: bytes = to_status(error).SerializeToString()
    if len(details) > DETAILS_BYTES_MAX:
        brief = type(error)(
            error.message[:_BRIEF_CHARS],
            reason=error.reason,
            retry_after_s=error.retry_after_s,
            field=error.field[:_BRIEF_CHARS],
            subject=error.subject[:_BRIEF_CHARS],
        )
        details = to_status(brief).SerializeToString()
    return details


def status(code: int, message: str) -> bytes:
    """The trailers of any status."""
    block = literal(b"grpc-status", b"%d" % code)
    if message:
        quoted = quote(message[:MESSAGE_BYTES_MAX], safe=_UNQUOTED, errors="replace")
        if len(quoted) > MESSAGE_BYTES_MAX:
            quoted = quoted[:MESSAGE_BYTES_MAX]
            escape = quoted.find("%", -2)
            quoted = quoted[:escape] if escape >= 0 else quoted
        block += literal(b"grpc-message", quoted.encode())
    return block


def binary(value: bytes) -> bytes:
    """The value of a header whose name ends with -bin."""
    return base64.b64encode(value).rstrip(b"=")


def from_binary(value: bytes) -> bytes | None:
    """Reads it; None where it is none. Several values are separated by commas: the first is read."""
    first = value.partition(b",")[0].strip()
    try:
        return base64.b64decode(first + b"=" * (-len(first) % 4), validate=True)
    except ValueError:
        return None


def timeout_s(value: bytes) -> float:
    """Reads grpc-timeout.

    Raises:
        RpcFaultError: It is not one.
    """
    digits, unit = value[:-1], _UNITS_S.get(value[-1:])
    if unit is None or not digits.isdigit() or len(digits) > _TIMEOUT_DIGITS_MAX:
        raise RpcFaultError(Code.INTERNAL, "grpc-timeout is up to eight digits and one of H, M, S, m, u, n")
    return int(digits) * unit
