"""The allocator's writes: quotas/ and targets/, only what changed, by compare-and-swap under the leader's fence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from capacity.core.live import ModelDemand
from capacity.core.values import Demand, ModelLedger
from capacity.tables import StoredTarget, Table, differ_notably, table_from, tables_of, target_from, target_of
from common import keys
from common.clock import NS_PER_S, Clock
from common.store import Epoch, Expect, Store
from fairlead.capacity.v1 import capacity_pb2

# etcd refuses transactions of more than 128 operations (--max-txn-ops); one compare is the fence's.
_BATCH_KEYS_MAX = 100
# etcd refuses requests of more than 1.5 MiB (--max-request-bytes).
_BATCH_BYTES_MAX = 1 << 20
# What a key costs in a transaction beyond itself and its value: its compare and the framing.
_KEY_OVERHEAD_BYTES = 64
# Wants and use move all the time and nobody acts on them in quotas; a new leader starts from them, roughly.
_TELEMETRY_NS = 10 * NS_PER_S
_TARGET_TELEMETRY_NS = 2 * NS_PER_S

Value = Table | StoredTarget


@dataclass(frozen=True, slots=True)
class Known:
    """A value as it was last read or written."""

    value: Value
    revision: int
    written_ns: int


@dataclass(frozen=True, slots=True)
class _Write:
    """One key to write, or to delete where there is no value."""

    key: str
    value: Value | None
    encoded: bytes

    @property
    def size_bytes(self) -> int:
        return 2 * len(self.key) + len(self.encoded) + _KEY_OVERHEAD_BYTES


class ConflictAtStoreError(Exception):
    """The store does not hold what this leader believes: it was deposed, or somebody else wrote."""


class QuotaBook:
    """What the store holds of quotas and targets, and how it is brought up to date.

    Args:
        store: Where they are.
        clock: Paces rewrites of telemetry; dates the tables.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[str, Known] = {}
        self._table_keys: dict[str, set[str]] = {}
        self._written: dict[str, ModelLedger] = {}
        self._telemetry_ns: dict[str, int] = {}

    async def load(self) -> None:
        """Reads everything afresh; to be done after every election and every conflict."""
        now = self._clock.monotonic_ns()
        quotas = await self._store.list(keys.QUOTAS)
        targets = await self._store.list(keys.TARGETS)
        self._known, self._table_keys, self._written, self._telemetry_ns = {}, {}, {}, {}
        for entry in quotas.entries:
            table = table_from(capacity_pb2.QuotaTable.FromString(entry.value))
            self._remember(entry.key, table, entry.revision, now)
        for entry in targets.entries:
            target = target_from(capacity_pb2.CapacityTarget.FromString(entry.value))
            self._remember(entry.key, target, entry.revision, now)

    def demand(self) -> ModelDemand:
        """The demand that the stored quotas were computed from: what a new leader starts with."""
        demand: dict[str, dict[str, Demand]] = {}
        for model_id, table in self._tables():
            names = (row[0] for row in table.decisions)
            demand.setdefault(model_id, {}).update(zip(names, map(Demand._make, table.telemetry), strict=True))
        return demand

    def granted(self) -> Mapping[str, int]:
        """Sum of the stored quotas by model, milli-MU per minute."""
        sums: dict[str, int] = {}
        for model_id, table in self._tables():
            sums[model_id] = sums.get(model_id, 0) + table.granted
        return sums

    def _tables(self) -> Iterator[tuple[str, Table]]:
        for model_id, table_keys in self._table_keys.items():
            for key in table_keys:
                value = self._known[key].value
                assert isinstance(value, Table)
                yield model_id, value

    async def write(self, ledgers: Iterable[ModelLedger], kept: Iterable[str], epoch: Epoch, fence: Expect) -> int:
        """Brings the store up to date. A ledger that is the very object of the last call costs nothing.

        Args:
            ledgers: Of every model.
            kept: Those of them whose stored quotas stand as they are for now.
            epoch: This leader's.
            fence: Its condition.

        Returns:
            Number of keys written or deleted.

        Raises:
            ConflictAtStoreError: The fence or a compare failed; nothing of that batch was written.
            UnavailableError: The store does not answer; what was written is unknown until `load`.
        """
        now, standing, live = self._clock.monotonic_ns(), frozenset(kept), set()
        work: list[list[_Write]] = []
        for ledger in ledgers:
            live.add(ledger.model_id)
            writes = self._target_writes(ledger, epoch, now)
            if ledger.model_id not in standing:
                writes += self._table_writes(ledger, epoch, now)
            work.append(writes)
        work += self._deletions(live)
        self._written = {model_id: ledger for model_id, ledger in self._written.items() if model_id in live}
        written = 0
        for batch in _batches(work):
            await self._commit(batch, fence)
            written += len(batch)
        return written

    def _target_writes(self, ledger: ModelLedger, epoch: Epoch, now: int) -> list[_Write]:
        key = keys.target(ledger.model_id)
        known, target = self._known.get(key), target_of(ledger)
        if known is not None:
            before, age_ns = known.value, now - known.written_ns
            assert isinstance(before, StoredTarget)
            needed = before.floor != target.floor or differ_notably(before.target, target.target)
            telling = age_ns >= _TARGET_TELEMETRY_NS and differ_notably(before.used, target.used)
            drifted = age_ns >= _TELEMETRY_NS and before.target != target.target
            if not (needed or telling or drifted):
                return []
        return [_Write(key, target, target.encode(ledger.model_id, epoch))]

    def _table_writes(self, ledger: ModelLedger, epoch: Epoch, now: int) -> list[_Write]:
        model_id, before = ledger.model_id, self._written.get(ledger.model_id)
        telemetry_due = now - self._telemetry_ns.setdefault(model_id, now) >= _TELEMETRY_NS
        quotas = ledger.columns
        same = before is not None and before.columns.sold is quotas.sold and before.columns.shares is quotas.shares
        if same and not telemetry_due:
            return []
        if telemetry_due:
            self._telemetry_ns[model_id] = now
        self._written[model_id] = ledger
        stored = self._table_keys.get(model_id, set())
        fresh, changed, wanted = [], [], set()
        for shard, table in tables_of(quotas, shards_stored=len(stored)):
            key = keys.quota(model_id, shard)
            wanted.add(key)
            known = self._known.get(key)
            if known is None:
                fresh.append(_Write(key, table, table.encode(model_id, shard, epoch, self._clock.wall_ns())))
            elif table.is_due(known.value, telemetry_due=telemetry_due):
                changed.append(_Write(key, table, table.encode(model_id, shard, epoch, self._clock.wall_ns())))
        # In this order no tenant is ever without a row while tables are split or joined.
        return [*fresh, *changed, *(_Write(key, None, b"") for key in sorted(stored - wanted))]

    def _deletions(self, live: set[str]) -> Iterator[list[_Write]]:
        for model_id in sorted(self._table_keys.keys() - live):
            yield [_Write(key, None, b"") for key in sorted(self._table_keys[model_id])]
        targets = {keys.target(model_id) for model_id in live}
        gone = [key for key, known in self._known.items() if isinstance(known.value, StoredTarget)]
        yield [_Write(key, None, b"") for key in gone if key not in targets]

    async def _commit(self, batch: Sequence[_Write], fence: Expect) -> None:
        expects = [fence]
        for write in batch:
            known = self._known.get(write.key)
            expects.append(Expect(write.key, revision=known.revision) if known else Expect.absent(write.key))
        puts = {write.key: write.encoded for write in batch if write.value is not None}
        deletes = [write.key for write in batch if write.value is None]
        revision = await self._store.commit(expects, puts, deletes)
        if revision is None:
            raise ConflictAtStoreError
        now = self._clock.monotonic_ns()
        for write in batch:
            if write.value is not None:
                self._remember(write.key, write.value, revision, now)
            elif isinstance(self._known.pop(write.key).value, Table):
                self._forget_table(write.key)

    def _remember(self, key: str, value: Value, revision: int, now: int) -> None:
        self._known[key] = Known(value, revision, now)
        if isinstance(value, Table):
            self._table_keys.setdefault(_model_of(key), set()).add(key)

    def _forget_table(self, key: str) -> None:
        model_id = _model_of(key)
        self._table_keys[model_id].discard(key)
        if not self._table_keys[model_id]:
            del self._table_keys[model_id]
            self._telemetry_ns.pop(model_id, None)


def _model_of(key: str) -> str:
    return key.removeprefix(keys.QUOTAS).rpartition("/")[0]


def _batches(work: Iterable[list[_Write]]) -> Iterator[list[_Write]]:
    """Transactions within etcd's limits; the writes of one model share one where they fit."""
    batch: list[_Write] = []
    size_bytes = 0
    for group in work:
        together = sum(write.size_bytes for write in group)
        if batch and (len(batch) + len(group) > _BATCH_KEYS_MAX or size_bytes + together > _BATCH_BYTES_MAX):
            yield batch
            batch, size_bytes = [], 0
        for write in group:
            if batch and (len(batch) == _BATCH_KEYS_MAX or size_bytes + write.size_bytes > _BATCH_BYTES_MAX):
                yield batch
                batch, size_bytes = [], 0
            batch.append(write)
            size_bytes += write.size_bytes
    if batch:
        yield batch
