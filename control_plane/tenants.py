"""Tenants and their API keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from common import keys
from common.clock import Clock
from common.store import Expect
from control_plane.core import check
from control_plane.core.keys import KEY_ID_BYTES, KEYS_PER_TENANT_MAX, SECRET_BYTES, make_key
from control_plane.core.paging import page
from control_plane.records import Tables, stored_bytes, tenant_guard, until_stored
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import AlreadyExistsError, ConflictError, FailedPreconditionError

# etcd refuses transactions of more than 128 operations (--max-txn-ops).
_DELETES_MAX = 100


class Tenants:
    """What an administrator does with tenants.

    Args:
        tables: The records.
        clock: Dates creations.
    """

    def __init__(self, tables: Tables, clock: Clock) -> None:
        self._tables = tables
        self._clock = clock

    async def create(self, request: admin_pb2.CreateTenantRequest) -> admin_pb2.Tenant:
        """See AdminService."""
        tenant = check.tenant(request.tenant)
        tenant.create_time.FromNanoseconds(self._clock.wall_ns())
        key = keys.tenant(tenant.tenant_id)
        taken = AlreadyExistsError(f"there is a tenant {tenant.tenant_id!r} already")
        if await self._tables.tenants.find(key):
            raise taken
        if request.validate_only:
            return tenant
        revision = await self._tables.store.commit([Expect.absent(key)], {key: stored_bytes(tenant)})
        if revision is None:
            raise taken
        tenant.etag = str(revision)
        return tenant

    async def get(self, request: admin_pb2.GetTenantRequest) -> admin_pb2.Tenant:
        """See AdminService."""
        return (await self._tables.tenants.require(keys.tenant(check.tenant_id(request.tenant_id)))).record

    async def list(self, request: admin_pb2.ListTenantsRequest) -> admin_pb2.ListTenantsResponse:
        """See AdminService."""
        found = [stored.record for stored in await self._tables.tenants.list()]
        tenants, token = page(found, lambda tenant: tenant.tenant_id, request.page_size, request.page_token)
        return admin_pb2.ListTenantsResponse(tenants=tenants, next_page_token=token)

    async def update(self, request: admin_pb2.UpdateTenantRequest) -> admin_pb2.Tenant:
        """See AdminService."""
        tenant = check.tenant(request.tenant)
        key = keys.tenant(tenant.tenant_id)

        async def attempt() -> admin_pb2.Tenant | None:
            stored = await self._tables.tenants.require(key)
            stored.check_etag(request.tenant.etag)
            tenant.create_time.CopyFrom(stored.record.create_time)
            if request.validate_only:
                return tenant
            revision = await self._tables.store.commit([stored.unchanged()], {key: stored_bytes(tenant)})
            if revision is None:
                return None
            tenant.etag = str(revision)
            return tenant

        return await until_stored(attempt)

    async def delete(self, request: admin_pb2.DeleteTenantRequest) -> admin_pb2.DeleteTenantResponse:
        """See AdminService."""
        key = keys.tenant(check.tenant_id(request.tenant_id))
        guard = tenant_guard(request.tenant_id)
        answer = admin_pb2.DeleteTenantResponse()

        async def attempt() -> admin_pb2.DeleteTenantResponse | None:
            stored = await self._tables.tenants.require(key)
            stored.check_etag(request.etag)
            unmoved = await self._tables.guard(guard)
            children = await self._children(request.tenant_id)
            if request.validate_only:
                _count(answer, children)
                return answer
            # More than one transaction holds goes first; should the last one fail, what is gone stays gone.
            while len(children) > _DELETES_MAX:
                some, children = children[:_DELETES_MAX], children[_DELETES_MAX:]
                if await self._tables.store.commit([stored.unchanged()], {}, some) is None:
                    return None
                _count(answer, some)
            expects = [stored.unchanged(), unmoved]
            if await self._tables.store.commit(expects, {}, [key, guard, *children]) is None:
                return None
            _count(answer, children)
            return answer

        return await until_stored(attempt)

    async def _children(self, tenant_id: str) -> Sequence[str]:
        """The whole keys of a tenant's API keys and reservations."""
        children = [k.entry.key for k in await self._tables.api_keys.list() if k.record.tenant_id == tenant_id]
        children += [r.entry.key for r in await self._tables.reservations.list() if r.record.tenant_id == tenant_id]
        return children


def _count(answer: admin_pb2.DeleteTenantResponse, children: Sequence[str]) -> None:
    revoked = sum(1 for name in children if name.startswith(keys.API_KEYS))
    answer.keys_revoked += revoked
    answer.reservations_deleted += len(children) - revoked


class ApiKeys:
    """What an administrator does with API keys.

    Args:
        tables: The records.
        clock: Dates creations.
        pepper: Of the stored HMACs.
        random_bytes: Cryptographic randomness, `secrets.token_bytes`.
    """

    def __init__(self, tables: Tables, clock: Clock, pepper: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self._tables = tables
        self._clock = clock
        self._pepper = pepper
        self._random_bytes = random_bytes

    async def create(self, request: admin_pb2.CreateApiKeyRequest) -> admin_pb2.CreateApiKeyResponse:
        """See AdminService."""
        check.display_name(request.display_name)
        tenant_key = keys.tenant(check.tenant_id(request.tenant_id))
        guard = tenant_guard(request.tenant_id)

        async def attempt() -> admin_pb2.CreateApiKeyResponse | None:
            tenant = await self._tables.tenants.require(tenant_key)
            unmoved = await self._tables.guard(guard)
            live = [k for k in await self._tables.api_keys.list() if k.record.tenant_id == request.tenant_id]
            if len(live) >= KEYS_PER_TENANT_MAX:
                ids = ", ".join(stored.record.key_id for stored in live)
                raise FailedPreconditionError(
                    f"tenant {request.tenant_id} has {len(live)} live keys ({ids}), the most there may be: "
                    "revoke one first"
                )
            made = make_key(self._random_bytes(KEY_ID_BYTES), self._random_bytes(SECRET_BYTES), self._pepper)
            record = admin_pb2.ApiKey(
                key_id=made.key_id, tenant_id=request.tenant_id, display_name=request.display_name
            )
            record.create_time.FromNanoseconds(self._clock.wall_ns())
            if request.validate_only:
                record.key_id = ""
                return admin_pb2.CreateApiKeyResponse(api_key=record)
            stored = admin_pb2.ApiKey(key_hmac=made.key_hmac)
            stored.MergeFrom(record)
            key = keys.api_key(made.key_id)
            revision = await self._tables.store.commit(
                [tenant.exists(), unmoved, Expect.absent(key)], {key: stored.SerializeToString(), guard: b""}
            )
            if revision is None:
                return None
            return admin_pb2.CreateApiKeyResponse(api_key=record, secret_key=made.secret_key)

        return await until_stored(attempt)

    async def list(self, request: admin_pb2.ListApiKeysRequest) -> admin_pb2.ListApiKeysResponse:
        """See AdminService."""
        if request.tenant_id:
            await self._tables.tenants.require(keys.tenant(check.tenant_id(request.tenant_id)))
        records = [stored.record for stored in await self._tables.api_keys.list()]
        wanted = [record for record in records if request.tenant_id in ("", record.tenant_id)]
        for record in wanted:
            record.ClearField("key_hmac")
        return admin_pb2.ListApiKeysResponse(api_keys=sorted(wanted, key=lambda r: (r.tenant_id, r.key_id)))

    async def revoke(self, request: admin_pb2.RevokeApiKeyRequest) -> admin_pb2.RevokeApiKeyResponse:
        """See AdminService."""
        if not request.key_id or "/" in request.key_id:
            raise self._tables.api_keys.missing(request.key_id[:80])
        stored = await self._tables.api_keys.require(keys.api_key(request.key_id))
        if not request.validate_only:
            gone = await self._tables.store.commit([stored.unchanged()], {}, [stored.entry.key])
            if gone is None:
                raise ConflictError("somebody else revoked this key at the same time")
        return admin_pb2.RevokeApiKeyResponse()
