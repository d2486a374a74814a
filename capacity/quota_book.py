"""The allocator's writes: quotas/ and targets/, only what changed, by compare-and-swap under the leader's fence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from capacity.core.allocate import ModelLedger
from capacity.translate import tables_to, target_to
from common import keys
from common.clock import NS_PER_S, Clock
from common.store import Epoch, Expect, Store
from fairlead.capacity.v1 import capacity_pb2

Value = capacity_pb2.QuotaTable | capacity_pb2.CapacityTarget

# etcd refuses transactions of more than 128 operations (--max-txn-ops); one compare is the fence's.
_BATCH = 100
# Wants and use move all the time and nobody acts on them in quotas; the autoscaler does act on them in targets.
_QUOTA_TELEMETRY_NS = 10 * NS_PER_S
_TARGET_TELEMETRY_NS = 2 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Known:
    """A value as it was last read or written."""

    value: Value
    revision: int
    written_ns: int


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

    async def load(self) -> None:
        """Reads everything afresh; to be done after every election and every conflict."""
        now = self._clock.monotonic_ns()
        quotas = await self._store.list(keys.QUOTAS)
        targets = await self._store.list(keys.TARGETS)
        self._known = {
            entry.key: Known(capacity_pb2.QuotaTable.FromString(entry.value), entry.revision, now)
            for entry in quotas.entries
        }
        for entry in targets.entries:
            self._known[entry.key] = Known(capacity_pb2.CapacityTarget.FromString(entry.value), entry.revision, now)

    def tables(self) -> list[capacity_pb2.QuotaTable]:
        """The stored quota tables."""
        return [known.value for known in self._known.values() if isinstance(known.value, capacity_pb2.QuotaTable)]

    def granted(self) -> Mapping[str, int]:
        """Sum of the stored quotas by model, milli-MU per minute."""
        sums: dict[str, int] = {}
        for table in self.tables():
            granted = sum(quota.granted_milli_mu_per_minute for quota in table.quotas)
            sums[table.model_id] = sums.get(table.model_id, 0) + granted
        return sums

    async def write(self, ledgers: Iterable[ModelLedger], kept: Iterable[str], epoch: Epoch, fence: Expect) -> int:
        """Brings the store up to date.

        Args:
            ledgers: Of every model.
            kept: Models whose stored quotas stand as they are for now.
            epoch: This leader's.
            fence: Its condition.

        Returns:
            Number of keys written or deleted.

        Raises:
            ConflictAtStoreError: The fence or a compare failed; nothing of that batch was written.
            UnavailableError: The store does not answer; what was written is unknown until `load`.
        """
        wanted = self._wanted(ledgers, frozenset(kept), epoch)
        stale = [key for key in self._known if key not in wanted]
        now = self._clock.monotonic_ns()
        changed = [key for key, value in wanted.items() if self._is_due(key, value, now)]
        work = sorted([*changed, *stale])
        for start in range(0, len(work), _BATCH):
            await self._commit(work[start : start + _BATCH], wanted, fence)
        return len(work)

    def _wanted(self, ledgers: Iterable[ModelLedger], kept: frozenset[str], epoch: Epoch) -> dict[str, Value]:
        wanted: dict[str, Value] = {}
        for ledger in ledgers:
            wanted[keys.target(ledger.model_id)] = target_to(ledger, epoch)
            if ledger.model_id not in kept:
                wanted |= tables_to(ledger, epoch)
        for key, known in self._known.items():
            if isinstance(known.value, capacity_pb2.QuotaTable) and known.value.model_id in kept:
                wanted[key] = known.value
        return wanted

    def _is_due(self, key: str, value: Value, now_ns: int) -> bool:
        known = self._known.get(key)
        if known is None:
            return True
        if _decisions(known.value) != _decisions(value):
            return True
        interval_ns = _QUOTA_TELEMETRY_NS if isinstance(value, capacity_pb2.QuotaTable) else _TARGET_TELEMETRY_NS
        return now_ns - known.written_ns >= interval_ns and _telemetry(known.value) != _telemetry(value)

    async def _commit(self, batch: list[str], wanted: Mapping[str, Value], fence: Expect) -> None:
        expects = [fence]
        puts: dict[str, bytes] = {}
        deletes: list[str] = []
        for key in batch:
            known = self._known.get(key)
            expects.append(Expect(key, revision=known.revision) if known else Expect.absent(key))
            value = wanted.get(key)
            if value is None:
                deletes.append(key)
                continue
            if isinstance(value, capacity_pb2.QuotaTable):
                value.compute_time.FromNanoseconds(self._clock.wall_ns())
            puts[key] = value.SerializeToString()
        revision = await self._store.commit(expects, puts, deletes)
        if revision is None:
            raise ConflictAtStoreError
        now = self._clock.monotonic_ns()
        for key in batch:
            value = wanted.get(key)
            if value is None:
                del self._known[key]
            else:
                self._known[key] = Known(value, revision, now)


def _decisions(value: Value) -> object:
    if isinstance(value, capacity_pb2.CapacityTarget):
        return value.target_milli_mu_per_minute, value.floor_milli_mu_per_minute
    return [
        (
            quota.tenant_id,
            quota.reserved_milli_mu_per_minute,
            quota.guaranteed_milli_mu_per_minute,
            quota.granted_milli_mu_per_minute,
            quota.burst_ceiling_milli_mu_per_minute,
        )
        for quota in value.quotas
    ]


def _telemetry(value: Value) -> object:
    if isinstance(value, capacity_pb2.CapacityTarget):
        return value.used_milli_mu_per_minute
    return [(quota.wants_milli_mu_per_minute, quota.used_milli_mu_per_minute) for quota in value.quotas]
