"""Writes usage to etcd: this process's every few seconds, that of processes that died as soon as it is found.

Every key has one writer, and its values only grow. So a write is a compare-and-swap against what this writer knows to
be there; where the outcome of a write is unknown, or something else is there, it is read and the larger counters win.
That makes writing a journal's sums again harmless, however far an earlier attempt got.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from common import keys
from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.store import Expect, Store
from data_plane.router.core.usage import Counts, Row, Table, merged
from data_plane.router.left_journals import Left, left_journals
from data_plane.router.usage_desk import UsageDesk
from fairlead.admin.v1 import usage_pb2
from fairlead.errors import FairleadError

INTERVAL_S: Final = 10.0
"""Between two writes. Bounds what an export can miss, and what etcd has to keep."""

INTERVAL_S_MAX: Final = 60.0
"""The same while very much changes."""

BYTES_PER_S: Final = 100_000
"""What a router writes on average at most, while INTERVAL_S_MAX allows: etcd keeps every version until it compacts."""

IDLE_INTERVAL_S: Final = 60.0
"""Between two notes that everything is stored while nothing is settled. Bounds how old an idle router's is."""

OPERATIONS_MAX: Final = 64
"""Most keys of one transaction; etcd takes 128 operations."""

BYTES_MAX: Final = 1_000_000
"""Most bytes of one transaction; etcd takes 1.5 MiB."""

_S_PER_HOUR: Final = 3600
_FINISH_TIMEOUT_S: Final = 5.0

# A key whose state is unknown is read before it is written.
_UNKNOWN: Final = -1

log = get_logger(__name__)


class UsageWriter:
    """Writes the tables of one process of one router.

    Args:
        store: Where to.
        clock: For the time of writing.
        router_id: Whose they are.
        incarnation_id: Which process.

    Attributes:
        written_bytes: How much was stored.
    """

    def __init__(self, store: Store, clock: Clock, *, router_id: str, incarnation_id: str) -> None:
        self._store = store
        self._clock = clock
        self._router_id = router_id
        self._incarnation_id = incarnation_id
        self._revisions: dict[str, int] = {}
        self.written_bytes = 0

    async def write(self, tables: Iterable[Table]) -> None:
        """Stores tables, several at a time.

        Raises:
            UnavailableError: The store does not answer; every table may or may not have been written.
        """
        batch: dict[str, tuple[Table, bytes]] = {}
        size = 0
        for table in tables:
            key = keys.usage(hour_name(table.hour), self._router_id, self._incarnation_id, table.number)
            value = self._encode(table, table.rows)
            if batch and (len(batch) >= OPERATIONS_MAX or size + len(value) > BYTES_MAX):
                await self._write(batch)
                batch, size = {}, 0
            batch[key] = (table, value)
            size += len(value)
            # A table takes milliseconds; requests go between two of them.
            await asyncio.sleep(0)
        if batch:
            await self._write(batch)

    async def note(self, stored_until_ns: int, *, final: bool = False) -> None:
        """Tells exports how far this process is; to be called only once that is so.

        Args:
            stored_until_ns: Everything that it settled before this time is stored, wall time.
            final: It has ended and nothing of it is left.

        Raises:
            UnavailableError: The store does not answer.
        """
        state = usage_pb2.UsageState(router_id=self._router_id, incarnation_id=self._incarnation_id, final=final)
        state.stored_until_time.FromNanoseconds(stored_until_ns)
        await self._store.put(keys.usage_state(self._router_id, self._incarnation_id), state.SerializeToString())

    def forget_before(self, hour: int) -> None:
        """Forgets what is known of the keys of hours before this one; they are read if they are ever written again."""
        first = keys.USAGE + hour_name(hour)
        self._revisions = {key: revision for key, revision in self._revisions.items() if key >= first}

    async def _write(self, batch: dict[str, tuple[Table, bytes]]) -> None:
        while True:
            puts: dict[str, bytes] = {}
            for key, (table, value) in batch.items():
                if self._revisions.get(key, _UNKNOWN) == _UNKNOWN:
                    stored = await self._read(key)
                    rows = merged(table.rows, stored)
                    if rows == stored:
                        continue
                    if stored:
                        value = self._encode(table, rows)
                puts[key] = value
            if not puts:
                return
            expects = [
                Expect(key, revision=known) if (known := self._revisions[key]) else Expect.absent(key) for key in puts
            ]
            # Until the answer is here nothing is known of these keys.
            self._revisions.update(dict.fromkeys(puts, _UNKNOWN))
            revision = await self._store.commit(expects, puts)
            if revision is not None:
                self._revisions.update(dict.fromkeys(puts, revision))
                self.written_bytes += sum(map(len, puts.values()))
                return

    async def _read(self, key: str) -> list[Row]:
        entry = await self._store.get(key)
        self._revisions[key] = entry.revision if entry is not None else 0
        return _rows(entry.value) if entry is not None else []

    def _encode(self, table: Table, rows: Iterable[Row]) -> bytes:
        message = usage_pb2.UsageTable(
            router_id=self._router_id,
            incarnation_id=self._incarnation_id,
            shard=table.number,
            rows=[
                usage_pb2.UsageRow(
                    tenant_id=row.tenant_id,
                    model_id=row.model_id,
                    requests=row.counts.requests,
                    input_tokens=row.counts.input_tokens,
                    cached_input_tokens=row.counts.cached_input_tokens,
                    output_tokens=row.counts.output_tokens,
                    prefill_milli_mu=row.counts.prefill_milli_mu,
                    decode_milli_mu=row.counts.decode_milli_mu,
                )
                for row in rows
            ],
        )
        message.hour.FromSeconds(table.hour * _S_PER_HOUR)
        message.write_time.FromNanoseconds(self._clock.wall_ns())
        return message.SerializeToString()


class UsagePublisher:
    """Brings a router's usage into the store.

    Args:
        desk: Where it is counted.
        store: Where it goes.
        clock: Time.
        router_id: This router.
        incarnation_id: This process.
        state_dir: Where journals of earlier processes may lie, or None.
    """

    def __init__(
        self,
        desk: UsageDesk,
        store: Store,
        clock: Clock,
        *,
        router_id: str,
        incarnation_id: str,
        state_dir: Path | None,
    ) -> None:
        self._desk = desk
        self._store = store
        self._clock = clock
        self._state_dir = state_dir
        self._router_id = router_id
        self._writer = UsageWriter(store, clock, router_id=router_id, incarnation_id=incarnation_id)
        self._noted_ns: int | None = None

    async def run(self) -> None:
        """Publishes until cancelled."""
        while True:
            before = self._writer.written_bytes
            try:
                await self.adopt()
                await self.publish()
            except FairleadError as error:
                log.warning("usage waits for the store", error=error.message, lag_s=round(self.lag_s()))
            if self._desk.journal is not None:
                await self._desk.journal.tend(self._desk.book)
            written_s = (self._writer.written_bytes - before) / BYTES_PER_S
            await asyncio.sleep(min(max(INTERVAL_S, written_s), INTERVAL_S_MAX))

    def lag_s(self) -> float:
        """Age of the oldest settlement that is not in the store, seconds."""
        return self._desk.book.lag_ns(self._clock.monotonic_ns()) / NS_PER_S

    async def publish(self) -> None:
        """Stores every table that changed, then notes up to when everything is stored.

        Raises:
            UnavailableError: The store does not answer; nothing is lost, and the next time stores more.
        """
        book, began_wall_ns, began_ns = self._desk.book, self._clock.wall_ns(), self._clock.monotonic_ns()
        copied: list[tuple[Table, int]] = []
        for key in book.changed():
            copied.append((book.table(key), self._clock.monotonic_ns()))
            await asyncio.sleep(0)
        await self._writer.write(table for table, _ in copied)
        for table, copied_ns in copied:
            book.stored(table, copied_ns)
        if copied or self._noted_ns is None or began_ns - self._noted_ns >= IDLE_INTERVAL_S * NS_PER_S:
            self._noted_ns = None
            await self._writer.note(began_wall_ns)
            self._noted_ns = began_ns
        wall_ns = self._clock.wall_ns()
        book.forget_over(wall_ns)
        self._writer.forget_before(wall_ns // (NS_PER_S * _S_PER_HOUR) - 1)

    async def adopt(self) -> None:
        """Stores what processes that died have left in their journals, then removes those.

        Raises:
            UnavailableError: The store does not answer; the journals stay.
        """
        for left in left_journals(self._state_dir) if self._state_dir is not None else ():
            try:
                await self._adopt(left)
            except OSError as error:
                log.error("journal of an earlier process unreadable", folder=str(left.folder), error=error.strerror)
            finally:
                left.release()

    async def finish(self, *, quiet: bool) -> None:
        """After the last request: stores the rest, and then needs no journal. Never raises, never takes long.

        Args:
            quiet: Every request has ended, so that nothing can be settled any more. Otherwise, and where something is
                not stored, the journal stays for this router's next process.
        """
        book, journal = self._desk.book, self._desk.journal
        try:
            async with asyncio.timeout(_FINISH_TIMEOUT_S):
                await self.publish()
                if not quiet or book.changed():
                    log.warning("requests still run at the end", journal=journal is not None)
                    return
                await self._writer.note(self._clock.wall_ns(), final=True)
        except (FairleadError, TimeoutError) as error:
            log.warning("usage not stored at the end", error=str(error), journal=journal is not None)
            return
        if journal is not None and not book.changed():
            journal.remove()

    async def _adopt(self, left: Left) -> None:
        found = await asyncio.to_thread(left.read)
        for damage in found.damaged:
            log.error(
                "usage journal of an earlier process is damaged; what is readable counts, the file is kept",
                path=f"{damage.path}.damaged",
                lost_bytes=damage.lost_bytes,
            )
        writer = UsageWriter(
            self._store,
            self._clock,
            router_id=found.header.router_id if found.header else self._router_id,
            incarnation_id=found.header.incarnation_id if found.header else left.folder.name,
        )
        tables = found.book.changed()
        await writer.write(found.book.table(key) for key in tables)
        if tables or found.header:
            # Where something is lost, exports go on saying so.
            if not found.damaged:
                await writer.note(self._clock.wall_ns(), final=True)
            log.info("usage of an earlier process stored", folder=str(left.folder), tables=len(tables))
        await asyncio.to_thread(left.remove, found)
        if self._desk.journal is not None:
            self._desk.journal.lost += len(found.damaged)


def hour_name(hour: int) -> str:
    """An hour since the Unix epoch as keys name it: "2026-11-22T19"."""
    return datetime.fromtimestamp(hour * _S_PER_HOUR, UTC).strftime("%Y-%m-%dT%H")


def _rows(value: bytes) -> list[Row]:
    try:
        table = usage_pb2.UsageTable.FromString(value)
    except DecodeError:
        log.error("a usage table in the store cannot be read; it is written anew")
        return []
    hour = table.hour.seconds // _S_PER_HOUR
    rows = [
        Row(
            hour,
            row.tenant_id,
            row.model_id,
            Counts(
                row.requests,
                row.input_tokens,
                row.cached_input_tokens,
                row.output_tokens,
                row.prefill_milli_mu,
                row.decode_milli_mu,
            ),
        )
        for row in table.rows
    ]
    return sorted(rows, key=lambda row: row[:3])
