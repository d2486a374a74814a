"""What was charged, per hour, tenant and model: the router's part of the platform's usage.

Counters only grow, so that a table may be written again and again and the larger of two versions is the newer one.
An hour's rows fill one table after the other, in the order in which they first occur: so no table grows beyond a
bound, a small platform writes one, and most of a large one's change seldom, as who is busy comes early. The book knows
which of them changed since they were last stored. A row stays in its table, and whoever counts it again (a journal's
reader) must know in which: in two it would count twice.

A settlement counts in the hour in which it happens. Once an hour is over and stored its rows are forgotten, and nothing
is ever counted in it again: after the clock went back, work counts in the first hour that is still open. So no
forgotten counter can start anew at zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

ROWS_MAX: Final = 500
"""Rows of one table. At up to 63 bytes per id and 10 per counter at most 100 kB, far below etcd's 1.5 MiB; usually
25 kB, which takes some milliseconds to encode."""

_NS_PER_HOUR: Final = 3_600_000_000_000


class Counts:
    """Of one settlement, or sums over several.

    Args:
        requests: How many.
        input_tokens: Prompt tokens.
        cached_input_tokens: The part of them found in a prefix cache.
        output_tokens: Generated tokens.
        prefill_milli_mu: Prefill part of the charge.
        decode_milli_mu: Decode part of the charge.
    """

    __slots__ = (
        "cached_input_tokens",
        "decode_milli_mu",
        "input_tokens",
        "output_tokens",
        "prefill_milli_mu",
        "requests",
    )

    def __init__(
        self,
        requests: int = 0,
        input_tokens: int = 0,
        cached_input_tokens: int = 0,
        output_tokens: int = 0,
        prefill_milli_mu: int = 0,
        decode_milli_mu: int = 0,
    ) -> None:
        self.requests = requests
        self.input_tokens = input_tokens
        self.cached_input_tokens = cached_input_tokens
        self.output_tokens = output_tokens
        self.prefill_milli_mu = prefill_milli_mu
        self.decode_milli_mu = decode_milli_mu

    def add(self, more: Counts) -> None:
        """Adds a settlement, or others' sums."""
        self.requests += more.requests
        self.input_tokens += more.input_tokens
        self.cached_input_tokens += more.cached_input_tokens
        self.output_tokens += more.output_tokens
        self.prefill_milli_mu += more.prefill_milli_mu
        self.decode_milli_mu += more.decode_milli_mu

    def each(self) -> tuple[int, int, int, int, int, int]:
        """The counters, in the order of the arguments."""
        return (
            self.requests,
            self.input_tokens,
            self.cached_input_tokens,
            self.output_tokens,
            self.prefill_milli_mu,
            self.decode_milli_mu,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counts) and self.each() == other.each()


class Row(NamedTuple):
    """What one tenant was charged on one model in one hour.

    Attributes:
        hour: Hours since the Unix epoch.
        tenant_id: The tenant.
        model_id: The model.
        counts: The sums.
    """

    hour: int
    tenant_id: str
    model_id: str
    counts: Counts


Payer = tuple[str, str]
"""(tenant, model)."""

TableKey = tuple[int, int]
"""(hour since the Unix epoch, number of the table within it from 0)."""


@dataclass(frozen=True)
class Table:
    """One table as it was when it was asked for.

    Attributes:
        hour: Hours since the Unix epoch.
        number: Within the hour, from 0.
        version: Names this state of the table to `stored`.
        rows: By tenant, then model.
    """

    hour: int
    number: int
    version: int
    rows: tuple[Row, ...]


class _Table:
    __slots__ = ("changed_ns", "number", "rows", "stored_version", "version")

    def __init__(self, number: int) -> None:
        self.number = number
        self.rows: dict[Payer, Counts] = {}
        self.version = 0
        self.stored_version = 0
        self.changed_ns = 0


class _Place:
    """Where a row is."""

    __slots__ = ("sums", "table")

    def __init__(self, table: _Table, sums: Counts) -> None:
        self.table = table
        self.sums = sums


class _Hour:
    """The rows of one hour, and the table that gets the next."""

    __slots__ = ("filling", "places")

    def __init__(self) -> None:
        self.places: dict[Payer, _Place] = {}
        self.filling: _Table | None = None


class UsageBook:
    """The counters of one router process, or of one whose journal is read.

    Args:
        rows_max: Most rows of one table, 1 or more.
    """

    def __init__(self, *, rows_max: int = ROWS_MAX) -> None:
        self._rows_max = rows_max
        self._tables: dict[TableKey, _Table] = {}
        self._hours: dict[int, _Hour] = {}
        self._closed_hour = -1

    def hour_of(self, wall_ns: int) -> int:
        """The hour in which work counts that is settled now: the clock's, or the first that is still open."""
        hour = wall_ns // _NS_PER_HOUR
        return hour if hour > self._closed_hour else self._closed_hour + 1

    def add(self, hour: int, payer: Payer, counts: Counts, now_ns: int, number: int | None = None) -> int:
        """Counts settled work.

        Args:
            hour: From `hour_of`.
            payer: Who pays for what.
            counts: Of one settlement, or sums of several.
            now_ns: Monotonic now.
            number: The table in which another book counts this row; None where this is the first to count it.

        Returns:
            The number of the row's table.
        """
        rows = self._hours.get(hour)
        if rows is None:
            rows = self._hours[hour] = _Hour()
        place = rows.places.get(payer)
        if place is None:
            place = rows.places[payer] = self._place(hour, rows, payer, number)
        place.sums.add(counts)
        table = place.table
        if table.version == table.stored_version:
            table.changed_ns = now_ns
        table.version += 1
        return table.number

    def changed(self) -> list[TableKey]:
        """Tables that changed since they were last stored, oldest hour first."""
        return sorted(key for key, table in self._tables.items() if table.version != table.stored_version)

    def table(self, key: TableKey) -> Table:
        """A copy of one table, which must exist."""
        table = self._tables[key]
        return Table(*key, table.version, tuple(self._rows(key[0], table)))

    def stored(self, table: Table, now_ns: int) -> None:
        """Notes that a table was stored as it was.

        Args:
            table: From `table`.
            now_ns: Monotonic time at which it was copied: what was added since is younger.
        """
        kept = self._tables[table.hour, table.number]
        kept.stored_version = max(kept.stored_version, table.version)
        kept.changed_ns = now_ns

    def lag_ns(self, now_ns: int) -> int:
        """Age of the oldest settlement that is not stored yet, nanoseconds; 0 where all are."""
        since = [table.changed_ns for table in self._tables.values() if table.version != table.stored_version]
        return max(0, now_ns - min(since)) if since else 0

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Everything in memory, each row with the number of its table, in no particular order of hours."""
        for (hour, number), table in self._tables.items():
            for row in self._rows(hour, table):
                yield number, row

    def forget_over(self, wall_ns: int) -> None:
        """Forgets hours that ended an hour ago or earlier and are stored."""
        over = wall_ns // _NS_PER_HOUR - 1
        waiting = {hour for hour, _ in self.changed()}
        closed = [key for key in self._tables if key[0] < over and key[0] not in waiting]
        for key in closed:
            del self._tables[key]
            self._hours.pop(key[0], None)
            self._closed_hour = max(self._closed_hour, key[0])

    @staticmethod
    def _rows(hour: int, table: _Table) -> Iterable[Row]:
        for (tenant_id, model_id), sums in sorted(table.rows.items()):
            yield Row(hour, tenant_id, model_id, Counts(*sums.each()))

    def _place(self, hour: int, rows: _Hour, payer: Payer, number: int | None) -> _Place:
        table = self._table_for_new(hour, rows) if number is None else self._table_at(hour, number)
        sums = table.rows[payer] = Counts()
        return _Place(table, sums)

    def _table_for_new(self, hour: int, rows: _Hour) -> _Table:
        table = rows.filling
        if table is None or len(table.rows) >= self._rows_max:
            table = rows.filling = self._table_at(hour, 0 if table is None else table.number + 1)
        return table

    def _table_at(self, hour: int, number: int) -> _Table:
        table = self._tables.get((hour, number))
        if table is None:
            table = self._tables[hour, number] = _Table(number)
        return table


def merged(ours: Iterable[Row], theirs: Iterable[Row]) -> list[Row]:
    """Joins two states of one table, of which one is the later: the larger of every counter.

    Returns:
        Rows by tenant, then model.
    """
    rows: dict[tuple[int, str, str], Row] = {}
    for row in (*ours, *theirs):
        key = (row.hour, row.tenant_id, row.model_id)
        known = rows.get(key)
        counts = row.counts if known is None else Counts(*map(max, known.counts.each(), row.counts.each()))
        rows[key] = Row(*key, counts)
    return [rows[key] for key in sorted(rows)]
