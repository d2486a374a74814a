"""What all answers have in common: the client's own id, the platform's, and errors in OpenAI's shape."""

from __future__ import annotations

import secrets
from typing import Final

from data_plane.gateway import errors, limits
from data_plane.relay.http1.answers import lines
from data_plane.relay.http1.calls import HttpCall
from data_plane.router.exchange import Receipt
from fairlead.errors import FairleadError

JSON: Final = lines({"Content-Type": "application/json"})

_ECHO: Final = b"x-request-id"
_ID_BYTES: Final = 12
_ECHO_BYTES_MAX: Final = 128


def authorization(call: HttpCall) -> str | None:
    """The authorization of a call, or None."""
    given = call.headers.get(b"authorization")
    return None if given is None else given.decode("latin-1")


def echo(known_id: str | None, call: HttpCall | None = None) -> bytes:
    """The header of the client's own correlation id, or of the platform's request id where it sent none.

    Args:
        known_id: Under which the platform remembers the request, or None where it was none for text.
        call: The call, or None where not even its head could be read.
    """
    sent = call.headers.get(_ECHO) if call is not None else None
    if not sent or len(sent) > _ECHO_BYTES_MAX or not sent.isascii() or not sent.decode().isprintable():
        sent = (known_id or secrets.token_hex(_ID_BYTES)).encode()
    return b"%b: %b\r\n" % (_ECHO, sent)


def found(call: HttpCall, body: bytes, known_id: str | None, more: bytes = b"") -> None:
    """Answers with what was asked for.

    Args:
        call: The call.
        body: JSON.
        known_id: As in `echo`.
        more: Further headers.
    """
    call.respond(200, JSON + more + echo(known_id, call), body)


def failed(call: HttpCall, error: FairleadError, known_id: str | None, receipt: Receipt | None = None) -> None:
    """Answers with an error of the platform's.

    Args:
        call: The call.
        error: What went wrong.
        known_id: As in `echo`.
        receipt: Of the request, where it was one that the flow ran.
    """
    body, more = errors.body(error, request_id=known_id), errors.lines_of(error)
    if receipt is None:
        refused(call, error.http_status, body, known_id, more)
    else:
        more += limits.receipt_lines(receipt, final=True)
        call.respond(error.http_status, JSON + more + echo(known_id, call), body)


def refused(call: HttpCall, status: int, body: bytes, known_id: str | None, more: bytes) -> None:
    """Answers with an error of a request that did not run.

    Args:
        call: The call.
        status: HTTP status.
        body: In OpenAI's shape.
        known_id: As in `echo`.
        more: Further headers.
    """
    named = limits.request_id_line(known_id) if known_id else b""
    call.respond(status, JSON + more + echo(known_id, call) + named, body)
