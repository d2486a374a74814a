"""Server-sent events, as far as OpenAI's API uses them: the data of each event, in order."""

from __future__ import annotations

from typing import Final

EVENT_BYTES_MAX: Final = 1 << 20
"""Bytes of one event, and of one line; chunks of an answer have some hundred."""


class EventTooLargeError(Exception):
    """An event is larger than EVENT_BYTES_MAX."""


class EventReader:
    """Cuts a stream of bytes, however it comes, into events.

    Lines end with LF or CRLF; nobody sends the bare CR that the standard allows as well. Comments, and fields other
    than `data`, are passed over. An event that the stream's end cuts off is none.

    Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """

    __slots__ = ("_data", "_data_bytes", "_line", "_line_bytes")

    def __init__(self) -> None:
        self._line: list[bytes] = []  # parts of a line that goes on
        self._line_bytes = 0
        self._data: list[bytes] = []  # lines of an event that goes on
        self._data_bytes = 0

    @property
    def between(self) -> bool:
        """Nothing has come of an event that goes on."""
        return not (self._line or self._data)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that are whole now.

        Args:
            chunk: What came, any number of bytes.

        Raises:
            EventTooLargeError: The reader is of no use after it.
        """
        if (
            chunk[:6] == b"data: "
            and chunk[-2:] == b"\n\n"
            and not (self._line or self._data)
            and chunk.find(b"\n") == len(chunk) - 2
            and len(chunk) <= EVENT_BYTES_MAX
        ):
            return [chunk[6:-2].removesuffix(b"\r")]  # one whole event, as nearly always
        return self._feed(chunk)

    def _feed(self, chunk: bytes) -> list[bytes]:
        events: list[bytes] = []
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            if self._line:
                self._line.append(line)
                line = b"".join(self._line)
                self._line, self._line_bytes = [], 0
            self._take(line.removesuffix(b"\r"), events)
        if rest:
            self._line.append(rest)
            self._line_bytes += len(rest)
            if self._line_bytes > EVENT_BYTES_MAX:
                raise EventTooLargeError
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data, self._data_bytes = [], 0
        elif line.startswith(b"data:"):
            value = line[5:].removeprefix(b" ")
            self._data.append(value)
            self._data_bytes += len(value) + 1
            if self._data_bytes > EVENT_BYTES_MAX:
                raise EventTooLargeError
