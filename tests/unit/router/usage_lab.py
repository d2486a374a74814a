"""What tests of usage share: a router process's part of it, and sums of what was counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import strategies as st

from common import keys
from common.clock import FakeClock
from common.memory_store import MemoryStore
from data_plane.router.core.usage import Counts
from data_plane.router.usage_desk import UsageDesk
from data_plane.router.usage_journal import UsageJournal
from data_plane.router.usage_publisher import UsagePublisher, hour_name
from fairlead.admin.v1 import usage_pb2

HOUR_S = 3600

Sums = Counter[tuple[str, str, str, str]]

FIELDS = ("requests", "input_tokens", "cached_input_tokens", "output_tokens", "prefill_milli_mu", "decode_milli_mu")

one = st.tuples(
    st.sampled_from(["a", "b", "tenant-ü"]),
    st.sampled_from(["m", "model-2"]),
    st.tuples(*[st.integers(0, 2**40)] * 3),
    st.tuples(*[st.integers(0, 2**40)] * 2),
)
histories = st.lists(one, max_size=25)


def counted(rows: object, hour: str = "") -> Sums:
    sums: Sums = Counter()
    for row in rows:  # type: ignore[attr-defined]  # rows of the core or of the wire
        counts = getattr(row, "counts", row)
        for name in FIELDS:
            sums[hour or hour_name(row.hour), row.tenant_id, row.model_id, name] += getattr(counts, name)
    return +sums


async def stored(store: MemoryStore) -> Sums:
    sums: Sums = Counter()
    for entry in (await store.list(keys.USAGE)).entries:
        hour, _, _, shard = entry.key.removeprefix(keys.USAGE).split("/")
        table = usage_pb2.UsageTable.FromString(entry.value)
        assert table.shard == int(shard)
        assert len(entry.value) <= 100_000
        assert [(row.tenant_id, row.model_id) for row in table.rows] == sorted(
            (row.tenant_id, row.model_id) for row in table.rows
        )
        sums += counted(table.rows, hour)
    return +sums


async def told(store: MemoryStore) -> dict[str, tuple[int, bool]]:
    """Up to when each process says that its usage is stored, seconds, and whether that is all of it."""
    entries = (await store.list(keys.USAGE_STATES)).entries
    states = [usage_pb2.UsageState.FromString(entry.value) for entry in entries]
    return {state.incarnation_id: (state.stored_until_time.seconds, state.final) for state in states}


class Process:
    """What a router process has of it all, over a store that outlives it."""

    def __init__(self, folder: Path, store: MemoryStore, clock: FakeClock, name: str, **options: int) -> None:
        self.clock = clock
        self.journal = UsageJournal(folder, router_id="router-1", incarnation_id=name, **options)
        self.desk = UsageDesk(clock, self.journal)
        self.publisher = UsagePublisher(
            self.desk, store, clock, router_id="router-1", incarnation_id=name, state_dir=folder
        )

    def settle(self, history: list[tuple[str, str, tuple[int, int, int], tuple[int, int]]]) -> None:
        for tenant_id, model_id, usage, (prefill, decode) in history:
            self.desk.settled((tenant_id, model_id), Counts(1, *usage, prefill, decode), self.clock.monotonic_ns())

    def die(self) -> Sums:
        """Ends as if killed: nothing is tidied up, the kernel lets go of the lock."""
        self.journal.close()
        return counted(row for _, row in self.desk.book.rows())
