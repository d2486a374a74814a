"""What commands print: tables for people, JSON and YAML with stable field names for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click
import yaml
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 240
"""Characters in a line of a table that no terminal shows."""

WRAPPED_WIDTH = 24
"""Characters that a column of sentences needs at least to be readable."""

Row = Mapping[str, Any]
"""One object of the output: JSON-ready values by field name."""

_STATE_COLOURS = {
    "ready": "green",
    "starting": "yellow",
    "draining": "yellow",
    "unhealthy": "red",
    "calibrating": "cyan",
}


def mu(value: Any) -> str:
    """Shows milli-MU as MU."""
    return "-" if value is None else f"{value / 1000:,.1f}"


def plain(value: Any) -> str:
    """Shows any value."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def state(value: Any) -> str:
    """Shows the state of a replica in its colour."""
    return f"[{_STATE_COLOURS.get(value, 'white')}]{value}[/]"


def drift(value: Any) -> str:
    """Shows the time production takes over the time the cost profile says: +12 % is slower; 0 is not known."""
    return f"{value - 1:+.0%}" if value else "-"


def bar(part: Any, whole: Any, width: int = 20) -> str:
    """Draws part of a whole; more than the whole is red."""
    if not part or not whole:
        return f"[dim]{'·' * width}[/]" if not part else f"[red]{'█' * width}[/]"
    share = part / whole
    filled = min(width, round(share * width))
    colour = "red" if share > 1 else "yellow" if share > 0.9 else "green"
    return f"[{colour}]{'█' * filled}[/][dim]{'·' * (width - filled)}[/] {share:4.0%}"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    field: str
    """Field of the row it shows."""
    title: str
    """Its heading."""
    show: Callable[[Any], str] = plain
    """Turns the value into text."""
    number: bool = False
    """Whether it holds numbers that `show` does not tell of."""
    wraps: bool = False
    """Whether it holds sentences or lists, which may go on in the next line; a name in pieces is of no use."""

    @property
    def right(self) -> bool:
        """Whether the column is aligned right."""
        return self.number or self.show in (mu, drift)


def message_row(message: Message) -> dict[str, Any]:
    """Turns a message into a row: proto field names, integers as integers, enums as lower-case words.

    Args:
        message: Any message of the APIs.

    Returns:
        Every field, set or not; bytes are left out, times are ISO 8601 or None, durations are seconds, numbers
        that are infinite or none are None.
    """
    row: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.type != FieldDescriptor.TYPE_BYTES:
            row[field.name] = _field(field, getattr(message, field.name))
    return row


def _field(field: Any, value: Any) -> Any:
    if not field.is_repeated:
        return _value(field, value)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        held = field.message_type.fields_by_name["value"]
        return {key: _value(held, value[key]) for key in sorted(value)}
    return [_value(field, item) for item in value]


def _value(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_ENUM:
        kind = field.enum_type
        assert kind is not None
        prefix = "".join(f"_{letter}" if letter.isupper() else letter for letter in kind.name).lstrip("_").upper() + "_"
        found = kind.values_by_number.get(value)
        return found.name.removeprefix(prefix).lower() if found else str(value)
    if isinstance(value, Timestamp):
        return timestamp(value)
    if isinstance(value, Duration):
        return value.ToNanoseconds() / 1e9
    if isinstance(value, Message):
        return message_row(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such numbers
    # A 32-bit float comes with digits that nobody wrote; a double is exact, and may be tiny.
    return round(value, 6) if field.type == FieldDescriptor.TYPE_FLOAT else value


def timestamp(value: Timestamp) -> str | None:
    """ISO 8601 in UTC, to the second; None where it is not set."""
    if not value.seconds:
        return None
    return datetime.fromtimestamp(value.seconds, UTC).isoformat().replace("+00:00", "Z")


class Output:
    """Prints results in the form the user asked for.

    Args:
        form: "table", "json" or "yaml".
    """

    def __init__(self, form: str) -> None:
        self.form = form
        """"table", "json" or "yaml"."""
        # A pipe has no width: a table in it is for grep, and must not be folded.
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
        """Standard output."""
        self.side = Console(stderr=True, highlight=False)
        """Standard error, for what is not the result."""

    @property
    def for_people(self) -> bool:
        """Whether a person reads along."""
        return self.form == "table"

    def rows(self, rows: Sequence[Row], columns: Sequence[Column], *, empty: str) -> None:
        """Prints a list.

        Args:
            rows: The objects, all fields of which go into JSON and YAML.
            columns: What the table shows of them.
            empty: Said to people when there are none.
        """
        if not self.for_people:
            self.data(list(rows))
        elif not rows:
            self.console.print(f"[dim]{empty}[/]")
        elif self.console.is_terminal and _width(rows, columns) > self.console.width:
            self._below_each_other(rows, columns)
        else:
            table = table_of(rows, columns)
            for laid_out, column in zip(table.columns, columns, strict=True):
                laid_out.no_wrap = self.console.is_terminal and not column.wraps
            self.console.print(table)

    def _below_each_other(self, rows: Sequence[Row], columns: Sequence[Column]) -> None:
        for number, row in enumerate(rows):
            if number:
                self.console.print()
            self.row(row, columns)

    def row(self, row: Row, columns: Sequence[Column]) -> None:
        """Prints one object: its columns below each other for people."""
        if not self.for_people:
            self.data(row)
            return
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for column in columns:
            table.add_row(f"[bold]{column.title}[/]", column.show(row.get(column.field)))
        self.console.print(table)

    def data(self, value: Any) -> None:
        """Prints JSON or YAML."""
        if self.form == "yaml":
            click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip())
        else:
            click.echo(json.dumps(value, indent=2, ensure_ascii=False))

    def line(self, value: Any) -> None:
        """Prints one object of an endless list: a line of JSON, or a YAML document."""
        if self.form == "yaml":
            click.echo("---")
            self.data(value)
        else:
            click.echo(json.dumps(value, ensure_ascii=False))

    def note(self, text: str) -> None:
        """Says something beside the result, on standard error; nothing where a program reads."""
        if self.for_people:
            self.side.print(f"[dim]{escape(text)}[/]", soft_wrap=True)

    def done(self, text: str, *, dry_run: bool) -> None:
        """Says that a change was made, or would have been."""
        self.note(f"dry run, nothing was changed: {text}" if dry_run else text)


def _width(rows: Sequence[Row], columns: Sequence[Column]) -> int:
    """Characters in a line of a table in which no name is cut to pieces."""
    widths = []
    for column in columns:
        cells = [column.title, *(column.show(row.get(column.field)) for row in rows)]
        widest = max(Text.from_markup(cell).cell_len for cell in cells)
        widths.append(min(widest, WRAPPED_WIDTH) if column.wraps else widest)
    return sum(widths) + 2 * len(columns)


def table_of(rows: Sequence[Row], columns: Sequence[Column], title: str | None = None) -> Table:
    """Lays rows out as a table.

    Args:
        rows: The objects.
        columns: What to show of them.
        title: Above the table.
    """
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), title=title, title_justify="left")
    for column in columns:
        # On a narrow terminal a long name goes on in the next line: half a name is of no use.
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(column.show(row.get(column.field)) for column in columns))
    return table
