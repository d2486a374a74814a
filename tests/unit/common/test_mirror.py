"""Mirrors: a copy that follows the store and outlives it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from common.clock import FakeClock
from common.memory_store import MemoryStore
from common.mirror import ADOPT_OLDER_AFTER_S, Mirror
from fairlead.errors import UnavailableError
from tests.support.waiting import eventually


def text(raw: bytes) -> str:
    return raw.decode()


async def test_it_follows_writes_deletions_and_compaction() -> None:
    """A mirror holds what the store holds, also when history was compacted while it was away."""
    store = MemoryStore()
    await store.put("/p/a", b"1")
    mirror = Mirror(store, "/p/", text, relist_interval_s=60)
    task = asyncio.create_task(mirror.run())
    await mirror.wait_synced()
    assert dict(mirror.items) == {"a": "1"}
    await store.put("/p/b", b"2")
    await store.delete("/p/a")
    await eventually(lambda: dict(mirror.items) == {"b": "2"})
    await store.set_down(True)
    await asyncio.sleep(0)
    await store.set_down(False)
    await store.put("/p/c", b"3")
    await store.compact()
    await eventually(lambda: dict(mirror.items) == {"b": "2", "c": "3"})
    task.cancel()


async def test_it_keeps_its_copy_while_the_store_is_gone() -> None:
    """An outage neither empties nor ends a mirror."""
    store = MemoryStore()
    await store.put("/p/a", b"1")
    mirror = Mirror(store, "/p/", text)
    task = asyncio.create_task(mirror.run())
    await mirror.wait_synced()
    await store.set_down(True)
    await asyncio.sleep(0.05)
    assert dict(mirror.items) == {"a": "1"}
    assert not task.done()
    task.cancel()


async def test_a_new_process_starts_from_the_snapshot(tmp_path: Path) -> None:
    """With a snapshot a mirror is usable before the store answers; a damaged snapshot is ignored, not believed."""
    path = tmp_path / "copy"
    store = MemoryStore()
    await store.put("/p/a", b"1")
    mirror = Mirror(store, "/p/", text, snapshot_path=path)
    task = asyncio.create_task(mirror.run())
    await mirror.wait_synced()
    await eventually(path.exists)
    task.cancel()
    again = Mirror(MemoryStore(), "/p/", text, snapshot_path=path)
    assert again.usable
    assert not again.synced
    assert dict(again.items) == {"a": "1"}
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert not Mirror(MemoryStore(), "/p/", text, snapshot_path=path).usable


async def test_a_value_that_cannot_be_decoded_keeps_the_old_one() -> None:
    """One bad write is logged and leaves what was there."""
    store = MemoryStore()
    await store.put("/p/a", b"1")
    mirror = Mirror(store, "/p/", text)
    task = asyncio.create_task(mirror.run())
    await mirror.wait_synced()
    await store.put("/p/a", b"\xff")
    await store.put("/p/b", b"2")
    await eventually(lambda: "b" in mirror.items)
    assert mirror.items["a"] == "1"
    task.cancel()


async def test_an_older_store_is_believed_only_when_it_insists(tmp_path: Path) -> None:
    """A store that went back is refused at first and adopted after ADOPT_OLDER_AFTER_S."""
    path, clock = tmp_path / "copy", FakeClock()
    full = MemoryStore()
    for _ in range(5):
        await full.put("/p/a", b"1")
    mirror = Mirror(full, "/p/", text, snapshot_path=path)
    task = asyncio.create_task(mirror.run())
    await eventually(path.exists)
    task.cancel()
    late = Mirror(MemoryStore(), "/p/", text, snapshot_path=path, clock=clock)
    with pytest.raises(UnavailableError):
        await late._list()
    assert dict(late.items) == {"a": "1"}
    clock.advance(ADOPT_OLDER_AFTER_S + 1)
    await late._list()
    assert dict(late.items) == {}
