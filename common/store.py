"""The small interface to the coordination store that everything else uses; etcd in production, memory in unit tests.

Safety is built on `commit` (compare-and-swap), on fencing epochs and on periodic re-listing, never on locks, reads or
watches alone: watches can lose events and reads can be stale on old etcd servers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

Epoch = NewType("Epoch", int)


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored value.

    Attributes:
        key: Whole key.
        value: Bytes as written.
        revision: Store revision of the last write of this key, 1 or more.
        create_revision: Store revision at which this key came to be.
        lease_id: Lease the key lives on, or 0.
    """

    key: str
    value: bytes
    revision: int
    create_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """All entries below a prefix at one revision of the store."""

    revision: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One change below a watched prefix; `value` is None for a deletion."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Expect:
    """A condition of a commit on one key: exactly one of the two revisions is set; 0 means the key is absent."""

    key: str
    revision: int | None = None
    create_revision: int | None = None

    @staticmethod
    def absent(key: str) -> Expect:
        """The key does not exist."""
        return Expect(key, create_revision=0)

    @staticmethod
    def unchanged(entry: Entry) -> Expect:
        """The key was not written since `entry` was read."""
        return Expect(entry.key, revision=entry.revision)


class CompactedError(Exception):
    """A watch asked for history the store no longer has: list again and watch from there."""


class Store(Protocol):
    """A revisioned key-value store with transactions, leases and watches.

    Every method raises `fairlead.errors.UnavailableError` (reason STORE_UNAVAILABLE) when the store does not answer
    within the store's own timeout; whether a write took effect is then unknown.
    """

    async def get(self, key: str) -> Entry | None:
        """Reads one key."""
        ...

    async def list(self, prefix: str) -> Listing:
        """Reads all keys below `prefix` at one revision, sorted by key."""
        ...

    async def list_keys(self, start: str, end: str, limit: int) -> tuple[str, ...]:
        """Reads the first keys of a range without their values, sorted.

        Args:
            start: The first key that counts.
            end: The first key after it that does not.
            limit: Most keys to return, 1 or more.
        """
        ...

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """Writes one key unconditionally; returns the store's revision."""
        ...

    async def delete(self, key: str) -> bool:
        """Deletes one key; returns whether it existed."""
        ...

    async def commit(
        self,
        expects: Sequence[Expect],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        *,
        lease_id: int = 0,
    ) -> int | None:
        """Writes all or nothing.

        Args:
            expects: All must hold.
            puts: Values to write, each on `lease_id`.
            deletes: Keys to delete.
            lease_id: Lease for the puts, or 0.

        Returns:
            The store's revision after the write, or None when an expectation did not hold.
        """
        ...

    def watch(self, prefix: str, *, after_revision: int) -> AsyncIterator[tuple[Change, ...]]:
        """Yields the changes below `prefix` after a revision, in order, one tuple per store revision or larger.

        Raises:
            CompactedError: The store no longer has that history.
        """
        ...

    async def grant_lease(self, ttl_s: int) -> int:
        """Creates a lease that ends by itself `ttl_s` seconds after its last renewal; returns its id."""
        ...

    async def keep_lease_alive(self, lease_id: int) -> bool:
        """Renews a lease once; False when it has already ended."""
        ...

    async def revoke_lease(self, lease_id: int) -> None:
        """Ends a lease and deletes its keys."""
        ...

    async def close(self) -> None:
        """Frees connections; running watches end."""
        ...
