"""Lease tables in the store: fenced, in order, newest last."""

from __future__ import annotations

import asyncio

import pytest

from common import keys
from common.clock import FakeClock
from common.memory_store import MemoryStore
from common.store import Expect
from fairlead.errors import NotLeaderError, UnavailableError
from fairlead.quota.v1 import quota_pb2
from model_units.units import MilliModelUnits
from model_units.units import MilliModelUnitsPerMinute as Rate
from ratelimiter.core.values import Lease, Table, Version, Workload
from ratelimiter.lease_book import LeaseBook
from ratelimiter.translate import table_from

SHARD = 3
LEADER = keys.leader("ratelimiter")


def table(router_id: str, number: int, rate: int = 10) -> Table:
    lease = Lease(Rate(rate), MilliModelUnits(rate // 2), Rate(rate), Rate(rate))
    return Table(router_id, "i", SHARD, Version(1, number), number, 10**10, {Workload("m", "t"): lease}, {})


class Desk:
    """A leader with its book running."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)

    async def lead(self) -> LeaseBook:
        await self.store.delete(LEADER)
        created = await self.store.put(LEADER, b"me")
        return LeaseBook(self.store, self.clock, lambda: Expect(LEADER, create_revision=created))

    async def stored(self, router_id: str) -> Table | None:
        entry = await self.store.get(keys.lease(router_id, SHARD))
        return table_from(quota_pb2.LeaseTable.FromString(entry.value)) if entry else None


async def test_a_published_table_is_stored_before_it_is_answered() -> None:
    """Proves the order: what publish returns is in the store already, byte for byte, and learned by the next leader."""
    desk = Desk()
    book = await desk.lead()
    writer = asyncio.create_task(book.run())
    (answer,) = await book.publish([table("a", 1)])
    entry = await desk.store.get(keys.lease("a", SHARD))
    assert entry is not None
    assert entry.value == answer.SerializeToString()
    writer.cancel()
    successor = await desk.lead()
    assert await successor.load() == [table("a", 1)]


async def test_what_waits_together_is_written_together_newest_last() -> None:
    """Proves batching: two tables of one router leave the newer, and everything goes in one transaction."""
    desk = Desk()
    book = await desk.lead()
    await book.load()
    book.post([table("a", 1), table("b", 2), table("a", 3)], ["c"])
    before = await desk.store.put("/mark", b"")
    writer = asyncio.create_task(book.run())
    assert (await book.publish([table("d", 4)]))[0].table_number == 4
    after = await desk.store.put("/mark", b"")
    assert after - before == 2, "one transaction for all of it"
    assert await desk.stored("a") == table("a", 3)
    writer.cancel()


async def test_a_deposed_leader_neither_writes_nor_answers() -> None:
    """Proves fencing: after another election the ghost's tables are refused, and whoever waits is told."""
    desk = Desk()
    book = await desk.lead()
    writer = asyncio.create_task(book.run())
    await book.publish([table("a", 1)])
    await desk.lead()
    with pytest.raises(NotLeaderError):
        await book.publish([table("a", 2)])
    with pytest.raises(NotLeaderError):
        await writer
    with pytest.raises(NotLeaderError):
        await book.publish([table("a", 3)])
    assert await desk.stored("a") == table("a", 1)


async def test_a_deposed_leader_does_not_even_renew() -> None:
    """Proves that an answer without a table passes the fence as well, and writes nothing while it holds."""
    desk = Desk()
    book = await desk.lead()
    writer = asyncio.create_task(book.run())
    await book.publish([table("a", 1)])
    before = book.writes
    assert await book.publish([]) == []
    assert [stored.table_number for stored in await book.publish([table("a", 1)])] == [1]
    assert book.writes == before
    await desk.lead()
    with pytest.raises(NotLeaderError):
        await book.publish([])
    with pytest.raises(NotLeaderError):
        await writer


async def test_large_batches_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that one transaction stays within what the store takes, in operations and in bytes."""
    monkeypatch.setattr("ratelimiter.lease_book._BATCH_BYTES", 200)
    desk = Desk()
    book = await desk.lead()
    await book.load()
    writer = asyncio.create_task(book.run())
    before = await desk.store.put("/mark", b"")
    await book.publish([table(f"r{number}", number) for number in range(1, 21)])
    assert await desk.store.put("/mark", b"") - before > 5
    assert await desk.stored("r20") == table("r20", 20)
    writer.cancel()


async def test_what_one_gives_up_is_stored_before_another_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves the order of transactions: deletions, then tables as they were made, whatever their routers are called."""
    monkeypatch.setattr("ratelimiter.lease_book._BATCH", 1)
    desk = Desk()
    book = await desk.lead()
    writer = asyncio.create_task(book.run())
    await book.publish([table("c", 1)])
    before = await desk.store.put("/mark", b"")
    book.post([table("b", 2)], ["c"])
    await book.publish([table("a", 3)])
    changes = await anext(desk.store.watch(keys.LEASES, after_revision=before))
    assert [change.key for change in changes] == [keys.lease(router_id, SHARD) for router_id in "cba"]
    writer.cancel()


async def test_a_store_outage_is_told_and_survived() -> None:
    """Proves that a failed write is an error for its router, and that the next one works."""
    desk = Desk()
    book = await desk.lead()
    writer = asyncio.create_task(book.run())
    await book.publish([table("a", 1)])
    await desk.store.set_down(True)
    with pytest.raises(UnavailableError):
        await book.publish([table("a", 2)])
    await desk.store.set_down(False)
    assert (await book.publish([table("a", 3)]))[0].table_number == 3
    writer.cancel()


async def test_a_write_of_its_own_that_lands_late_is_overtaken() -> None:
    """Proves compare-and-swap: after a write with unknown outcome the newest table still wins."""
    desk = Desk()
    book = await desk.lead()
    writer = asyncio.create_task(book.run())
    await book.publish([table("a", 1)])
    await desk.store.put(keys.lease("a", SHARD), b"")
    assert (await book.publish([table("a", 2)]))[0].table_number == 2
    assert book.conflicts == 1
    assert await desk.stored("a") == table("a", 2)
    writer.cancel()


async def test_tables_of_routers_that_are_gone_are_deleted() -> None:
    """Proves that the store does not fill up with dead routers."""
    desk = Desk()
    book = await desk.lead()
    writer = asyncio.create_task(book.run())
    await book.publish([table("a", 1)])
    book.post([], ["a", "never-there"])
    await book.publish([table("b", 2)])
    assert await desk.stored("a") is None
    writer.cancel()
