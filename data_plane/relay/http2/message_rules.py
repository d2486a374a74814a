"""Which headers a message may have (RFC 9113, section 8)."""

from __future__ import annotations

import re
from typing import Final

from data_plane.relay.http2.header_blocks import Fields

_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_FORBIDDEN_IN_VALUE: Final = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$")
_OF_CONNECTIONS: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
_OF_REQUESTS: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_OF_RESPONSES: Final = frozenset({b":status"})


def request_fault(fields: Fields) -> str:
    """What is wrong with the headers of a request; empty when nothing is."""
    fault = _fault(fields, _OF_REQUESTS)
    if fault:
        return fault
    named = dict(fields)
    if b":method" not in named or b":scheme" not in named or not named.get(b":path"):
        return "a request needs :method, :scheme and :path"
    return ""


def response_fault(fields: Fields) -> str:
    """What is wrong with the headers of an answer; empty when nothing is."""
    fault = _fault(fields, _OF_RESPONSES)
    if fault:
        return fault
    status = dict(fields).get(b":status", b"")
    return "" if len(status) == 3 and status.isdigit() else "an answer needs a :status of three digits"


def trailers_fault(fields: Fields) -> str:
    """What is wrong with trailers; empty when nothing is."""
    return _fault(fields, frozenset())


def content_length(fields: Fields) -> int | None:
    """Bytes of content that the headers promise; -1 where they do not.

    Returns:
        None when what they say is no number, or not one.
    """
    said = {value for name, value in fields if name == b"content-length"}
    if not said:
        return -1
    value = said.pop()
    return int(value) if not said and value.isdigit() and len(value) < 19 else None


def _fault(fields: Fields, pseudo: frozenset[bytes]) -> str:
    seen: set[bytes] = set()
    regular = False
    for name, value in fields:
        if name[:1] == b":":
            if regular or name in seen or name not in pseudo:
                return f"{name!r} is unknown, is there twice, or comes too late"
            seen.add(name)
        else:
            regular = True
            if not _NAME.fullmatch(name) or name in _OF_CONNECTIONS or (name == b"te" and value != b"trailers"):
                return f"{name!r} may not be in a message of HTTP/2"
        if _FORBIDDEN_IN_VALUE.search(value):
            return f"the value of {name!r} has characters that no value has"
    return ""
