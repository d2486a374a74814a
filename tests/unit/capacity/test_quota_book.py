"""The allocator's writes: only what changed, fenced, compare-and-swap."""

from __future__ import annotations

import pytest

from capacity.core.allocate import PPM, Demand, Model, ModelLedger, Replica, Reservation, allocate
from capacity.quota_book import ConflictAtStoreError, QuotaBook
from capacity.tables import SHARDS
from common import keys
from common.clock import FakeClock
from common.memory_store import MemoryStore
from common.store import Epoch, Expect
from fairlead.capacity.v1 import capacity_pb2
from model_units.units import MilliModelUnitsPerMinute as Rate

LEADER = keys.leader("capacity")


def ledgers(granted: int, wants: int = 0) -> tuple[ModelLedger, ...]:
    replica = Replica("r", "m", Rate(granted), ready=True)
    reservation = Reservation("a", "m", Rate(granted), Rate(granted))
    return allocate([replica], [Model("m", PPM)], [reservation], {("m", "a"): Demand(Rate(wants), Rate(wants))})


async def lead(store: MemoryStore) -> tuple[Epoch, Expect]:
    """Plays an election won: returns epoch and fence."""
    await store.delete(LEADER)
    epoch = Epoch(await store.put(LEADER, b"me"))
    return epoch, Expect(LEADER, create_revision=epoch)


async def test_writes_only_what_changed() -> None:
    """Proves that a round without news writes nothing, and that telemetry alone waits for its time."""
    clock = FakeClock()
    store = MemoryStore(clock)
    epoch, fence = await lead(store)
    book = QuotaBook(store, clock)
    await book.load()
    assert await book.write(ledgers(100), (), epoch, fence) == 2
    assert await book.write(ledgers(100), (), epoch, fence) == 0
    assert await book.write(ledgers(100, wants=7), (), epoch, fence) == 0
    clock.advance(2)
    assert await book.write(ledgers(100, wants=7), (), epoch, fence) == 1, "the target's use is rewritten"
    clock.advance(8)
    assert await book.write(ledgers(100, wants=8), (), epoch, fence) == 2, "now the quota's too"
    assert await book.write(ledgers(101, wants=8), (), epoch, fence) == 2


async def test_a_new_leader_rewrites_nothing_it_agrees_with() -> None:
    """Proves that a takeover causes no storm of writes."""
    clock = FakeClock()
    store = MemoryStore(clock)
    epoch, fence = await lead(store)
    book = QuotaBook(store, clock)
    await book.write(ledgers(100), (), epoch, fence)
    epoch, fence = await lead(store)
    successor = QuotaBook(store, clock)
    await successor.load()
    assert await successor.write(ledgers(100), (), epoch, fence) == 0


async def test_a_deposed_leader_cannot_write() -> None:
    """Proves fencing: once another leader was elected, the ghost's commit fails and changes nothing."""
    clock = FakeClock()
    store = MemoryStore(clock)
    epoch, fence = await lead(store)
    book = QuotaBook(store, clock)
    await book.write(ledgers(100), (), epoch, fence)
    await lead(store)
    with pytest.raises(ConflictAtStoreError):
        await book.write(ledgers(50), (), epoch, fence)
    entry = await store.get(keys.quota("m", keys.tenant_shard("a", SHARDS)))
    assert entry is not None
    assert capacity_pb2.QuotaTable.FromString(entry.value).quotas[0].granted_milli_mu_per_minute == 100


async def test_a_foreign_write_is_noticed() -> None:
    """Proves the compare on every key: what somebody else wrote is read again before it is replaced."""
    clock = FakeClock()
    store = MemoryStore(clock)
    epoch, fence = await lead(store)
    book = QuotaBook(store, clock)
    await book.write(ledgers(100), (), epoch, fence)
    await store.put(
        keys.quota("m", keys.tenant_shard("a", SHARDS)), capacity_pb2.QuotaTable(model_id="m").SerializeToString()
    )
    with pytest.raises(ConflictAtStoreError):
        await book.write(ledgers(50), (), epoch, fence)
    await book.load()
    assert await book.write(ledgers(50), (), epoch, fence) == 2


async def test_kept_models_keep_their_tables_and_gone_models_lose_them() -> None:
    """Proves that doubt leaves quotas alone, and that a deleted model leaves nothing behind."""
    clock = FakeClock()
    store = MemoryStore(clock)
    epoch, fence = await lead(store)
    book = QuotaBook(store, clock)
    await book.write(ledgers(100), (), epoch, fence)
    await book.write(ledgers(0), ("m",), epoch, fence)
    assert book.granted() == {"m": 100}
    await book.write((), (), epoch, fence)
    assert not (await store.list(keys.QUOTAS)).entries
    assert not (await store.list(keys.TARGETS)).entries


async def test_many_tables_are_written_in_batches() -> None:
    """Proves that more keys than a transaction may hold are written all the same."""
    clock = FakeClock()
    store = MemoryStore(clock)
    epoch, fence = await lead(store)
    book = QuotaBook(store, clock)
    models = [Model(f"m{i}", PPM) for i in range(120)]
    assert await book.write(allocate([], models, [], {}), (), epoch, fence) == 120
    assert len((await store.list(keys.TARGETS)).entries) == 120
