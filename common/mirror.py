"""A watched copy of everything below one prefix of the store, that outlives the store.

`run` lists, then watches from the listing's revision; it resumes by revision, lists again after a compaction, after
every failure and every 30 s (a watch can lose events and never say so), and keeps serving its last copy while the store
is gone. With a snapshot path the copy is also kept on disk, checksummed and replaced atomically, so that a process can
start without the store. A store that offers an older revision than the copy's is not believed at once: see `_list`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Generic, TypeVar

import msgspec

from common.clock import NS_PER_S, Clock, SystemClock
from common.logs import get_logger
from common.store import CompactedError, Store
from fairlead.errors import UnavailableError

T = TypeVar("T")
Callback = Callable[[str, T | None], None]

RELIST_INTERVAL_S = 30.0
RETRY_DELAY_S_MAX = 5.0
ADOPT_OLDER_AFTER_S = 20.0
_DIGEST_BYTES = 32

log = get_logger(__name__)


class _Snapshot(msgspec.Struct):
    prefix: str
    revision: int
    values: dict[str, bytes]


class Mirror(Generic[T]):
    """A live dictionary of decoded values below a prefix.

    Args:
        store: Where from.
        prefix: Ends with '/'.
        decode: Bytes to value. A value it cannot decode is logged and left as it was: one bad write must not empty a
            router.
        snapshot_path: Keeps the copy on disk; None keeps it in memory only.
        relist_interval_s: Longest time a lost watch event can go unnoticed.
        clock: Times how long a store insists on being older.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        decode: Callable[[bytes], T],
        *,
        snapshot_path: Path | None = None,
        relist_interval_s: float = RELIST_INTERVAL_S,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._decode = decode
        self._snapshot_path = snapshot_path
        self._relist_interval_s = relist_interval_s
        self._clock = clock or SystemClock()
        self._raw: dict[str, bytes] = {}
        self._items: dict[str, T] = {}
        self._revision = 0
        self._synced = False
        self._older_since_ns = 0
        self._callbacks: list[Callback[T]] = []
        self._changes = asyncio.Condition()
        self._from_snapshot = self._load_snapshot()

    @property
    def items(self) -> Mapping[str, T]:
        """Decoded values by key without the prefix. A live read-only view: copy it before awaiting."""
        return MappingProxyType(self._items)

    @property
    def revision(self) -> int:
        """Store revision the copy reflects; 0 before the first listing."""
        return self._revision

    @property
    def synced(self) -> bool:
        """Whether the store itself has been listed at least once by this process."""
        return self._synced

    @property
    def usable(self) -> bool:
        """Whether there is a copy at all: from the store or from a snapshot."""
        return self._synced or self._from_snapshot

    def on_change(self, callback: Callback[T]) -> None:
        """Calls `callback(key, value)` after every change, value None for a deletion; it must not block or raise.

        It is called at once for what is already there.
        """
        self._callbacks.append(callback)
        for key, value in list(self._items.items()):
            callback(key, value)

    async def wait_synced(self) -> None:
        """Returns once the store has been listed."""
        async with self._changes:
            await self._changes.wait_for(lambda: self._synced)

    async def run(self) -> None:
        """Keeps the copy current until it is cancelled."""
        delay_s = 0.1
        while True:
            try:
                await self._list()
                delay_s = 0.1
                # A quiet prefix is healthy: only the periodic listing ends a watch that works.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._relist_interval_s):
                        await self._follow()
                continue
            except CompactedError:
                continue
            except UnavailableError as error:
                log.warning("store unavailable", prefix=self._prefix, error=error.message, retry_s=round(delay_s, 1))
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, RETRY_DELAY_S_MAX)

    async def _list(self) -> None:
        listing = await self._store.list(self._prefix)
        self._refuse_older(listing.revision)
        fresh = {entry.key.removeprefix(self._prefix): entry.value for entry in listing.entries}
        dirty = False
        for key in [key for key in self._raw if key not in fresh]:
            dirty |= self._set(key, None)
        for key, value in fresh.items():
            dirty |= self._set(key, value)
        self._revision = listing.revision
        self._synced = True
        if dirty or not self._from_snapshot:
            await self._save_snapshot()
        await self._announce()

    def _refuse_older(self, revision: int) -> None:
        """Raises while the store offers an older view than the copy's: a server that lags (etcd 3.4 after a pause).

        A store that insists for ADOPT_OLDER_AFTER_S was restored or replaced, and what it says is then the truth.
        """
        now = self._clock.monotonic_ns()
        if revision >= self._revision:
            self._older_since_ns = 0
            return
        self._older_since_ns = self._older_since_ns or now
        log.warning("store went back", prefix=self._prefix, held=self._revision, offered=revision)
        if now - self._older_since_ns < ADOPT_OLDER_AFTER_S * NS_PER_S:
            raise UnavailableError(f"the store offers revision {revision}, older than {self._revision} held")
        self._older_since_ns = 0

    async def _follow(self) -> None:
        watch = self._store.watch(self._prefix, after_revision=self._revision)
        try:
            async for changes in watch:
                for change in changes:
                    if change.revision >= self._revision:
                        self._set(change.key.removeprefix(self._prefix), change.value)
                self._revision = max(self._revision, changes[-1].revision)
                await self._save_snapshot()
                await self._announce()
        finally:
            await watch.aclose()  # type: ignore[attr-defined]  # every Store.watch is an async generator

    def _set(self, key: str, raw: bytes | None) -> bool:
        if self._raw.get(key) == raw:
            return False
        if raw is None:
            self._raw.pop(key, None)
            self._items.pop(key, None)
            value = None
        else:
            try:
                value = self._decode(raw)
            except Exception as error:  # noqa: BLE001  # any decoder may be plugged in; a bad value keeps the old one
                log.error("value refused", key=self._prefix + key, error=repr(error), kept_old=key in self._items)
                return False
            self._raw[key] = raw
            self._items[key] = value
        for callback in self._callbacks:
            callback(key, value)
        return True

    async def _announce(self) -> None:
        async with self._changes:
            self._changes.notify_all()

    def _load_snapshot(self) -> bool:
        if self._snapshot_path is None or not self._snapshot_path.exists():
            return False
        try:
            content = self._snapshot_path.read_bytes()
            digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if hashlib.sha256(body).digest() != digest:
                raise ValueError("checksum does not match")
            snapshot = msgspec.msgpack.decode(body, type=_Snapshot)
            if snapshot.prefix != self._prefix:
                raise ValueError(f"it is a snapshot of {snapshot.prefix}")
        except (OSError, ValueError, msgspec.DecodeError) as error:
            log.warning("snapshot ignored", path=self._snapshot_path, error=str(error))
            return False
        for key, raw in snapshot.values.items():
            self._set(key, raw)
        self._revision = snapshot.revision
        log.info("snapshot loaded", path=self._snapshot_path, entries=len(self._items), revision=self._revision)
        return True

    async def _save_snapshot(self) -> None:
        if self._snapshot_path is None:
            return
        body = msgspec.msgpack.encode(_Snapshot(self._prefix, self._revision, self._raw))
        try:
            await asyncio.to_thread(_replace, self._snapshot_path, hashlib.sha256(body).digest() + body)
        except OSError as error:
            log.warning("snapshot not written", path=self._snapshot_path, error=str(error))
        else:
            self._from_snapshot = True


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
