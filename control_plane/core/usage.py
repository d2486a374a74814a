"""Adding up usage: what every router process settled, into what every tenant is charged, exactly.

A table holds one router process's counters of one hour and one shard of tenants since the process began; it is written
again as they grow, so that tables of different processes add up and two versions of one table never do. Integers all
the way: a sum that would not be exact is refused instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from fairlead.admin.v1 import usage_pb2
from fairlead.errors import FailedPreconditionError

HOUR_S: Final = 3600
HOUR_FORM: Final = "%Y-%m-%dT%H"

COUNTERS: Final = (
    "requests",
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "prefill_milli_mu",
    "decode_milli_mu",
)
"""The fields of a row that are added up."""

COUNTER_MAX: Final = (1 << 63) - 1
"""What a row's field can hold."""


class TableKey(NamedTuple):
    """Where a table is: the parts of its key in the store."""

    hour: str
    """Begin of the hour, UTC, as 2026-11-22T19."""
    router_id: str
    """The router."""
    incarnation_id: str
    """The process."""
    shard: str
    """The shard of tenants."""


def damaged_table(key: str, wrong: str) -> FailedPreconditionError:
    """A stored table cannot be what a router wrote, so that no sum with or without it would be true.

    Args:
        key: The table's key in the store.
        wrong: What is wrong with it.
    """
    return FailedPreconditionError(
        f"the usage stored at {key} is damaged ({wrong}): no export of its hour can be exact. Export the hours "
        "before and after it (--end, --start), and restore that key from a backup of etcd",
        metadata={"key": key},
    )


class HourSum:
    """The sum of one hour.

    Args:
        hour_s: Begin of the hour, seconds since the Unix epoch.
        tenant_id: Only this tenant's rows; empty for all.
        model_id: Only this model's rows; empty for all.
    """

    def __init__(self, hour_s: int, tenant_id: str = "", model_id: str = "") -> None:
        self._hour_s = hour_s
        self._tenant_id = tenant_id
        self._model_id = model_id
        self._sums: dict[tuple[str, str], list[int]] = {}

    def add(self, where: TableKey, key: str, table: usage_pb2.UsageTable) -> None:
        """Adds a table of this hour; each may be added once.

        Args:
            where: The parts of its key.
            key: The whole key, for errors.
            table: What is stored there.

        Raises:
            FailedPreconditionError: It is of another place or hour, holds a row twice, or a counter below zero.
        """
        found = (table.router_id, table.incarnation_id, str(table.shard), table.hour.seconds)
        if found != (where.router_id, where.incarnation_id, where.shard, self._hour_s):
            raise damaged_table(key, "it says of itself that it belongs elsewhere")
        seen: set[tuple[str, str]] = set()
        for row in table.rows:
            name = (row.model_id, row.tenant_id)
            counts = [getattr(row, counter) for counter in COUNTERS]
            if not all(name) or name in seen:
                raise damaged_table(key, "a tenant and model is not named, or named twice")
            if min(counts) < 0:
                raise damaged_table(key, f"a counter of {row.tenant_id} on {row.model_id} is negative")
            seen.add(name)
            if self._tenant_id in ("", row.tenant_id) and self._model_id in ("", row.model_id):
                sums = self._sums.setdefault(name, [0] * len(COUNTERS))
                sums[:] = map(sum, zip(sums, counts, strict=True))

    def rows(self) -> Iterator[usage_pb2.UsageRow]:
        """The sums, by model then tenant.

        Raises:
            FailedPreconditionError: A sum is beyond what a row can hold.
        """
        for model_id, tenant_id in sorted(self._sums):
            sums = dict(zip(COUNTERS, self._sums[model_id, tenant_id], strict=True))
            large = [counter for counter, value in sums.items() if value > COUNTER_MAX]
            if large:
                raise FailedPreconditionError(
                    f"{', '.join(large)} of {tenant_id} on {model_id} in the hour {hour_name(self._hour_s)} exceed "
                    f"what can be exported ({COUNTER_MAX}): some router wrote nonsense; export other hours"
                )
            row = usage_pb2.UsageRow(tenant_id=tenant_id, model_id=model_id)
            row.hour.seconds = self._hour_s
            for counter, value in sums.items():
                setattr(row, counter, value)
            yield row


class Period(NamedTuple):
    """Whole hours, in seconds since the Unix epoch."""

    start_s: int
    """Begin of the first hour."""
    end_s: int
    """End of the last hour."""


def whole_hours(start_s: float, end_s: float) -> Period:
    """Widens a period to whole hours: the start down, the end up.

    Args:
        start_s: Seconds since the Unix epoch.
        end_s: Likewise.
    """
    return Period(int(start_s // HOUR_S) * HOUR_S, -int(-end_s // HOUR_S) * HOUR_S)


def hour_name(hour_s: int) -> str:
    """Names an hour as the keys do: 2026-11-22T19.

    Args:
        hour_s: Its begin, seconds since the Unix epoch, 0 or more.
    """
    return datetime.fromtimestamp(hour_s, UTC).strftime(HOUR_FORM)


def hour_of(name: str) -> int | None:
    """Reads the name of an hour; its begin in seconds since the Unix epoch, or None where it is none."""
    try:
        hour = datetime.strptime(name, HOUR_FORM).replace(tzinfo=UTC)
    except ValueError:
        return None
    return int(hour.timestamp()) if hour.strftime(HOUR_FORM) == name else None


def table_key(below: str) -> TableKey | None:
    """Takes apart what follows the prefix in a table's key; None where it is not one's."""
    parts = below.split("/")
    return TableKey(*parts) if len(parts) == 4 and all(parts) and hour_of(parts[0]) is not None else None


def process_key(below: str) -> tuple[str, str] | None:
    """Takes apart what follows the prefix in a state's key: router and process; None where it is not one's."""
    parts = below.split("/")
    return (parts[0], parts[1]) if len(parts) == 2 and all(parts) else None


def complete_until_ns(
    now_ns: int,
    states: Collection[usage_pb2.UsageState],
    registered_ns: Mapping[str, int],
    *,
    oldest_ns: int,
    margin_ns: int,
) -> int:
    """Up to when everything that was settled is stored: as far as the process is that is furthest behind.

    A process that died holds it back until its journal has been stored, one that ended in order does not, and a router
    that is registered and has said nothing yet counts from its start.

    Args:
        now_ns: Wall time.
        states: What every process said last of itself.
        registered_ns: When each router that is registered now started, wall time.
        oldest_ns: What is not kept is not missing either: begin of what is, wall time.
        margin_ns: As long as a process may settle before it is registered or says anything, 0 or more.

    Returns:
        Wall time.
    """
    behind = [now_ns - margin_ns]
    told_ns: dict[str, int] = {}
    for state in states:
        stored_ns = state.stored_until_time.ToNanoseconds()
        if not state.final and stored_ns >= oldest_ns:
            behind.append(stored_ns)
        told_ns[state.router_id] = max(stored_ns, told_ns.get(state.router_id, 0))
    behind += (start_ns for router_id, start_ns in registered_ns.items() if told_ns.get(router_id, -1) < start_ns)
    return min(behind)
