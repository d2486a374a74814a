"""A Store in memory: a small real implementation for unit tests, held to the same contract suite as etcd's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from common.clock import NS_PER_S, Clock, SystemClock
from common.store import Change, CompactedError, Entry, Expect, Listing
from fairlead.errors import Reason, UnavailableError


class MemoryStore:
    """A revisioned store inside one process.

    Args:
        clock: Ends leases.

    Attributes:
        down: While True, every call fails and running watches end, as when etcd is gone.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._revision = 1
        self._compacted = 0
        self._entries: dict[str, Entry] = {}
        self._history: list[Change] = []
        self._leases: dict[int, tuple[int, int]] = {}
        self._next_lease = 1
        self._changed = asyncio.Condition()
        self._down = False

    @property
    def down(self) -> bool:
        """Whether the store plays dead."""
        return self._down

    async def set_down(self, down: bool) -> None:
        """Lets the store play dead, or brings it back with everything it held."""
        self._down = down
        await self._notify()

    async def compact(self) -> None:
        """Forgets all history up to now, as etcd's compaction does."""
        self._compacted = self._revision
        self._history.clear()
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _check(self) -> None:
        if self._down:
            raise UnavailableError("the store is down", reason=Reason.STORE_UNAVAILABLE, retry_after_s=1.0)
        now = self._clock.monotonic_ns()
        for lease_id in [lease_id for lease_id, (_, end_ns) in self._leases.items() if end_ns <= now]:
            self._end_lease(lease_id)

    def _end_lease(self, lease_id: int) -> None:
        self._leases.pop(lease_id, None)
        owned = [key for key, entry in self._entries.items() if entry.lease_id == lease_id]
        self._apply({}, owned, 0)

    def _apply(self, puts: Mapping[str, bytes], deletes: Sequence[str], lease_id: int) -> None:
        gone = [key for key in deletes if key in self._entries]
        if not puts and not gone:
            return
        self._revision += 1
        for key, value in puts.items():
            old = self._entries.get(key)
            created = old.create_revision if old else self._revision
            self._entries[key] = Entry(key, value, self._revision, created, lease_id)
            self._history.append(Change(key, value, self._revision))
        for key in gone:
            del self._entries[key]
            self._history.append(Change(key, None, self._revision))

    def _holds(self, expect: Expect) -> bool:
        entry = self._entries.get(expect.key)
        if expect.create_revision is not None:
            return (entry.create_revision if entry else 0) == expect.create_revision
        return (entry.revision if entry else 0) == expect.revision

    async def get(self, key: str) -> Entry | None:
        """See Store."""
        self._check()
        return self._entries.get(key)

    async def list(self, prefix: str) -> Listing:
        """See Store."""
        self._check()
        return Listing(
            self._revision, tuple(self._entries[key] for key in sorted(self._entries) if key.startswith(prefix))
        )

    async def list_keys(self, start: str, end: str, limit: int) -> tuple[str, ...]:
        """See Store."""
        self._check()
        return tuple(sorted(key for key in self._entries if start <= key < end)[:limit])

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """See Store."""
        revision = await self.commit((), {key: value}, lease_id=lease_id)
        assert revision is not None
        return revision

    async def delete(self, key: str) -> bool:
        """See Store."""
        self._check()
        existed = key in self._entries
        await self.commit((), {}, (key,))
        return existed

    async def commit(
        self,
        expects: Sequence[Expect],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        *,
        lease_id: int = 0,
    ) -> int | None:
        """See Store."""
        self._check()
        if lease_id and lease_id not in self._leases:
            raise UnavailableError("the lease has ended", reason=Reason.STORE_UNAVAILABLE)
        if not all(self._holds(expect) for expect in expects):
            return None
        self._apply(puts, deletes, lease_id)
        await self._notify()
        return self._revision

    async def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[tuple[Change, ...]]:
        """See Store."""
        position = after_revision
        while True:
            self._check()
            if position < self._compacted:
                raise CompactedError(f"compacted up to revision {self._compacted}")
            fresh = tuple(c for c in self._history if c.revision > position and c.key.startswith(prefix))
            position = self._revision
            if fresh:
                yield fresh
                continue
            async with self._changed:
                while not self._down and self._revision <= position:
                    await self._changed.wait()

    async def grant_lease(self, ttl_s: int) -> int:
        """See Store."""
        self._check()
        lease_id, self._next_lease = self._next_lease, self._next_lease + 1
        self._leases[lease_id] = (ttl_s, self._clock.monotonic_ns() + ttl_s * NS_PER_S)
        return lease_id

    async def keep_lease_alive(self, lease_id: int) -> bool:
        """See Store."""
        self._check()
        if lease_id not in self._leases:
            return False
        ttl_s = self._leases[lease_id][0]
        self._leases[lease_id] = (ttl_s, self._clock.monotonic_ns() + ttl_s * NS_PER_S)
        return True

    async def revoke_lease(self, lease_id: int) -> None:
        """See Store."""
        if not self._down:
            self._end_lease(lease_id)
            await self._notify()

    async def close(self) -> None:
        """See Store."""
