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
        fault = _fault(fields, _OF_REQUESTS) or _length_fault(fields)
        if fields.header(b":method") is None or fields.header(b":scheme") is None or not fields.header(b":path"):
            fault = fault or "a request needs :method, :scheme and :path"
        fields.as_request = fault
    return fault


def response_fault(fields: Fields) -> str:
    """What is wrong with the headers of an answer; empty when nothing is."""
    fault = fields.as_answer
    if fault is None:
        fault = _fault(fields, _OF_RESPONSES) or _length_fault(fields)
        status = fields.header(b":status") or b""
        if not (len(status) == 3 and status.isdigit()):
            fault = fault or "an answer needs a :status of three digits"
        fields.as_answer, fields.status, fields.interim = fault, status, status[:1] == b"1"
    return fault


def trailers_fault(fields: Fields) -> str:
    """What is wrong with trailers; empty when nothing is."""
    fault = fields.as_trailers
    if fault is None:
        fault = fields.as_trailers = _fault(fields, frozenset())
    return fault


def _length_fault(fields: Fields) -> str:
    """Reads the bytes of content that the headers promise."""
    said = {value for name, value in fields.pairs if name == b"content-length"}
    if said:
        value = said.pop()
        if said or not value.isdigit() or len(value) >= 19:
            return "what content-length says is no number, or not one"
        fields.content_length = int(value)
    return ""


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
