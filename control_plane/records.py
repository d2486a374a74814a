"""Administered records in the store: typed reads with etags, and writes that never overwrite unseen.

An etag is the store revision of a record's last write. A write that carries one succeeds only while that is still the
record's revision; a write without one takes the record as it is, and tries again when somebody was faster.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from common import keys
from common.store import Entry, Expect, Store
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import ConflictError, FairleadError, NotFoundError, Reason

M = TypeVar("M", bound=Message)
R = TypeVar("R")

# Losing this often in a row to other administrators is no coincidence: say so instead of trying for ever.
ATTEMPTS = 8

# Their revision changes whenever a key or a reservation is put below a tenant or a model, so that whoever counts them
# or deletes their parent notices. Written by the control plane only.
GUARDS = keys.PREFIX + "guards/"


def tenant_guard(tenant_id: str) -> str:
    """Key that changes with everything created below a tenant."""
    return f"{GUARDS}tenants/{tenant_id}"


def model_guard(model_id: str) -> str:
    """Key that changes with everything created below a model."""
    return f"{GUARDS}models/{model_id}"


@dataclass(frozen=True, slots=True)
class Stored(Generic[M]):
    """A record and where it stands in the store."""

    record: M
    entry: Entry

    @property
    def etag(self) -> str:
        """Version for updates."""
        return str(self.entry.revision)

    def unchanged(self) -> Expect:
        """Nobody has written it since."""
        return Expect.unchanged(self.entry)

    def exists(self) -> Expect:
        """It may have been changed, but not deleted."""
        return Expect(self.entry.key, create_revision=self.entry.create_revision)

    def check_etag(self, etag: str) -> None:
        """Refuses a stale etag; an empty one is no condition.

        Raises:
            ConflictError: The record was changed since the etag was read.
        """
        if etag and etag != self.etag:
            raise ConflictError(
                "somebody changed it since you read it: read it again and repeat the change",
                metadata={"etag_sent": etag[:40], "etag_now": self.etag},
            )


class Records(Generic[M]):
    """All records of one kind.

    Args:
        store: Where they are.
        prefix: What their keys start with.
        kind: Their message class.
        noun: What an administrator calls one.
        unknown: Reason of NotFoundError.
    """

    def __init__(self, store: Store, prefix: str, kind: type[M], noun: str, unknown: Reason) -> None:
        self._store = store
        self._prefix = prefix
        self._kind = kind
        self._noun = noun
        self._unknown = unknown

    async def find(self, key: str) -> Stored[M] | None:
        """Reads one record by its whole key; None where there is none."""
        entry = await self._store.get(key)
        return self._decode(entry) if entry else None

    async def require(self, key: str) -> Stored[M]:
        """Reads one record.

        Raises:
            NotFoundError: There is none.
        """
        found = await self.find(key)
        if found is None:
            raise self.missing(key)
        return found

    async def list(self, below: str = "") -> list[Stored[M]]:
        """Reads all records, or those below a further part of the key."""
        listing = await self._store.list(self._prefix + below)
        return [self._decode(entry) for entry in listing.entries]

    def missing(self, key: str) -> NotFoundError:
        """The error for a record that is not there."""
        return NotFoundError(f"there is no {self._noun} {key.removeprefix(self._prefix)!r}", reason=self._unknown)

    def _decode(self, entry: Entry) -> Stored[M]:
        record = self._kind.FromString(entry.value)
        if "etag" in record.DESCRIPTOR.fields_by_name:
            setattr(record, "etag", str(entry.revision))  # noqa: B010  # M has it only where the descriptor says so
        return Stored(record, entry)


class Tables:
    """Every kind of record the control plane looks after.

    Args:
        store: Where they are.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.tenants = Records(store, keys.TENANTS, admin_pb2.Tenant, "tenant", Reason.UNKNOWN_TENANT)
        self.api_keys = Records(store, keys.API_KEYS, admin_pb2.ApiKey, "API key", Reason.NOT_FOUND)
        self.models = Records(store, keys.MODELS, admin_pb2.Model, "model", Reason.UNKNOWN_MODEL)
        self.reservations = Records(store, keys.POLICIES, admin_pb2.Reservation, "reservation", Reason.NOT_FOUND)
        self.replicas = Records(store, keys.REPLICAS, engine_pb2.Replica, "replica", Reason.UNKNOWN_REPLICA)
        self.services = Records(store, keys.SERVICES, admin_pb2.ServiceInstance, "service", Reason.NOT_FOUND)
        self.leaders = Records(store, keys.LEADERS, admin_pb2.ServiceInstance, "leader", Reason.NOT_FOUND)

    async def guard(self, key: str) -> Expect:
        """Reads a guard; the condition that it has not moved since."""
        entry = await self.store.get(key)
        return Expect.unchanged(entry) if entry else Expect.absent(key)


def stored_bytes(record: Message) -> bytes:
    """What is written of a record: everything but its etag."""
    copy = type(record)()
    copy.CopyFrom(record)
    copy.ClearField("etag")
    return copy.SerializeToString()


async def until_stored(attempt: Callable[[], Awaitable[R | None]]) -> R:
    """Repeats a read-check-commit until its commit is accepted.

    Args:
        attempt: Returns None when somebody else wrote in between.

    Raises:
        ConflictError: Others were faster every time.
        FairleadError: Whatever the attempt's checks raise.
    """
    for _ in range(ATTEMPTS):
        result = await attempt()
        if result is not None:
            return result
    raise _too_busy()


def _too_busy() -> FairleadError:
    return ConflictError("others keep changing it at the same time; try again", retry_after_s=0.5)
