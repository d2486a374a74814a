"""Reads recorded traces: when requests came and how long they were, never what they said.

Recognised by their first line, plain or gzip-compressed whatever the name says:
- CSV with the columns `t_s` (arrival, seconds), `input_tokens`, `output_tokens`, and optionally `client`;
- JSON Lines with `timestamp` (ms), `input_length`, `output_length` and optionally `hash_ids` (one id per block of 512
  prompt tokens, equal ids at equal places mean a shared prefix). Their timestamps come in ticks of several seconds, so
  the requests of one tick are spread evenly up to the next.

What is wrong in a way that could be meant is put right and noted in `Trace.notes`: times out of order are sorted,
lengths of 0 become 1. Everything else is refused with the line it stands in.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import resources
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import IO

from fairlead.errors import InvalidArgumentError
from fairlead.replay.files import TextLines, table_rows, unpacked

BLOCK_TOKENS = 512
"""Prompt tokens behind one of `hash_ids`. Source: Mooncake, FAST'25."""
TOKENS_MAX = 10_000_000
"""Longest input or output taken for real: the longest context any model here can have."""
DEFAULT_TRACE = "azure_conv_excerpt.csv.gz"
"""The excerpt that ships with the package: 120 s of a conversation service."""
_CSV_COLUMNS = ("t_s", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One recorded request."""

    arrival_s: float
    """Seconds after the beginning of the part that was read."""
    input_tokens: int
    """Prompt length, 1 or more."""
    output_tokens: int
    """Answer length, 1 or more."""
    client: str = ""
    """Who sent it; empty where the trace does not say."""
    prefix_blocks: tuple[int, ...] = ()
    """Ids of the prompt's blocks of BLOCK_TOKENS tokens, front first; empty where the trace does not say."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded trace, or a part of one."""

    name: str
    """The file's name."""
    requests: tuple[TraceRequest, ...]
    """Sorted by arrival, the first part's beginning at 0."""
    notes: tuple[str, ...]
    """What was put right, one sentence each."""

    @property
    def duration_s(self) -> float:
        """Seconds from the beginning to the last arrival."""
        return self.requests[-1].arrival_s


def read_trace(path: Path | str | None = None, *, start_s: float = 0.0, duration_s: float | None = None) -> Trace:
    """Reads a trace or a part of it.

    Args:
        path: The file; the excerpt that ships with the package when None.
        start_s: Where to begin, seconds after the file's first request.
        duration_s: How much to read, seconds of the trace; everything when None.

    Returns:
        The requests of that part, at least one.

    Raises:
        InvalidArgumentError: The file cannot be read, is no trace, is damaged, or holds nothing in that part.
    """
    if not start_s >= 0 or (duration_s is not None and not duration_s > 0):
        raise InvalidArgumentError("start must be 0 or more and duration above 0 seconds", field="duration_s")
    name = Path(path).name if path is not None else DEFAULT_TRACE
    with ExitStack() as stack:
        rows = _Rows(name, _open(path, stack))
        requests = list(rows.read())
    notes = rows.notes
    if any(late.arrival_s < early.arrival_s for early, late in pairwise(requests)):
        requests.sort(key=lambda request: request.arrival_s)
        notes.append("times were not in order: sorted")
    if not requests:
        raise InvalidArgumentError(f"{name} holds no requests", field="trace")
    begin_s = requests[0].arrival_s + start_s
    end_s = math.inf if duration_s is None else begin_s + duration_s
    chosen = [
        replace(request, arrival_s=request.arrival_s - begin_s)
        for request in requests
        if begin_s <= request.arrival_s < end_s
    ]
    if not chosen:
        length_s = requests[-1].arrival_s - requests[0].arrival_s
        raise InvalidArgumentError(
            f"{name} has no request from {start_s:g} s on for {duration_s or 0:g} s: it is {length_s:.0f} s long",
            field="trace",
        )
    return Trace(name, tuple(chosen), tuple(notes))


def _open(path: Path | str | None, stack: ExitStack) -> IO[bytes]:
    source = resources.files("fairlead") / "data" / DEFAULT_TRACE if path is None else Path(path)
    try:
        stream = stack.enter_context(source.open("rb"))
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the trace {path}: {error.strerror}", field="trace") from None
    return unpacked(stream)


class _Rows:
    """Reads the rows of one file."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self.notes: list[str] = []
        self._stream = stream
        self._name = name
        self._zero_lengths = 0

    def read(self) -> Iterator[TraceRequest]:
        with io.TextIOWrapper(self._stream, encoding="utf-8", newline="") as text:
            self._lines = TextLines(self._name, text)
            lines = iter(self._lines)
            first = next(lines, "")
            if first.lstrip().startswith("{"):
                yield from self._json_rows(first, lines)
            else:
                yield from self._csv_rows(first, lines)
        if self._zero_lengths:
            self.notes.append(f"{self._zero_lengths} lengths of 0 tokens were taken as 1")

    def _csv_rows(self, header: str, lines: Iterator[str]) -> Iterator[TraceRequest]:
        columns = [column.strip() for column in header.split(",")]
        missing = [column for column in _CSV_COLUMNS if column not in columns]
        if missing:
            self._lines.fail(
                f"no column {', '.join(missing)}: a trace to replay is CSV with "
                "t_s,input_tokens,output_tokens[,client] or JSON Lines with timestamp, input_length, output_length"
            )
        at_s, into, out = (columns.index(column) for column in _CSV_COLUMNS)
        client = columns.index("client") if "client" in columns else None
        for row in table_rows(self._lines, lines):
            if not row:
                continue
            if len(row) != len(columns):
                self._lines.fail(f"{len(row)} values where the header names {len(columns)}: is the file cut off?")
            yield TraceRequest(
                arrival_s=self._seconds(row[at_s], 1.0),
                input_tokens=self._tokens(row[into], "input_tokens"),
                output_tokens=self._tokens(row[out], "output_tokens"),
                client=row[client] if client is not None else "",
            )

    def _json_rows(self, first: str, lines: Iterator[str]) -> Iterator[TraceRequest]:
        requests = [self._json_row(first)]
        requests += [self._json_row(line) for line in lines if line.strip()]
        spread = spread_ticks([request.arrival_s for request in requests])
        if any(after != before.arrival_s for after, before in zip(spread, requests, strict=True)):
            self.notes.append("requests of one recorded tick were spread evenly up to the next")
        for request, arrival_s in zip(requests, spread, strict=True):
            yield replace(request, arrival_s=arrival_s)

    def _json_row(self, line: str) -> TraceRequest:
        try:
            row = json.loads(line)
            stamp, into, out = row["timestamp"], row["input_length"], row["output_length"]
            blocks = tuple(row.get("hash_ids", ()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._lines.fail("not a JSON object with timestamp, input_length and output_length: is the file cut off?")
        if not all(isinstance(block, int) for block in blocks):
            self._lines.fail("hash_ids must be whole numbers")
        return TraceRequest(
            arrival_s=self._seconds(stamp, 1000.0),
            input_tokens=self._tokens(into, "input_length"),
            output_tokens=self._tokens(out, "output_length"),
            prefix_blocks=blocks,
        )

    def _seconds(self, value: object, divisor: float) -> float:
        number = self._lines.number(value, "the time")
        if number < 0:
            self._lines.fail(f"the time {value!r} is negative")
        return number / divisor

    def _tokens(self, value: object, column: str) -> int:
        number = self._lines.number(value, column)
        if number != int(number) or not 0 <= number <= TOKENS_MAX:
            self._lines.fail(f"{column} {value!r} is not a count of tokens between 0 and {TOKENS_MAX}")
        if number == 0:
            self._zero_lengths += 1
        return max(1, int(number))


def spread_ticks(times_s: Sequence[float]) -> list[float]:
    """Spreads times that were recorded in ticks: n requests of one tick end up 1/n of a tick apart.

    The tick is the usual (median) distance of distinct times, so that a lull is not filled. Times without repeats are
    left alone.

    Args:
        times_s: Recorded times, seconds, in any order.

    Returns:
        A new time for each, none earlier than recorded, none a tick later.
    """
    distinct = sorted(set(times_s))
    if len(distinct) == len(times_s) or len(distinct) < 2:
        return list(times_s)
    tick_s = median(late - early for early, late in pairwise(distinct))
    widths = {
        early: min(tick_s, late - early)
        for early, late in zip(distinct, [*distinct[1:], distinct[-1] + tick_s], strict=True)
    }
    counts = dict.fromkeys(distinct, 0)
    for time_s in times_s:
        counts[time_s] += 1
    seen = dict.fromkeys(distinct, 0)
    spread = []
    for time_s in times_s:
        spread.append(time_s + widths[time_s] * seen[time_s] / counts[time_s])
        seen[time_s] += 1
    return spread
