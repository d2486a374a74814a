"""The limiter's writes: leases/{router}, in order, by compare-and-swap under the leader's fence.

Everything that waits is written in one transaction: the newest table of every router with a report or a push pending.
A table is answered to its router only after it is stored, so that the next leader can know of everything a router may
be spending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from common import keys
from common.clock import Clock
from common.logs import get_logger
from common.store import Expect, Store
from fairlead.errors import NotLeaderError, UnavailableError
from fairlead.quota.v1 import quota_pb2
from ratelimiter.core.values import Table
from ratelimiter.translate import table_from, table_to

log = get_logger(__name__)

# etcd refuses transactions of more than 128 operations (--max-txn-ops).
_BATCH = 100
_ATTEMPTS = 3
_DEPOSED = "this instance of the rate limiter does not lead any more; ask the leader"


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
        self._stored: dict[str, quota_pb2.LeaseTable] = {}
        self._pending: dict[str, Table | None] = {}
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
        """Writes tables and deletes those of routers that are gone, soon."""
        for table in tables:
            self._pending[table.router_id] = table
        for router_id in routers_gone:
            self._pending[router_id] = None
        if self._pending:
            self._wake.set()

    def stored(self, router_id: str) -> quota_pb2.LeaseTable | None:
        """The table of a router as this leader stored it last; None before."""
        return self._stored.get(router_id)

    async def publish(self, table: Table) -> quota_pb2.LeaseTable:
        """Stores a table.

        Returns:
            The table as stored, or a newer one of its router.

        Raises:
            NotLeaderError: It cannot be: this instance was deposed.
            UnavailableError: The store does not answer; the table may or may not be stored.
        """
        if self._ended:
            raise NotLeaderError(_DEPOSED)
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self.post([table], ())
        await done
        return self._stored[table.router_id]

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
        batch, self._pending = self._pending, {}
        waiting, self._waiting = self._waiting, []
        try:
            routers = sorted(batch)
            for start in range(0, len(routers), _BATCH):
                await self._commit({router_id: batch[router_id] for router_id in routers[start : start + _BATCH]})
        except UnavailableError as error:
            log.warning("leases not stored", routers=len(batch), error=error.message)
            # Whether they were stored is unknown, so the revisions are too.
            self._revisions = None
            self._settle(waiting, error)
        except BaseException:
            self._settle(waiting, NotLeaderError(_DEPOSED))
            raise
        else:
            self._settle(waiting, None)

    async def _commit(self, batch: dict[str, Table | None]) -> None:
        now = self._clock.wall_ns()
        messages = {router_id: table_to(table, now) for router_id, table in batch.items() if table is not None}
        puts = {keys.lease(router_id): message.SerializeToString() for router_id, message in messages.items()}
        deletes = [keys.lease(router_id) for router_id, table in batch.items() if table is None]
        for _ in range(_ATTEMPTS):
            known = self._revisions if self._revisions is not None else await self._read_revisions()
            expects = [Expect(key, revision=known.get(key, 0)) for key in (*puts, *deletes)]
            revision = await self._store.commit([self._fence(), *expects], puts, deletes)
            if revision is not None:
                known.update(dict.fromkeys(puts, revision))
                for key in deletes:
                    known.pop(key, None)
                self._stored.update(messages)
                self.writes += len(batch)
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
