"""The usage book, its journal and its way into the store."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import keys
from common.clock import FakeClock
from common.memory_store import MemoryStore
from data_plane.router import left_journals as journals
from data_plane.router import usage_journal
from data_plane.router.core.usage import ROWS_MAX, Counts, UsageBook
from data_plane.router.exchange import Call
from data_plane.router.left_journals import left_journals
from data_plane.router.usage_desk import UsageDesk
from data_plane.router.usage_journal import UsageJournal
from data_plane.router.usage_publisher import IDLE_INTERVAL_S, UsagePublisher, hour_name
from fairlead.admin.v1 import usage_pb2
from fairlead.errors import FairleadError, Reason, UnavailableError
from tests.support.router_lab import KEY, MODEL, TENANT, RouterLab, Script, prompt_request

HOUR_S = 3600
LOST = UnavailableError("gone", reason=Reason.REPLICA_LOST)
CHECKOUT = Path(__file__).resolve().parents[3]

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


@settings(deadline=None)
@given(
    ends=st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from([None, "before", 0, 1, 2]), st.integers(0, 2 * HOUR_S)),
        max_size=15,
    )
)
def test_the_book_holds_what_the_accounts_hold(ends: list[tuple[int, str | int | None, int]]) -> None:
    """Over random requests that end in every way, the book's charges are the accounts', per tenant and model."""
    clock = FakeClock()
    lab = RouterLab(["r1", "r2"], clock=clock, rate=10**9, burst=10**9)

    async def run() -> None:
        for pieces, failing, pause_s in ends:
            script = Script(pieces=("x",) * pieces)
            if failing == "before":
                script = Script(fail_before=LOST)
            elif isinstance(failing, int):
                script = Script(pieces=("x",) * pieces, fail_after=failing, failure=LOST)
            lab.upstream.scripts = {"r1": script, "r2": script}
            clock.advance(pause_s)
            lab.add_replica("r1")
            try:
                async with aclosing(lab.router.flow.open(Call(prompt_request(), f"Bearer {KEY}")).events()) as events:
                    async for _ in events:
                        pass
            except FairleadError:
                pass

    asyncio.run(run())
    sums = Counter[tuple[str, str]]()
    for _, row in lab.router.usage.book.rows():
        sums[row.tenant_id, row.model_id] += row.counts.prefill_milli_mu + row.counts.decode_milli_mu
    assert +sums == +lab.router.accounts.settled_milli_mu
    assert sums[TENANT, MODEL] == lab.router.holds.settled_milli_mu


def test_an_hour_that_was_forgotten_never_starts_anew() -> None:
    """After the clock went back behind a forgotten hour, work counts in the first that is open."""
    book, hour_ns = UsageBook(), HOUR_S * 10**9
    first = book.hour_of(100 * hour_ns)
    book.add(first, ("t", "m"), Counts(1, 2, 3, 4, 5, 6), 0)
    book.forget_over(103 * hour_ns)
    assert len(list(book.rows())) == 1, "not stored yet"
    book.stored(book.table(book.changed()[0]), 0)
    book.forget_over(101 * hour_ns)
    assert len(list(book.rows())) == 1, "over for less than an hour"
    book.forget_over(102 * hour_ns)
    assert not list(book.rows())
    assert book.hour_of(100 * hour_ns) == 101
    assert book.hour_of(105 * hour_ns) == 105


def test_what_was_added_while_a_table_was_being_stored_is_still_to_be_stored() -> None:
    """A table that changed since it was copied stays changed, and its lag counts from the copy."""
    book = UsageBook()
    book.add(1, ("t", "m"), Counts(1, 0, 0, 0, 0, 0), 10)
    assert book.lag_ns(25) == 15
    table = book.table(book.changed()[0])
    book.add(1, ("t", "m"), Counts(1, 0, 0, 0, 0, 0), 40)
    book.stored(table, 30)
    assert len(book.changed()) == 1
    assert book.lag_ns(50) == 20
    book.stored(book.table(book.changed()[0]), 60)
    assert (book.changed(), book.lag_ns(99)) == ([], 0)


@settings(deadline=None, max_examples=25)
@given(history=st.lists(one, min_size=1, max_size=6), garbage=st.binary(max_size=12))
def test_a_journal_cut_anywhere_holds_what_came_before(
    history: list[tuple[str, str, tuple[int, int, int], tuple[int, int]]], garbage: bytes
) -> None:
    """Truncated at every byte, with or without garbage behind, exactly the whole records before the cut count."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = Process(folder, MemoryStore(), FakeClock(), "p", segment_bytes=1 << 12)
        marks = [(process.journal._at, Counter[tuple[str, str, str, str]]())]
        for each in history:
            process.settle([each])
            marks.append((process.journal._at, counted(row for _, row in process.desk.book.rows())))
        process.die()
        (path,) = process.journal.folder.iterdir()
        data = path.read_bytes()
        assert len(data) == 1 << 12
        for cut in range(marks[0][0], marks[-1][0] + 1):
            tail = garbage if cut < marks[-1][0] else b""
            path.write_bytes(data[:cut] + tail)
            # Garbage may happen to be what was cut off.
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(data[cut:], tail, strict=False))
            kept = cut + len(list(same))
            whole = [sums for end, sums in marks if end <= kept][-1]
            (left,) = left_journals(folder)
            found = left.read()
            left.release()
            assert found.header is not None
            assert not found.damaged
            assert counted(row for _, row in found.book.rows()) == whole


@settings(deadline=None, max_examples=40)
@given(data=st.data())
async def test_usage_is_exact_over_deaths_and_absences_of_the_store(data: st.DataObject) -> None:
    """Whatever is settled, published, summed up, killed and started again: the store ends up with exactly all of it."""
    clock, store, total, number = FakeClock(), MemoryStore(), Sums(), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = Process(folder, store, clock, "p0", segment_bytes=700)
        settled: Sums = Counter()
        seen: Sums = Counter()
        for _ in range(data.draw(st.integers(1, 12))):
            match data.draw(st.sampled_from(["settle", "publish", "tend", "kill", "down", "up", "wait"])):
                case "settle":
                    history = data.draw(histories)
                    hour = process.desk.book.hour_of(clock.wall_ns())
                    process.settle(history)
                    for tenant, model, usage, cost in history:
                        for field, amount in zip(FIELDS, (1, *usage, *cost), strict=True):
                            settled[hour_name(hour), tenant, model, field] += amount
                case "publish":
                    try:
                        await process.publisher.adopt()
                        await process.publisher.publish()
                    except FairleadError:
                        assert store.down
                case "tend":
                    await process.journal.tend(process.desk.book)
                case "kill":
                    process.die()
                    number += 1
                    process = Process(folder, store, clock, f"p{number}", segment_bytes=700)
                case "down" | "up" as state:
                    await store.set_down(state == "down")
                case _:
                    clock.advance(data.draw(st.integers(0, 3 * HOUR_S)))
        await store.set_down(False)
        process.die()
        last = Process(folder, store, clock, "last")
        await last.publisher.adopt()
        await last.publisher.finish(quiet=True)
        total, seen = +settled, await stored(store)
        assert seen == total
        assert not list((folder / journals.FOLDER).iterdir())


async def test_a_write_whose_outcome_is_unknown_is_neither_lost_nor_doubled() -> None:
    """The store took it and the answer was lost: it is read, and the next write goes on from there."""

    class Deaf(MemoryStore):
        deaf = False

        async def commit(self, *args: object, **kwargs: object) -> int | None:
            revision = await super().commit(*args, **kwargs)  # type: ignore[arg-type]  # passed through
            if self.deaf:
                raise UnavailableError("the answer was lost", reason=Reason.STORE_UNAVAILABLE)
            return revision

    clock, store = FakeClock(), Deaf()
    desk = UsageDesk(clock, None)
    publisher = UsagePublisher(desk, store, clock, router_id="r", incarnation_id="i", state_dir=None)
    for deaf in (False, True, True, False):
        desk.settled(("t", "m"), Counts(1, 1, 2, 3, 4, 5), clock.monotonic_ns())
        store.deaf = deaf
        try:
            await publisher.publish()
        except UnavailableError:
            assert deaf
            clock.advance(7)
            assert publisher.lag_s() >= 7
    assert await stored(store) == counted(row for _, row in desk.book.rows())
    assert publisher.lag_s() == 0


async def told(store: MemoryStore) -> dict[str, tuple[int, bool]]:
    """Up to when each process says that its usage is stored, seconds, and whether that is all of it."""
    entries = (await store.list(keys.USAGE_STATES)).entries
    states = [usage_pb2.UsageState.FromString(entry.value) for entry in entries]
    return {state.incarnation_id: (state.stored_until_time.seconds, state.final) for state in states}


async def test_processes_tell_up_to_when_their_usage_is_stored() -> None:
    """Never later than what is stored; every minute while idle; for good at the end, or by whoever stores the rest."""
    clock, store = FakeClock(wall_ns=10**12), MemoryStore()
    with tempfile.TemporaryDirectory() as name:
        first = Process(Path(name), store, clock, "first")
        await first.publisher.publish()
        assert await told(store) == {"first": (1_000, False)}
        clock.advance(IDLE_INTERVAL_S - 1)
        await first.publisher.publish()
        assert await told(store) == {"first": (1_000, False)}
        clock.advance(1)
        await first.publisher.publish()
        assert await told(store) == {"first": (1_060, False)}
        first.settle([("t", "m", (1, 2, 3), (4, 5))])
        clock.advance(7)
        await store.set_down(True)
        with pytest.raises(UnavailableError):
            await first.publisher.publish()
        await store.set_down(False)
        assert await told(store) == {"first": (1_060, False)}
        await first.publisher.publish()
        assert await told(store) == {"first": (1_067, False)}
        first.die()
        clock.advance(100)
        second = Process(Path(name), store, clock, "second")
        await second.publisher.adopt()
        assert await told(store) == {"first": (1_167, True)}
        await second.publisher.finish(quiet=True)
        assert await told(store) == {"first": (1_167, True), "second": (1_167, True)}


async def test_a_journal_of_a_living_process_is_left_alone() -> None:
    """During a rolling restart two processes share the folder; only a dead one's journal is taken over."""
    clock, store = FakeClock(), MemoryStore()
    with tempfile.TemporaryDirectory() as name:
        old, new = (Process(Path(name), store, clock, each) for each in ("old", "new"))
        old.settle([("t", "m", (1, 2, 3), (4, 5))])
        await new.publisher.adopt()
        assert not await stored(store)
        expected = old.die()
        await new.publisher.adopt()
        assert await stored(store) == expected
        assert not old.journal.folder.exists()


async def test_a_folder_that_cannot_be_written_fails_no_settlement() -> None:
    """Settlements count on, each loss is counted, and once the folder is back the journal holds everything again."""
    clock, store = FakeClock(), MemoryStore()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state"
        folder.write_text("in the way")
        process = Process(folder, store, clock, "p")
        process.settle([("t", "m", (1, 2, 3), (4, 5))] * 3)
        assert (process.journal.lost, process.journal.complete) == (3, False)
        await process.journal.tend(process.desk.book)
        folder.unlink()
        await process.journal.tend(process.desk.book)
        assert process.journal.complete
        process.settle([("t", "m", (1, 2, 3), (4, 5))])
        expected = process.die()
        assert process.journal.lost == 3
        next_ = Process(folder, store, clock, "next")
        await next_.publisher.adopt()
        assert await stored(store) == expected


async def test_a_full_disk_fails_no_settlement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no file can be allocated the journal goes silent instead of the process."""

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    clock, store = FakeClock(), MemoryStore()
    with tempfile.TemporaryDirectory() as name:
        process = Process(Path(name), store, clock, "p", segment_bytes=700)
        monkeypatch.setattr(os, "posix_fallocate", full)
        process.settle([("t", "m", (1, 2, 3), (4, 5))] * 30)
        assert process.journal.lost > 0
        await process.journal.tend(process.desk.book)
        monkeypatch.undo()
        await process.journal.tend(process.desk.book)
        assert process.journal.complete
        expected = process.die()
        next_ = Process(Path(name), store, clock, "next")
        await next_.publisher.adopt()
        assert await stored(store) == expected


async def test_many_files_become_one_base() -> None:
    """The journal stays small however long the store is away, and still holds everything."""
    clock, store = FakeClock(), MemoryStore()
    with tempfile.TemporaryDirectory() as name:
        process = Process(Path(name), store, clock, "p", segment_bytes=4096)
        for _ in range(30):
            process.settle([("t", "m", (1, 2, 3), (4, 5)), ("u", "m", (1, 2, 3), (4, 5))] * 20)
            await process.journal.tend(process.desk.book)
        assert len(list(process.journal.folder.iterdir())) <= usage_journal.SEGMENTS_MAX + 3
        expected = process.die()
        (left,) = left_journals(Path(name))
        assert counted(row for _, row in left.read().book.rows()) == expected
        left.release()


async def test_tables_are_bounded_and_only_changed_ones_are_written() -> None:
    """However many tenants and models, no value is large; one more settlement writes one of the tables again."""
    clock, store = FakeClock(), MemoryStore()
    desk = UsageDesk(clock, None)
    publisher = UsagePublisher(desk, store, clock, router_id="r" * 63, incarnation_id="i", state_dir=None)
    names = [(f"{tenant:063d}", f"{model:063d}") for tenant in range(500) for model in range(4)]
    for bucket in names:
        desk.settled(bucket, Counts(*[2**60] * 6), clock.monotonic_ns())
    await publisher.publish()
    tables = (await store.list(keys.USAGE)).entries
    assert len(tables) == len(names) / ROWS_MAX
    assert max(len(entry.value) for entry in tables) < 1 << 17
    desk.settled(names[-1], Counts(1), clock.monotonic_ns())
    await publisher.publish()
    after = (await store.list(keys.USAGE)).entries
    assert sum(old.revision != new.revision for old, new in zip(tables, after, strict=True)) == 1
    assert await stored(store) == counted(row for _, row in desk.book.rows())


async def test_a_successor_counts_rows_in_the_tables_of_the_dead() -> None:
    """What was stored before the death, in whatever order it came, is not stored in a second table by the journal."""
    clock, store = FakeClock(), MemoryStore()
    with tempfile.TemporaryDirectory() as name:
        process = Process(Path(name), store, clock, "p", segment_bytes=700)
        process.desk.book = UsageBook(rows_max=3)
        for round_ in range(3):
            process.settle([(f"t{(7 * n) % 11}", "m", (1, 2, 3), (4, 5)) for n in range(4 + 3 * round_)])
            await process.publisher.publish()
            await process.journal.tend(process.desk.book)
        process.settle([(f"t{n}", "m2", (1, 2, 3), (4, 5)) for n in range(5)])
        await process.journal._sum_up(process.desk.book)
        expected = process.die()
        await Process(Path(name), store, clock, "next").publisher.adopt()
        assert await stored(store) == expected
        assert len((await store.list(keys.USAGE)).entries) > 3


async def test_stray_entries_hide_no_journal() -> None:
    """Files and unreadable things beside the journals are passed over; every journal is still found."""
    clock, store = FakeClock(), MemoryStore()
    with tempfile.TemporaryDirectory() as name:
        process = Process(Path(name), store, clock, "p")
        process.settle([("t", "m", (1, 2, 3), (4, 5))])
        expected = process.die()
        usage = Path(name) / journals.FOLDER
        (usage / ".keep").touch()
        (usage / "a-link").symlink_to("nowhere")
        (usage / "a-loop").symlink_to("a-loop")
        (usage / "an-empty-folder").mkdir()
        await Process(Path(name), store, clock, "q").publisher.adopt()
        assert await stored(store) == expected
        assert (usage / ".keep").exists()


@pytest.mark.parametrize("record", [0, 1, 3])
async def test_a_damaged_journal_counts_as_far_as_it_is_readable_and_is_kept(record: int) -> None:
    """One flipped bit costs one record; the file stays, renamed, is counted as a failure, and is not read again."""
    clock, store = FakeClock(), MemoryStore()
    with tempfile.TemporaryDirectory() as name:
        process = Process(Path(name), store, clock, "p", segment_bytes=4096)
        starts = [0]
        for n in range(5):
            starts.append(process.journal._at)
            process.settle([(f"t{n}", "m", (1, 2, 3), (4, 5))])
        process.die()
        (path,) = process.journal.folder.iterdir()
        data = bytearray(path.read_bytes())
        data[starts[record] + 10] ^= 1
        path.write_bytes(data)
        failures: list[int] = []
        for _ in range(2):
            next_ = Process(Path(name), store, clock, "q")
            await next_.publisher.adopt()
            assert {tenant for _, tenant, _, _ in await stored(store)} == {f"t{n}" for n in range(5) if n != record - 1}
            assert [each.name for each in path.parent.iterdir()] == [path.name + ".damaged"]
            assert not await told(store), "nobody says that all of it is stored"
            failures.append(next_.journal.lost)
            next_.die()
            journals.remove(next_.journal.folder)
        assert failures == [1, 0]


async def test_the_journal_stays_while_anything_may_still_be_settled() -> None:
    """It goes only when all is stored and no request is left; a late settlement is found by the next process."""
    clock, store = FakeClock(), MemoryStore()

    class Late(MemoryStore):
        process: Process | None = None

        async def put(self, *args: object, **kwargs: object) -> object:
            if self.process is not None:
                process, self.process = self.process, None
                process.settle([("late", "m", (1, 2, 3), (4, 5))])
            return await super().put(*args, **kwargs)  # type: ignore[arg-type]  # passed through

    for quiet in (False, True):
        store = Late()
        with tempfile.TemporaryDirectory() as name:
            process = Process(Path(name), store, clock, "p")
            process.settle([("t", "m", (1, 2, 3), (4, 5))])
            store.process = process if quiet else None
            await process.publisher.finish(quiet=quiet)
            assert process.journal.folder.exists()
            process.settle([("later", "m", (1, 2, 3), (4, 5))])
            expected = process.die()
            await Process(Path(name), store, clock, "q").publisher.adopt()
            assert await stored(store) == expected


_CHILD = """
import sys
from pathlib import Path
from common.clock import FakeClock
from data_plane.router.core.usage import Counts
from data_plane.router.usage_desk import UsageDesk
from data_plane.router.usage_journal import UsageJournal
journal = UsageJournal(Path(sys.argv[1]), router_id="r", incarnation_id=sys.argv[2], segment_bytes=5000)
desk = UsageDesk(FakeClock(), journal)
number = 0
while True:
    number += 1
    desk.settled((f"t{number % 7}", "m"), Counts(1, number, 0, 1, number, 1), 0)
    if number % 50 == 0:
        print(number, flush=True)
"""


def test_a_killed_process_loses_no_settlement() -> None:
    """SIGKILL at random moments: the journal holds the first n settlements whole, n at least what was last told."""
    with tempfile.TemporaryDirectory() as name:
        for round_ in range(4):
            child = subprocess.Popen(
                [sys.executable, "-c", _CHILD, name, f"p{round_}"], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
            )
            assert child.stdout is not None
            told = 0
            for _ in range(5 + 7 * round_):
                told = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            told = max([told, *map(int, child.stdout.read().split("\n")[:-1])])
            child.wait()
            child.stdout.close()
            (left,) = left_journals(Path(name))
            read = left.read()
            rows = [row for _, row in read.book.rows()]
            journals.remove(left.folder)
            left.release()
            assert read.header is not None
            found = sum(row.counts.requests for row in rows)
            assert told <= found <= told + 51
            assert sum(row.counts.input_tokens for row in rows) == found * (found + 1) // 2
