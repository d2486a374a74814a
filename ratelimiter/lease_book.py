"""The limiter's writes: leases/{router}/{shard}, in order, by compare-and-swap under the leader's fence.

Everything that waits is written in few transactions: the newest version of every table with an answer or a push
pending. A table is answered to its router only after it is stored, so that the next leader can know of everything a
router may be spending. An answer that only renews passes the fence too: a deposed leader renews nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from common import keys
from common.clock import Clock
from common.logs import get_logger
from common.store import Expect, Store
from fairlead.errors import NotLeaderError, UnavailableError
from fairlead.quota.v1 import quota_pb2
from ratelimiter.core.values import NO_TABLE, Table, Version
from ratelimiter.translate import table_from, table_to

log = get_logger(__name__)

# etcd refuses transactions of more than 128 operations (--max-txn-ops) and requests above 1.5 MiB.
_BATCH = 100
_BATCH_BYTES = 1 << 20
_ATTEMPTS = 3
_DEPOSED = "this instance of the rate limiter does not lead any more; ask the leader"


def _turn(item: tuple[str, Table | None]) -> Version:
    """Deletions come first, then tables as they were made: what one gives up is stored before another has it."""
    table = item[1]
    return NO_TABLE if table is None else table.version


class LeaseBook:
    """What the store holds of lease tables, and what is about to be written.

    Args:
        store: Where they are.
        clock: Dates the tables, for people.
        fence: This leader's condition; raises NotLeaderError when deposed.
    """

    def __init__(self, store: Store, clock: Clock, fence: Callable[[], Expect]) -> None:
        self._store = store
        self._clock = clock
        self._fence = fence
        self._revisions: dict[str, int] | None = None
        self._ended = False
        self._stored: dict[str, dict[int, quota_pb2.LeaseTable]] = {}
        self._pending: dict[str, Table] = {}
        self._gone: set[str] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self.writes = 0
        self.conflicts = 0

    async def load(self) -> list[Table]:
        """Reads what an earlier leader left. To be done after the election, before anything is granted."""
        listing = await self._store.list(keys.LEASES)
        self._revisions = {entry.key: entry.revision for entry in listing.entries}
        return [table_from(quota_pb2.LeaseTable.FromString(entry.value)) for entry in listing.entries]

    def post(self, tables: Iterable[Table], routers_gone: Iterable[str]) -> None:
        """Writes tables and deletes all those of routers that are gone, soon."""
        for table in tables:
            self._pending[keys.lease(table.router_id, table.shard)] = table
        self._gone.update(routers_gone)
        if self._pending or self._gone:
            self._wake.set()

    def stored(self, router_id: str) -> list[quota_pb2.LeaseTable]:
        """The tables of a router as this leader stored them last, sorted by shard."""
        return [table for _, table in sorted(self._stored.get(router_id, {}).items())]

    async def publish(self, tables: Iterable[Table]) -> list[quota_pb2.LeaseTable]:
        """Stores those of these tables that are not stored yet, and makes sure that this leader still leads.

        Returns:
            The tables as stored, or newer ones of their shards.

        Raises:
            NotLeaderError: It cannot be: this instance was deposed.
            UnavailableError: The store does not answer; the tables may or may not be stored.
        """
        if self._ended:
            raise NotLeaderError(_DEPOSED)
        tables = list(tables)
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self.post((table for table in tables if not self._is_stored(table)), ())
        self._wake.set()
        await done
        # A router that left meanwhile has none any more.
        stored = (self._stored.get(table.router_id, {}).get(table.shard) for table in tables)
        return [table for table in stored if table is not None]

    def _is_stored(self, table: Table) -> bool:
        stored = self._stored.get(table.router_id, {}).get(table.shard)
        return stored is not None and (stored.epoch, stored.table_number) >= table.version

    async def run(self) -> None:
        """Writes until deposed or cancelled.

        Raises:
            NotLeaderError: This instance was deposed.
        """
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._flush()
        finally:
            self._ended = True
            self._settle(self._waiting, NotLeaderError(_DEPOSED))

    async def _flush(self) -> None:
        batch: dict[str, Table | None] = {**self._pending}
        gone, self._pending, self._gone = self._gone, {}, set()
        waiting, self._waiting = self._waiting, []
        try:
            if gone:
                batch = {**await self._all_of(gone), **batch}
            # Without anything to write it still has to be seen that nobody else leads.
            for part in list(self._parts(batch)) or [{}]:
                await self._commit(part)
        except UnavailableError as error:
            log.warning("leases not stored", tables=len(batch), error=error.message)
            # Whether they were stored is unknown, so the revisions are too. Routers are said to be gone only once.
            self._revisions = None
            self._gone |= gone
            self._settle(waiting, error)
        except BaseException:
            self._settle(waiting, NotLeaderError(_DEPOSED))
            raise
        else:
            self._settle(waiting, None)

    async def _all_of(self, routers: set[str]) -> dict[str, None]:
        """Every stored key of these routers."""
        known = self._revisions if self._revisions is not None else await self._read_revisions()
        prefixes = tuple(keys.leases_of(router_id) for router_id in routers)
        for router_id in routers:
            self._stored.pop(router_id, None)
        return {key: None for key in known if key.startswith(prefixes)}

    def _parts(self, batch: dict[str, Table | None]) -> Iterator[dict[str, quota_pb2.LeaseTable | None]]:
        """Cuts what is to be written into transactions that the store takes, in order; None deletes."""
        now = self._clock.wall_ns()
        part: dict[str, quota_pb2.LeaseTable | None] = {}
        size = 0
        for key, table in sorted(batch.items(), key=_turn):
            message = table_to(table, now) if table is not None else None
            more = message.ByteSize() if message is not None else 0
            if part and (len(part) >= _BATCH or size + more > _BATCH_BYTES):
                yield part
                part, size = {}, 0
            part[key] = message
            size += more
        if part:
            yield part

    async def _commit(self, part: dict[str, quota_pb2.LeaseTable | None]) -> None:
        puts = {key: message.SerializeToString() for key, message in part.items() if message is not None}
        deletes = [key for key, message in part.items() if message is None]
        for _ in range(_ATTEMPTS):
            known = self._revisions if self._revisions is not None else await self._read_revisions()
            expects = [Expect(key, revision=known.get(key, 0)) for key in part]
            revision = await self._store.commit([self._fence(), *expects], puts, deletes)
            if revision is not None:
                known.update(dict.fromkeys(puts, revision))
                for key in deletes:
                    known.pop(key, None)
                for message in part.values():
                    if message is not None:
                        self._stored.setdefault(message.router_id, {})[message.shard] = message
                self.writes += len(part)
                return
            # Deposed, or an earlier write of our own landed late: the store knows which.
            self.conflicts += 1
            self._revisions = None
        raise NotLeaderError("the store refuses the leases of this instance of the rate limiter")

    async def _read_revisions(self) -> dict[str, int]:
        listing = await self._store.list(keys.LEASES)
        self._revisions = {entry.key: entry.revision for entry in listing.entries}
        return self._revisions

    def _settle(self, waiting: list[asyncio.Future[None]], error: Exception | None) -> None:
        for done in waiting:
            if done.done():
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
        waiting.clear()
