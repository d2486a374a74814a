"""What all answers have in common: the client's own id, the platform's, and errors in OpenAI's shape."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Final

from data_plane.gateway import errors, limits
from data_plane.relay.http1.calls import HttpCall
from data_plane.router.exchange import Receipt
from fairlead.errors import FairleadError

JSON: Final = "application/json"
ECHO: Final = "x-request-id"
ID_BYTES: Final = 12

_ECHO_FIELD: Final = ECHO.encode()
_ECHO_BYTES_MAX: Final = 128


def authorization(call: HttpCall) -> str | None:
    """The authorization of a call, or None."""
    given = call.headers.get(b"authorization")
    return None if given is None else given.decode("latin-1")


def echo(call: HttpCall, known_id: str | None) -> dict[str, str]:
    """The client's own correlation id, or the platform's request id where it sent none.

    Args:
        call: The call.
        known_id: Under which the platform remembers it, or None where it was none for text.
    """
    sent = call.headers.get(_ECHO_FIELD, b"").decode("latin-1")
    if sent and len(sent) <= _ECHO_BYTES_MAX and sent.isascii() and sent.isprintable():
        return {ECHO: sent}
    return {ECHO: known_id or secrets.token_hex(ID_BYTES)}


def found(call: HttpCall, body: bytes, known_id: str | None, more: Mapping[str, str] | None = None) -> None:
    """Answers with what was asked for.

    Args:
        call: The call.
        body: JSON.
        known_id: As in `echo`.
        more: Further headers.
    """
    call.respond(200, {"Content-Type": JSON, **(more or {}), **echo(call, known_id)}, body)


def failed(call: HttpCall, error: FairleadError, known_id: str | None, receipt: Receipt | None = None) -> None:
    """Answers with an error of the platform's.

    Args:
        call: The call.
        error: What went wrong.
        known_id: As in `echo`.
        receipt: Of the request, where it was one that the flow ran.
    """
    more = errors.headers(error)
    if receipt is not None:
        more |= limits.receipt_headers(receipt, final=True)
    refused(call, error.http_status, errors.body(error, request_id=known_id), known_id, more)


def refused(call: HttpCall, status: int, body: bytes, known_id: str | None, more: Mapping[str, str]) -> None:
    """Answers with any error.

    Args:
        call: The call.
        status: HTTP status.
        body: In OpenAI's shape.
        known_id: As in `echo`.
        more: Further headers.
    """
    named = {limits.REQUEST_ID: known_id} if known_id else {}
    call.respond(status, {"Content-Type": JSON, **more, **echo(call, known_id), **named}, body)
