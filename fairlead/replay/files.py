"""Text files of measurements and traces: plain or gzip-compressed, refused with the line that is wrong.

Example: `for row in csv_rows(path, ("t_s", "client"))` reads a table; `row.number("t_s")` is a finite number or an
InvalidArgumentError that names the file, the line and the column.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, cast

from fairlead.errors import InvalidArgumentError

ROWS_MAX = 5_000_000
"""Longest file that is read, so that a wrong file cannot fill the memory."""
_GZIP_MAGIC = b"\x1f\x8b"


def unpacked(stream: IO[bytes]) -> IO[bytes]:
    """The content of a file: unpacked where it begins like gzip, whatever its name says."""
    head = stream.read(2)
    stream.seek(0)
    return cast("IO[bytes]", gzip.GzipFile(fileobj=stream)) if head == _GZIP_MAGIC else stream


def table_rows(lines: TextLines, source: Iterator[str]) -> Iterator[list[str]]:
    """The rows of CSV lines.

    Args:
        lines: Where they stand, for errors.
        source: The lines themselves, those after the header.

    Raises:
        InvalidArgumentError: A row is no CSV: a value is longer than 128 KiB, as behind a quote that is never closed.
    """
    rows = csv.reader(source)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            lines.fail(f"not CSV ({error}): is a quote left open?")
        if row is None:
            return
        yield row


class TextLines:
    """The lines of one file, knowing the line it is at.

    Args:
        name: What messages call the file.
        text: Its content, unpacked on the way (a damaged archive shows while reading).
        field: The argument that errors blame.
    """

    def __init__(self, name: str, text: IO[str], field: str = "trace") -> None:
        self.name = name
        self.line = 0
        self._text = text
        self._field = field

    def __iter__(self) -> Iterator[str]:
        """Each line.

        Raises:
            InvalidArgumentError: The file is damaged, unreadable, no text, or longer than ROWS_MAX lines.
        """
        try:
            for line in self._text:
                self.line += 1
                if self.line > ROWS_MAX:
                    self.fail(f"more than {ROWS_MAX} lines: read a part of it")
                yield line
        except UnicodeDecodeError:
            self.line += 1
            self.fail("not text: CSV or JSON Lines are read, plain or gzip-compressed")
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self.fail(f"the file is damaged or cut off after {self.line} whole lines: fetch it again", numbered=False)
        except OSError as error:
            self.fail(f"cannot be read any further: {error.strerror}")

    def number(self, value: object, column: str) -> float:
        """A finite number, or an InvalidArgumentError that names the column."""
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
            if math.isfinite(number):
                return number
        self.fail(f"{column} {value!r} is not a number")

    def fail(self, problem: str, *, numbered: bool = True) -> NoReturn:
        """Refuses the file at this line."""
        where = f" line {self.line}" if numbered and self.line else ""
        raise InvalidArgumentError(f"{self.name}{where}: {problem}", field=self._field)


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One row of a table; good until the next one is read."""

    values: Mapping[str, str]
    """By column."""
    lines: TextLines
    """Where it stands, for errors."""

    def text(self, column: str) -> str:
        """A text, without the blanks around it."""
        return self.values[column].strip()

    def number(self, column: str, *, low: float = 0.0, high: float = math.inf) -> float:
        """A finite number in a range.

        Raises:
            InvalidArgumentError: It is none.
        """
        number = self.lines.number(self.values[column], column)
        if not low <= number <= high:
            bounds = f"{low:g} or more" if high == math.inf else f"between {low:g} and {high:g}"
            self.lines.fail(f"{column} {self.values[column]!r} must be {bounds}")
        return number

    def whole(self, column: str, *, low: int = 0, high: float = math.inf) -> int:
        """A whole number in a range.

        Raises:
            InvalidArgumentError: It is none.
        """
        number = self.number(column, low=low, high=high)
        if number != int(number):
            self.lines.fail(f"{column} {self.values[column]!r} must be a whole number")
        return int(number)


def csv_rows(path: Path | str, required: Sequence[str], *, field: str = "trace") -> Iterator[CsvRow]:
    """Reads a CSV file with a header.

    Args:
        path: The file, plain or gzip-compressed.
        required: Columns it must have, in any order; more are kept too.
        field: The argument that errors blame.

    Yields:
        Its rows, at least one.

    Raises:
        InvalidArgumentError: The file cannot be read, is damaged, lacks a column, holds no rows, or a row does not fit
            the header.
    """
    with open_lines(path, field=field) as lines:
        source = iter(lines)
        columns = [column.strip() for column in next(source, "").split(",")]
        missing = [column for column in required if column not in columns]
        if missing:
            lines.fail(f"no column {', '.join(missing)}; the header must name {','.join(required)}")
        found = False
        for values in table_rows(lines, source):
            if not values:
                continue
            if len(values) != len(columns):
                lines.fail(f"{len(values)} values where the header names {len(columns)}: is the file cut off?")
            found = True
            yield CsvRow(dict(zip(columns, values, strict=True)), lines)
        if not found:
            lines.fail("the file holds no rows", numbered=False)


@contextmanager
def open_lines(path: Path | str, *, field: str = "trace") -> Iterator[TextLines]:
    """Opens a text file for reading by line.

    Args:
        path: The file, plain or gzip-compressed.
        field: The argument that errors blame.

    Raises:
        InvalidArgumentError: It cannot be opened.
    """
    path = Path(path)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {path}: {error.strerror}", field=field) from None
    with stream:
        yield TextLines(path.name, io.TextIOWrapper(unpacked(stream), encoding="utf-8", newline=""), field)
