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
    fault = fields.as_request
    if fault is None:
        fault = _fault(fields, _OF_REQUESTS)
        named = dict(fields.pairs)
        if not fault and not (b":method" in named and b":scheme" in named and named.get(b":path")):
            fault = "a request needs :method, :scheme and :path"
        fields.as_request = fault
    return fault


def response_fault(fields: Fields) -> str:
    """What is wrong with the headers of an answer; empty when nothing is."""
    fault = fields.as_answer
    if fault is None:
        fault = _fault(fields, _OF_RESPONSES)
        status = fields.header(b":status") or b""
        if not fault and not (len(status) == 3 and status.isdigit()):
            fault = "an answer needs a :status of three digits"
        fields.as_answer, fields.status = fault, status
    return fault


def trailers_fault(fields: Fields) -> str:
    """What is wrong with trailers; empty when nothing is."""
    fault = fields.as_trailers
    if fault is None:
        fault = fields.as_trailers = _fault(fields, frozenset())
    return fault


def content_length(fields: Fields) -> int | None:
    """Bytes of content that the headers promise; -1 where they do not.

    Returns:
        None when what they say is no number, or not one.
    """
    length = fields.content_length
    if length == 0:
        said = {value for name, value in fields.pairs if name == b"content-length"}
        length = -1
        if said:
            value = said.pop()
            length = int(value) if not said and value.isdigit() and len(value) < 19 else None
        fields.content_length = length
    return length


def _fault(fields: Fields, pseudo: frozenset[bytes]) -> str:
    seen: set[bytes] = set()
    regular = False
    for name, value in fields.pairs:
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
