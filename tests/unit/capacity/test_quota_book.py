"""The allocator's writes: only what changed, fenced, compare-and-swap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


class LimitedStore(MemoryStore):
    """A store that refuses what etcd refuses; remembers the largest of what it took."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.request_bytes_max = self.value_bytes_max = self.commits = 0

    async def commit(
        self, expects: Sequence[Expect], puts: Mapping[str, bytes], deletes: Sequence[str] = (), *, lease_id: int = 0
    ) -> int | None:
        assert len(puts) + len(deletes) <= 128
        self.commits += 1
        sizes = [len(value) for value in puts.values()]
        self.value_bytes_max = max([self.value_bytes_max, *sizes])
        self.request_bytes_max = max(self.request_bytes_max, sum(sizes) + sum(map(len, [*puts, *deletes])))
        return await super().commit(expects, puts, deletes, lease_id=lease_id)


def crowd(tenants: int, model_id: str, name: str = "t") -> ModelLedger:
    replica = Replica("r", model_id, Rate(10**12), ready=True)
    rate = Rate(10**11)
    sold = [Reservation(f"{name}{n}", model_id, rate, Rate(10**12)) for n in range(tenants)]
    (ledger,) = allocate([replica], [Model(model_id, PPM)], sold, {})
    return ledger


async def stored_tenants(store: MemoryStore) -> list[str]:
    tables = [capacity_pb2.QuotaTable.FromString(e.value) for e in (await store.list(keys.QUOTAS)).entries]
    return sorted(quota.tenant_id for table in tables for quota in table.quotas)


async def test_huge_tables_stay_within_the_stores_limits() -> None:
    """Proves that transactions stay below 1 MiB and values below 256 KiB, with the longest names there are."""
    clock = FakeClock()
    store = LimitedStore(clock)
    epoch, fence = await lead(store)
    book = QuotaBook(store, clock)
    huge = [crowd(8_000, "m" * 127, "t" * 59), crowd(3_000, "n")]
    assert await book.write(huge, (), epoch, fence) == 16 + 16 + 2
    assert 100_000 < store.value_bytes_max < 256 << 10
    assert 500_000 < store.request_bytes_max <= 1 << 20
    assert len(await stored_tenants(store)) == 11_000


async def test_tables_are_split_and_joined_without_losing_a_tenant() -> None:
    """Proves that a model that outgrows its tables gets more, and fewer again only when it has shrunk a lot."""
    clock = FakeClock()
    store = MemoryStore(clock)
    epoch, fence = await lead(store)
    book = QuotaBook(store, clock)
    for tenants, shards in ((100, 16), (8_193, 32), (8_000, 32), (4_000, 16)):
        ledger = crowd(tenants, "m")
        await book.write([ledger], (), epoch, fence)
        assert await stored_tenants(store) == sorted(ledger.columns.sold.tenants)
        assert len((await store.list(keys.QUOTAS)).entries) == shards
        assert book.granted() == {"m": sum(quota.granted for quota in ledger.quotas)}


async def test_noise_in_telemetry_is_not_written() -> None:
    """Proves that use and wants which move by less than a sixteenth cause no write at all."""
    clock = FakeClock()
    store = MemoryStore(clock)
    epoch, fence = await lead(store)
    book = QuotaBook(store, clock)
    await book.write(ledgers(1_000, wants=500), (), epoch, fence)
    clock.advance(60)
    assert await book.write(ledgers(1_000, wants=520), (), epoch, fence) == 0
    assert await book.write(ledgers(1_000, wants=600), (), epoch, fence) == 1, "the target's use has moved notably"
    clock.advance(60)
    assert await book.write(ledgers(1_000, wants=600), (), epoch, fence) == 1, "and so have the quota's wants"


async def test_a_new_leader_starts_from_the_stored_demand() -> None:
    """Proves that a takeover forgets nobody's wants."""
    clock = FakeClock()
    store = MemoryStore(clock)
    epoch, fence = await lead(store)
    await QuotaBook(store, clock).write(ledgers(100, wants=70), (), epoch, fence)
    successor = QuotaBook(store, clock)
    await successor.load()
    assert successor.demand() == {"m": {"a": Demand(Rate(70), Rate(70))}}
