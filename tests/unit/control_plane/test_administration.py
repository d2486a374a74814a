"""Administration on a store in memory: CRUD, etags, races between administrators, idempotency."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from common import keys
from common.clock import FakeClock
from common.memory_store import MemoryStore
from control_plane.config import ControlPlaneConfig
from control_plane.core.keys import KEYS_PER_TENANT_MAX
from control_plane.core.sales import LiveCapacity
from control_plane.directory import Directory
from control_plane.metrics import ControlPlaneMetrics
from control_plane.models import Models
from control_plane.policies import Policies
from control_plane.profiles import StoredProfiles
from control_plane.records import Tables
from control_plane.reservations import Reservations
from control_plane.service import AdminService
from control_plane.tenants import ApiKeys, Tenants
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
)
from tests.unit.control_plane.test_check import model as a_model

RESERVED = 50_000


class Office:
    """The admin service on a store in memory."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.drawn = 0
        self.live: LiveCapacity | None = None
        tables = Tables(self.store)
        self.service = AdminService(
            tenants=Tenants(tables, self.clock),
            api_keys=ApiKeys(tables, self.clock, b"p" * 32, self.draw),
            models=Models(tables, self.clock, StoredProfiles(self.store)),
            reservations=Reservations(tables, self.ask_allocator),
            policies=Policies(tables, self.ask_allocator),
            directory=Directory(tables),
            clock=self.clock,
            metrics=ControlPlaneMetrics(CollectorRegistry()),
        )

    def draw(self, count: int) -> bytes:
        self.drawn += 1
        return self.drawn.to_bytes(count, "big")

    async def ask_allocator(self, reservation: admin_pb2.Reservation) -> LiveCapacity | None:
        return self.live

    async def call(self, method: str, **fields: Any) -> Any:
        return await getattr(self.service, method)(getattr(admin_pb2, method + "Request")(**fields), None)

    async def furnish(self) -> None:
        await self.call("CreateTenant", tenant=admin_pb2.Tenant(tenant_id="acme"))
        await self.call("CreateModel", model=a_model(model_id="tiny"))

    async def reserve(self, tenant_id: str = "acme", **fields: Any) -> Any:
        fields = {"reserved_milli_mu_per_minute": RESERVED} | fields
        return await self.call(
            "SetReservation", reservation=admin_pb2.Reservation(tenant_id=tenant_id, model_id="tiny", **fields)
        )


@pytest.fixture
async def office() -> Office:
    office = Office()
    await office.furnish()
    return office


async def test_tenant_life(office: Office) -> None:
    """Proves create, read, list, update, delete, and what each says the second time."""
    tenant = await office.call("GetTenant", tenant_id="acme")
    assert tenant.etag
    assert tenant.create_time.seconds
    with pytest.raises(AlreadyExistsError):
        await office.call("CreateTenant", tenant=admin_pb2.Tenant(tenant_id="acme"))
    tenant.suspended = True
    updated = await office.call("UpdateTenant", tenant=tenant)
    assert updated.suspended
    assert updated.create_time == tenant.create_time
    assert updated.etag != tenant.etag
    await office.call("CreateTenant", tenant=admin_pb2.Tenant(tenant_id="aaa"))
    listed = await office.call("ListTenants", page_size=1)
    assert [t.tenant_id for t in listed.tenants] == ["aaa"]
    rest = await office.call("ListTenants", page_token=listed.next_page_token)
    assert [t.tenant_id for t in rest.tenants] == ["acme"]
    await office.call("DeleteTenant", tenant_id="acme")
    for method in ("GetTenant", "DeleteTenant"):
        with pytest.raises(NotFoundError) as missing:
            await office.call(method, tenant_id="acme")
        assert missing.value.reason is Reason.UNKNOWN_TENANT
    with pytest.raises(NotFoundError):
        await office.call("UpdateTenant", tenant=admin_pb2.Tenant(tenant_id="acme"))


async def test_nothing_stored_carries_an_etag(office: Office) -> None:
    """Proves that the version lives in the store's revision only."""
    entry = await office.store.get(keys.tenant("acme"))
    assert entry is not None
    assert not admin_pb2.Tenant.FromString(entry.value).etag


async def test_stale_etags_are_refused(office: Office) -> None:
    """Proves that a change based on an old read is refused, for updates, deletes and reservations."""
    old = await office.call("GetTenant", tenant_id="acme")
    await office.call("UpdateTenant", tenant=admin_pb2.Tenant(tenant_id="acme", display_name="new"))
    with pytest.raises(ConflictError):
        await office.call("UpdateTenant", tenant=old)
    with pytest.raises(ConflictError):
        await office.call("DeleteTenant", tenant_id="acme", etag=old.etag)
    first = await office.reserve()
    await office.reserve(reserved_milli_mu_per_minute=2 * RESERVED)
    with pytest.raises(ConflictError):
        await office.reserve(etag=first.etag)
    with pytest.raises(ConflictError):
        await office.call("DeleteReservation", tenant_id="acme", model_id="tiny", etag=first.etag)
    await office.call("DeleteReservation", tenant_id="acme", model_id="tiny")
    with pytest.raises(ConflictError):
        await office.reserve(etag=first.etag)


async def test_validate_only_checks_everything_and_changes_nothing(office: Office) -> None:
    """Proves that every mutation can be tried: same errors, same answer, same store."""
    await office.reserve()
    made = await office.call("CreateApiKey", tenant_id="acme")
    before = await office.store.list(keys.PREFIX)
    only: dict[str, Any] = {"validate_only": True}
    wanted = admin_pb2.Reservation(tenant_id="acme", model_id="tiny", reserved_milli_mu_per_minute=1)
    assert (await office.call("CreateTenant", tenant=admin_pb2.Tenant(tenant_id="b"), **only)).tenant_id == "b"
    await office.call("UpdateTenant", tenant=admin_pb2.Tenant(tenant_id="acme", suspended=True), **only)
    gone = await office.call("DeleteTenant", tenant_id="acme", **only)
    assert (gone.keys_revoked, gone.reservations_deleted) == (1, 1)
    tried = await office.call("CreateApiKey", tenant_id="acme", **only)
    assert (tried.secret_key, tried.api_key.key_id) == ("", "")
    await office.call("RevokeApiKey", key_id=made.api_key.key_id, **only)
    await office.call("CreateModel", model=a_model(model_id="other"), **only)
    await office.call("UpdateModel", model=a_model(model_id="tiny", replicas_max=9), **only)
    await office.call("SetReservation", reservation=wanted, **only)
    await office.call("DeleteReservation", tenant_id="acme", model_id="tiny", **only)
    with pytest.raises(AlreadyExistsError):
        await office.call("CreateTenant", tenant=admin_pb2.Tenant(tenant_id="acme"), **only)
    assert await office.store.list(keys.PREFIX) == before


async def test_keys_are_shown_once_and_at_most_two_live(office: Office) -> None:
    """Proves that a secret leaves the server once, its HMAC never, and that rotation needs a revocation first."""
    made = [await office.call("CreateApiKey", tenant_id="acme", display_name=f"k{i}") for i in range(2)]
    assert all(answer.secret_key.startswith(f"fl-{answer.api_key.key_id}-") for answer in made)
    assert not any(answer.api_key.key_hmac for answer in made)
    listed = (await office.call("ListApiKeys", tenant_id="acme")).api_keys
    assert [key.key_hmac for key in listed] == [b"", b""]
    entry = await office.store.get(keys.api_key(made[0].api_key.key_id))
    assert entry is not None
    assert len(admin_pb2.ApiKey.FromString(entry.value).key_hmac) == 32
    assert made[0].secret_key.encode() not in entry.value
    with pytest.raises(FailedPreconditionError, match="revoke one"):
        await office.call("CreateApiKey", tenant_id="acme")
    await office.call("RevokeApiKey", key_id=made[0].api_key.key_id)
    await office.call("CreateApiKey", tenant_id="acme")
    for unknown in (made[0].api_key.key_id, "", "a/b"):
        with pytest.raises(NotFoundError):
            await office.call("RevokeApiKey", key_id=unknown)
    with pytest.raises(NotFoundError):
        await office.call("CreateApiKey", tenant_id="nobody")


async def test_deleting_a_tenant_takes_its_keys_and_reservations(office: Office) -> None:
    """Proves that nothing of a tenant is left behind, however much there was."""
    await office.call("CreateApiKey", tenant_id="acme")
    for number in range(120):
        await office.call("CreateModel", model=a_model(model_id=f"m{number}"))
        await office.call(
            "SetReservation",
            reservation=admin_pb2.Reservation(tenant_id="acme", model_id=f"m{number}", reserved_milli_mu_per_minute=1),
        )
    gone = await office.call("DeleteTenant", tenant_id="acme")
    assert (gone.keys_revoked, gone.reservations_deleted) == (1, 120)
    assert not (await office.store.list(keys.API_KEYS)).entries
    assert not (await office.store.list(keys.POLICIES)).entries


async def test_models_with_reservations_stay(office: Office) -> None:
    """Proves that a model is not taken from under its buyers, and goes once they are gone."""
    await office.reserve()
    with pytest.raises(FailedPreconditionError, match="acme"):
        await office.call("DeleteModel", model_id="tiny")
    await office.call("DeleteReservation", tenant_id="acme", model_id="tiny")
    await office.call("DeleteModel", model_id="tiny")
    with pytest.raises(NotFoundError) as missing:
        await office.reserve()
    assert missing.value.reason is Reason.UNKNOWN_MODEL


async def test_reservations_need_a_tenant_and_a_model_and_tell_the_shortfall(office: Office) -> None:
    """Proves that unknown parents are refused, and that what live capacity does not cover is said."""
    with pytest.raises(NotFoundError) as missing:
        await office.reserve("nobody")
    assert missing.value.reason is Reason.UNKNOWN_TENANT
    office.live = LiveCapacity(have=RESERVED - 7_000, sellable=RESERVED - 7_000, largest_domain=0)
    answer = await office.reserve()
    assert (answer.model_shortfall_milli_mu_per_minute, bool(answer.etag)) == (7_000, True)
    (listed,) = (await office.call("ListReservations", model_id="tiny")).reservations
    assert listed.model_shortfall_milli_mu_per_minute == 0, "not stored"
    assert not (await office.call("ListReservations", tenant_id="other")).reservations


async def test_two_administrators_never_overwrite_each_other_unseen(office: Office) -> None:
    """Proves that of many concurrent changes based on one read exactly one wins."""
    read = await office.call("GetTenant", tenant_id="acme")

    async def rename(number: int) -> bool:
        change = admin_pb2.Tenant(tenant_id="acme", display_name=f"name {number}", etag=read.etag)
        try:
            await office.call("UpdateTenant", tenant=change)
        except ConflictError:
            return False
        return True

    assert sum(await asyncio.gather(*(rename(number) for number in range(10)))) == 1


async def test_races_below_a_parent(office: Office) -> None:
    """Proves the guards: concurrent creations never exceed two keys, and nothing is born below a deleted parent."""

    async def attempt(method: str, **fields: Any) -> bool:
        try:
            await office.call(method, **fields)
        except (FailedPreconditionError, NotFoundError, ConflictError):
            return False
        return True

    made = await asyncio.gather(*(attempt("CreateApiKey", tenant_id="acme") for _ in range(5)))
    assert sum(made) == KEYS_PER_TENANT_MAX
    wanted = admin_pb2.Reservation(tenant_id="acme", model_id="tiny", reserved_milli_mu_per_minute=1)
    await asyncio.gather(
        attempt("SetReservation", reservation=wanted),
        attempt("DeleteModel", model_id="tiny"),
        attempt("DeleteTenant", tenant_id="acme"),
    )
    assert not (await office.store.list(keys.TENANTS)).entries
    assert not (await office.store.list(keys.API_KEYS)).entries
    models = {entry.key.removeprefix(keys.MODELS) for entry in (await office.store.list(keys.MODELS)).entries}
    for entry in (await office.store.list(keys.POLICIES)).entries:
        raise AssertionError(f"{entry.key} outlived its tenant; models: {models}")


async def test_request_ids_make_mutations_repeatable(office: Office) -> None:
    """Proves AIP-155 end to end: a retried creation returns the same key, also while the first is under way."""
    fields = {"tenant_id": "acme", "request_id": "one"}
    first, second = await asyncio.gather(office.call("CreateApiKey", **fields), office.call("CreateApiKey", **fields))
    assert first == second
    assert (await office.call("CreateApiKey", **fields)) == first
    assert len((await office.call("ListApiKeys")).api_keys) == 1
    with pytest.raises(InvalidArgumentError, match="different request"):
        await office.call("CreateApiKey", tenant_id="acme", display_name="x", request_id="one")
    office.clock.advance(601)
    await office.call("CreateApiKey", **fields)
    assert len((await office.call("ListApiKeys")).api_keys) == 2


async def test_failed_mutations_are_not_remembered(office: Office) -> None:
    """Proves that a retry after the cause is gone succeeds."""
    fields: dict[str, Any] = {"tenant_id": "later", "request_id": "two"}
    with pytest.raises(NotFoundError):
        await office.call("CreateApiKey", **fields)
    await office.call("CreateTenant", tenant=admin_pb2.Tenant(tenant_id="later"))
    assert (await office.call("CreateApiKey", **fields)).secret_key


async def test_replicas_and_services_are_listed(office: Office) -> None:
    """Proves the listings' order and filters, and that the election decides who leads."""
    for name, model_id in (("r2", "tiny"), ("r1", "tiny"), ("r3", "other")):
        replica = engine_pb2.Replica(replica_id=name, model_id=model_id)
        await office.store.put(keys.replica(name), replica.SerializeToString())
    listed = await office.call("ListReplicas", model_id="tiny")
    assert [replica.replica_id for replica in listed.replicas] == ["r1", "r2"]
    for name in ("b", "a"):
        instance = admin_pb2.ServiceInstance(service="capacity", instance_id=name, leader=True, epoch=1)
        await office.store.put(keys.service("capacity", name), instance.SerializeToString())
    epoch = await office.store.put(
        keys.leader("capacity"),
        admin_pb2.ServiceInstance(service="capacity", instance_id="b").SerializeToString(),
    )
    services = (await office.call("ListServices")).services
    assert [(s.instance_id, s.leader, s.epoch) for s in services] == [("a", False, 0), ("b", True, epoch)]
    with pytest.raises(NotFoundError) as missing:
        await office.call("DrainReplica", replica_id="r9")
    assert missing.value.reason is Reason.UNKNOWN_REPLICA


def test_secrets_are_checked_at_start(tmp_path: Any) -> None:
    """Proves that a missing, short or unreadable secret file is refused with what to do."""
    short = tmp_path / "short"
    short.write_bytes(b"x" * 15)
    for config, name in (
        (ControlPlaneConfig(), "key_pepper_file is required"),
        (ControlPlaneConfig(key_pepper_file=str(tmp_path / "none")), "No such file"),
        (ControlPlaneConfig(key_pepper_file=str(short)), "holds 15 bytes"),
    ):
        with pytest.raises(InvalidArgumentError, match=name):
            config.pepper()
    with pytest.raises(InvalidArgumentError, match="15 characters"):
        ControlPlaneConfig(admin_token_file=str(short)).admin_token()
    short.write_bytes(b"\xff" * 40)
    with pytest.raises(InvalidArgumentError, match="ASCII"):
        ControlPlaneConfig(admin_token_file=str(short)).admin_token()
