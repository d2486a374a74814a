"""The usage journal: what a process that ended has left is read whole, whatever happened to it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import keys
from common.clock import FakeClock
from common.memory_store import MemoryStore
from data_plane.router import left_journals as journals
from data_plane.router import usage_journal
from data_plane.router.core.usage import UsageBook
from data_plane.router.left_journals import left_journals
from tests.unit.router.usage_lab import Process, counted, one, stored, told

CHECKOUT = Path(__file__).resolve().parents[3]


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
