"""The usage book and its way into the store."""

from __future__ import annotations

import asyncio
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
from data_plane.router.core.usage import ROWS_MAX, Counts, UsageBook
from data_plane.router.exchange import Call
from data_plane.router.usage_desk import UsageDesk
from data_plane.router.usage_publisher import IDLE_INTERVAL_S, UsagePublisher, hour_name
from fairlead.errors import FairleadError, Reason, UnavailableError
from tests.support.router_lab import KEY, MODEL, TENANT, RouterLab, Script, prompt_request
from tests.unit.router.usage_lab import FIELDS, HOUR_S, Process, Sums, counted, histories, stored, told

LOST = UnavailableError("gone", reason=Reason.REPLICA_LOST)


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
