"""The Store contract, run against the memory store and a real etcd alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from common.etcd_store import EtcdStore
from common.memory_store import MemoryStore
from common.store import Change, Expect, Store
from fairlead.errors import UnavailableError
from tests.support.etcd import EtcdServer


@pytest.fixture(scope="module")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    server = EtcdServer(Path(tmp_path_factory.mktemp("etcd")))
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    etcd_store = EtcdStore(request.getfixturevalue("shared_etcd").endpoint)
    for entry in (await etcd_store.list("/t/")).entries:
        await etcd_store.delete(entry.key)
    yield etcd_store
    await etcd_store.close()


async def test_values_come_back_with_revisions(store: Store) -> None:
    """A written value is read back, its revision grows with every write, its create revision does not."""
    first = await store.put("/t/a", b"1")
    second = await store.put("/t/a", b"2")
    entry = await store.get("/t/a")
    assert entry is not None
    assert (entry.value, entry.create_revision, entry.revision) == (b"2", first, second)
    assert await store.get("/t/none") is None


async def test_keys_of_a_range_are_read_in_order_up_to_a_limit(store: Store) -> None:
    """Keys come without values, from the start up to but without the end, sorted, never more than the limit."""
    for key in ("/t/b", "/t/a", "/t/c/1", "/t/c/2"):
        await store.put(key, b"x")
    assert await store.list_keys("/t/a", "/t/c/2", 10) == ("/t/a", "/t/b", "/t/c/1")
    assert await store.list_keys("/t/", "/t0", 2) == ("/t/a", "/t/b")
    assert await store.list_keys("/t/d", "/t0", 2) == ()


async def test_listing_is_sorted_and_bounded_by_the_prefix(store: Store) -> None:
    """A listing holds exactly the keys below the prefix, sorted."""
    for key in ("/t/b", "/t/a", "/t0", "/s/z"):
        await store.put(key, b"x")
    listing = await store.list("/t/")
    assert [entry.key for entry in listing.entries] == ["/t/a", "/t/b"]
    await store.delete("/t0")
    await store.delete("/s/z")


async def test_commit_is_all_or_nothing(store: Store) -> None:
    """A commit whose expectation fails writes nothing; one whose expectations hold writes everything."""
    await store.put("/t/a", b"1")
    entry = await store.get("/t/a")
    assert entry is not None
    assert await store.commit([Expect.absent("/t/a")], {"/t/b": b"x"}) is None
    assert await store.get("/t/b") is None
    assert await store.commit([Expect.unchanged(entry)], {"/t/a": b"2", "/t/b": b"x"}) is not None
    assert await store.commit([Expect.unchanged(entry)], {"/t/a": b"3"}) is None
    assert await store.commit([Expect("/t/a", create_revision=entry.create_revision)], {}, ["/t/a"]) is not None
    assert await store.get("/t/a") is None


async def test_watch_resumes_after_a_revision(store: Store) -> None:
    """A watch delivers exactly the changes after its start, in order, deletions included."""
    start = await store.put("/t/a", b"1")
    await store.put("/t/a", b"2")
    await store.delete("/t/a")
    await store.put("/other", b"no")
    await store.put("/t/b", b"3")
    seen: list[Change] = []
    watch = store.watch("/t/", after_revision=start)
    async with asyncio.timeout(5):
        async for changes in watch:
            seen.extend(changes)
            if len(seen) >= 3:
                break
    assert [(change.key, change.value) for change in seen] == [("/t/a", b"2"), ("/t/a", None), ("/t/b", b"3")]
    await store.delete("/other")


async def test_a_lease_carries_its_keys(store: Store) -> None:
    """Keys on a lease vanish with it, and an ended lease cannot be renewed."""
    lease = await store.grant_lease(5)
    await store.put("/t/l", b"x", lease_id=lease)
    assert await store.keep_lease_alive(lease)
    await store.revoke_lease(lease)
    assert await store.get("/t/l") is None
    assert not await store.keep_lease_alive(lease)


async def test_a_dead_etcd_is_an_unavailable_error() -> None:
    """A store that nobody answers for raises UnavailableError that says where it looked."""
    store = EtcdStore("127.0.0.1:1", call_timeout_s=0.5)
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        await store.get("/t/a")
    await store.close()
