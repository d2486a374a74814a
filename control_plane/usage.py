"""UsageService: what routers wrote about settled requests, read hour by hour and added up exactly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from common import keys
from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.store import Entry, Store
from control_plane.core import check
from control_plane.core.usage import (
    HOUR_S,
    HourSum,
    Period,
    TableKey,
    complete_until_ns,
    damaged_table,
    hour_name,
    hour_of,
    process_key,
    table_key,
    whole_hours,
)
from fairlead.admin.v1 import admin_pb2, usage_pb2, usage_pb2_grpc
from fairlead.errors import InvalidArgumentError, NotFoundError, Reason

log = get_logger(__name__)

BATCH_ROWS: Final = 1_000
"""Rows in one message: about 100 kB."""

TIME_MAX_S: Final = 253_402_297_200
"""9999-12-31T23:00Z: the last hour with four digits for its year."""

MARGIN_NS: Final = 20 * NS_PER_S
"""As long as a router may work before anybody sees it: it is registered and says how far it is within seconds of its
start, and its registration is seen here within as many."""


class UsageReader:
    """The tables of usage in the store. Values are read one router and hour at a time, so that a large platform's
    month never is in memory at once.

    Args:
        store: Where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def hours(self, period: Period) -> AsyncIterator[int]:
        """The hours of a period in which anything was written, in order; their begins in seconds since the epoch.

        Raises:
            FailedPreconditionError: A key between them is no table's.
        """
        cursor, end = keys.USAGE + hour_name(period.start_s), keys.USAGE + hour_name(period.end_s)
        while found := await self._store.list_keys(cursor, end, 1):
            where = _where(found[0])
            hour_s = hour_of(where.hour)
            assert hour_s is not None, "table_key has checked it"
            yield hour_s
            cursor = f"{keys.USAGE}{where.hour}0"  # '0' follows '/': the next hour's keys

    async def tables(self, hour_s: int) -> AsyncIterator[Sequence[Entry]]:
        """The tables of an hour, all of one router at once."""
        cursor, end = f"{keys.USAGE}{hour_name(hour_s)}/", f"{keys.USAGE}{hour_name(hour_s)}0"
        while found := await self._store.list_keys(cursor, end, 1):
            below = f"{keys.USAGE}{hour_name(hour_s)}/{_where(found[0]).router_id}"
            yield (await self._store.list(f"{below}/")).entries
            cursor = f"{below}0"

    async def states(self) -> list[usage_pb2.UsageState] | None:
        """What every router process said last of how far it is; None where one of them cannot be read."""
        states = []
        for entry in (await self._store.list(keys.USAGE_STATES)).entries:
            state = state_of(entry)
            if state is None:
                log.error("state of usage unreadable, nobody can say up to when usage is complete", key=entry.key)
                return None
            states.append(state)
        return states


def state_of(entry: Entry) -> usage_pb2.UsageState | None:
    """How far a router process is; None where that is damaged."""
    try:
        state = usage_pb2.UsageState.FromString(entry.value)
    except DecodeError:
        return None
    found = (state.router_id, state.incarnation_id)
    named = process_key(entry.key.removeprefix(keys.USAGE_STATES))
    return state if found == named and 0 < state.stored_until_time.seconds < TIME_MAX_S else None


def decoded(entries: Sequence[Entry]) -> Iterator[tuple[TableKey, str, usage_pb2.UsageTable]]:
    """Tables with the parts of their keys and their keys.

    Raises:
        DamagedTableError: A key or a value is no table's.
    """
    for entry in entries:
        try:
            yield _where(entry.key), entry.key, usage_pb2.UsageTable.FromString(entry.value)
        except DecodeError:
            raise damaged_table(entry.key, "it is no usage table") from None


def _where(key: str) -> TableKey:
    where = table_key(key.removeprefix(keys.USAGE))
    if where is None:
        raise damaged_table(key, "its name is no usage table's")
    return where


class UsageService(usage_pb2_grpc.UsageServiceServicer):
    """Answers on every instance.

    Args:
        store: Where usage is.
        routers: The routers that are registered, by anything.
        clock: Wall time.
        retention_days: Usage is kept for so long, 1 or more.
    """

    def __init__(
        self,
        store: Store,
        routers: Callable[[], Mapping[str, admin_pb2.ServiceInstance]],
        clock: Clock,
        *,
        retention_days: int,
    ) -> None:
        self._store = store
        self._reader = UsageReader(store)
        self._routers = routers
        self._clock = clock
        self._retention_days = retention_days

    async def ExportUsage(
        self, request: usage_pb2.ExportUsageRequest, context: Any
    ) -> AsyncIterator[usage_pb2.ExportUsageResponse]:
        """See UsageService."""
        period = self._period(request)
        if request.tenant_id:
            check.tenant_id(request.tenant_id)
        if request.model_id:
            check.model_id(request.model_id)
        batch = usage_pb2.ExportUsageResponse()
        complete_ns = await self._complete_until_ns()
        if complete_ns is not None:
            batch.complete_until_time.FromNanoseconds(complete_ns)
        found = False
        async for hour_s in self._reader.hours(period):
            for row in await self._rows(HourSum(hour_s, request.tenant_id, request.model_id), hour_s):
                found = True
                batch.rows.append(row)
                if len(batch.rows) == BATCH_ROWS:
                    yield batch
                    batch = usage_pb2.ExportUsageResponse()
        if not found:
            await self._check_known(request)
        if batch.rows or batch.HasField("complete_until_time"):
            yield batch

    async def _rows(self, hour: HourSum, hour_s: int) -> list[usage_pb2.UsageRow]:
        async for entries in self._reader.tables(hour_s):
            # Tens of thousands of rows: in a thread, so that the loop stays free for elections and other calls.
            await asyncio.to_thread(_add, hour, entries)
        return await asyncio.to_thread(lambda: list(hour.rows()))

    async def _complete_until_ns(self) -> int | None:
        """Taken before the first table is read, so that it is true of all of them; None where nobody can know."""
        states = await self._reader.states()
        if states is None:
            return None
        now_ns = self._clock.wall_ns()
        return complete_until_ns(
            now_ns,
            states,
            {router.instance_id: router.start_time.ToNanoseconds() for router in self._routers().values()},
            oldest_ns=oldest_kept_s(now_ns / NS_PER_S, self._retention_days) * NS_PER_S,
            margin_ns=MARGIN_NS,
        )

    def _period(self, request: usage_pb2.ExportUsageRequest) -> Period:
        now_s = self._clock.wall_ns() / NS_PER_S
        kept_s = oldest_kept_s(now_s, self._retention_days)
        start_s, end_s = float(kept_s), now_s
        for field in ("start_time", "end_time"):
            if request.HasField(field) and not 0 <= getattr(request, field).seconds < TIME_MAX_S:
                raise InvalidArgumentError(f"{field} must be a time from 1970 to 9999", field=field)
        if request.HasField("start_time"):
            start_s = request.start_time.ToNanoseconds() / NS_PER_S
        if request.HasField("end_time"):
            end_s = request.end_time.ToNanoseconds() / NS_PER_S
        if start_s < kept_s:
            raise InvalidArgumentError(
                f"usage is kept for {self._retention_days} days: start_time must be {hour_name(kept_s)}:00Z or later, "
                "or left out for everything that is kept (usage_retention_days of the control plane)",
                field="start_time",
            )
        if end_s <= start_s:
            raise InvalidArgumentError("end_time must be after start_time", field="end_time")
        return whole_hours(start_s, end_s)

    async def _check_known(self, request: usage_pb2.ExportUsageRequest) -> None:
        """A deleted tenant's usage can be exported; a tenant that nobody ever heard of is a mistake."""
        if request.tenant_id and await self._store.get(keys.tenant(request.tenant_id)) is None:
            raise NotFoundError(
                f"there is no tenant {request.tenant_id!r}, and no usage of one in this period",
                reason=Reason.UNKNOWN_TENANT,
            )
        if request.model_id and await self._store.get(keys.model(request.model_id)) is None:
            raise NotFoundError(
                f"there is no model {request.model_id!r}, and no usage of one in this period",
                reason=Reason.UNKNOWN_MODEL,
            )


def oldest_kept_s(now_s: float, retention_days: int) -> int:
    """Begin of the oldest hour that is exported, seconds since the epoch.

    Args:
        now_s: Wall time, seconds since the epoch.
        retention_days: Usage is kept for so long, 1 or more.
    """
    return max(0, int(now_s // HOUR_S) * HOUR_S - retention_days * 24 * HOUR_S)


def _add(hour: HourSum, entries: Sequence[Entry]) -> None:
    for where, key, table in decoded(entries):
        hour.add(where, key, table)
