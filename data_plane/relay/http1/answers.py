"""Heads of answers."""

from __future__ import annotations

import http
import time
from collections.abc import Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Final

import httptools

_STARTS: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}

_PATHS_MAX: Final = 64
"""Paths that are remembered: hardly any but one or two are asked for all the time."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Date:
    """The header of the date, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second, self._line = second, f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
        return self._line


_date: Final = _Date()


def lines(headers: Mapping[str, str]) -> bytes:
    """Headers as they stand in a head.

    Args:
        headers: Names and values.

    Raises:
        ValueError: A header has a line break in it.
    """
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers):
        raise ValueError("a header has a line break in it")
    return text.encode("latin-1", "replace")


def head(status: int, headers: bytes, framing: bytes) -> bytes:
    """The head of an answer.

    Args:
        status: HTTP status.
        headers: See `lines`.
        framing: Lines that say how long the answer is and what becomes of the connection.
    """
    start = _STARTS.get(status) or b"HTTP/1.1 %d \r\n" % status
    return b"".join((start, _date.line(), headers, framing, b"\r\n"))


@lru_cache(_PATHS_MAX)
def path_of(target: bytes) -> str:
    """The path of a request's target, as sent.

    Args:
        target: A path with or without a query, a whole URL, or `*`.

    Returns:
        The path; empty where there is none.
    """
    if not target.startswith(b"/"):
        try:
            url: Any = httptools.parse_url(target)  # a URL may have no path, whatever the library's types say
            target = url.path or b""
        except httptools.HttpParserInvalidURLError:
            return ""
    return target.partition(b"?")[0].partition(b"#")[0].decode("latin-1")
