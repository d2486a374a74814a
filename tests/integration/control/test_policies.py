"""Many reservations at once on real processes and a real etcd: two administrators, a limit, a death in the middle."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from common import keys
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import ConflictError, FailedPreconditionError, FairleadError, Reason
from tests.integration.control.side import Admin, Side

MU = 1_000
TENANTS = 700
MODEL = "tiny"


def name(number: int) -> str:
    return f"tenant-{number:05}"


def bought(number: int, reserved: int, etag: str = "") -> admin_pb2.Reservation:
    return admin_pb2.Reservation(
        tenant_id=name(number), model_id=MODEL, reserved_milli_mu_per_minute=reserved, etag=etag
    )


async def furnish(side: Side, replicas_max: int) -> None:
    """A model and its tenants, put there as the admin API stores them."""
    model = admin_pb2.Model(model_id=MODEL, target_utilization=1.0, replicas_max=replicas_max)
    await side.store.put(keys.model(MODEL), model.SerializeToString())
    for start in range(0, TENANTS, 100):
        records = {
            keys.tenant(name(number)): admin_pb2.Tenant(tenant_id=name(number)).SerializeToString()
            for number in range(start, start + 100)
        }
        await side.store.commit([], records)


async def two_administrators(side: Side, replicas_max: int = 100) -> tuple[Admin, Admin]:
    """Two instances of the control plane, and an administrator at each."""
    side.start("control_plane", "cp-1")
    side.start("control_plane", "cp-2")
    await furnish(side, replicas_max)
    return await side.admin("cp-1"), await side.admin("cp-2")


async def stored(side: Side) -> dict[str, admin_pb2.Reservation]:
    """What is in etcd."""
    found = {}
    for entry in (await side.store.list(keys.POLICIES)).entries:
        record = admin_pb2.Reservation.FromString(entry.value)
        assert not record.etag
        record.etag = str(entry.revision)
        found[record.tenant_id] = record
    return found


async def apply(admin: Admin, reservations: list[admin_pb2.Reservation], **fields: Any) -> Any:
    request = admin_pb2.ApplyReservationsRequest(reservations=reservations, **fields)
    return await admin.ApplyReservations(request)


async def test_two_administrators_lose_nobodys_change(side: Side) -> None:
    """Proves, with files of 700 quotas applied at two instances at once from one reading: whoever comes second to a
    quota is refused by its name, what the first wrote stays, and what both left alone is as it was."""
    one, two = await two_administrators(side)
    created = await apply(one, [bought(number, MU) for number in range(TENANTS)], request_id="all of them")
    assert len(created.created) == TENANTS, "in transactions that etcd takes"
    read = await stored(side)
    assert {r.tenant_id: r.etag for r in created.created} == {r.tenant_id: r.etag for r in read.values()}
    shared = range(300, 400)
    mine = [bought(number, 2 * MU, read[name(number)].etag) for number in range(400)]
    others = [bought(number, 3 * MU, read[name(number)].etag) for number in range(300, TENANTS)]
    results = await asyncio.gather(apply(one, mine), apply(two, others), return_exceptions=True)
    refused = [result for result in results if isinstance(result, BaseException)]
    assert refused, "both wrote the same quotas"
    for error in refused:
        assert isinstance(error, ConflictError)
        assert error.reason is Reason.CONFLICT
        assert any(f"{name(number)} on {MODEL}" in error.message for number in shared), error.message
    now = await stored(side)
    rates = {number: now[name(number)].reserved_milli_mu_per_minute for number in range(TENANTS)}
    assert all(rates[number] in (MU, 2 * MU) for number in range(300))
    assert all(rates[number] in (MU, 3 * MU) for number in range(400, TENANTS))
    for result, part, rate in ((results[0], mine, 2 * MU), (results[1], others, 3 * MU)):
        if not isinstance(result, BaseException):
            assert all(now[r.tenant_id].reserved_milli_mu_per_minute == rate for r in part), "who won, won everywhere"
    # Whoever was refused reads again, and does the rest.
    again = [bought(number, 3 * MU, now[name(number)].etag) for number in range(300, TENANTS)]
    await apply(two, again)
    assert {r.reserved_milli_mu_per_minute for n, r in (await stored(side)).items() if n >= name(300)} == {3 * MU}


async def test_two_sellers_at_two_instances_never_oversell(side: Side) -> None:
    """Proves the limit under real concurrency: sales and files at two instances sell what fits and no more."""
    one, two = await two_administrators(side, replicas_max=1)

    async def sell(admin: Admin, number: int) -> bool:
        request = admin_pb2.SetReservationRequest(reservation=bought(number, 9 * MU))
        return await passes(admin.SetReservation(request))

    async def sell_many(admin: Admin, number: int) -> bool:
        return await passes(apply(admin, [bought(number, 9 * MU), bought(number + 1, 9 * MU)]))

    async def passes(call: Any) -> bool:
        try:
            await call
        except (FailedPreconditionError, ConflictError):
            return False
        return True

    calls = [sell(admin, number) for number, admin in enumerate([one, two] * 8)]
    calls += [sell_many(admin, 100 + 2 * number) for number, admin in enumerate([one, two] * 4)]
    await asyncio.gather(*calls)
    sold = sum(r.reserved_milli_mu_per_minute for r in (await stored(side)).values())
    # Who loses eight races in a row is sent away with a conflict, so that a part may stay unsold.
    assert 60 * MU < sold <= 100 * MU
    with pytest.raises(FailedPreconditionError) as refused:
        await apply(two, [bought(600, 50 * MU)])
    assert refused.value.reason is Reason.CAPACITY_EXCEEDED
    assert refused.value.metadata["capacity_milli_mu_per_minute"] == str(100 * MU)
    less = await apply(one, [bought(0, MU)], allow_oversell=False)
    assert len(less.updated) + len(less.created) == 1


async def test_a_control_plane_killed_in_the_middle_is_repeated(side: Side) -> None:
    """Proves that a file whose application dies with its process leaves whole transactions, never a broken quota, and
    that the same request at another instance does the rest."""
    process = side.start("control_plane", "cp-1")
    side.start("control_plane", "cp-2")
    await furnish(side, replicas_max=100)
    one, two = await side.admin("cp-1"), await side.admin("cp-2")
    wanted = [bought(number, 2 * MU) for number in range(TENANTS)]
    before = (await side.store.list(keys.POLICIES)).revision
    running = asyncio.ensure_future(apply(one, wanted, request_id="one"))
    async with asyncio.timeout(20.0):
        await anext(aiter(side.store.watch(keys.POLICIES, after_revision=before)))
    process.signal(signal.SIGKILL)
    with pytest.raises(FairleadError):
        await running
    part = await stored(side)
    assert 0 < len(part) < TENANTS, "killed in the middle"
    assert all(r.reserved_milli_mu_per_minute == 2 * MU for r in part.values())
    rest = await apply(two, wanted, request_id="one")
    assert (len(rest.created), rest.unchanged) == (TENANTS - len(part), len(part))
    assert len(await stored(side)) == TENANTS
    gone = await apply(two, wanted[:10], complete_model_ids=[MODEL])
    assert (len(gone.deleted), gone.unchanged) == (TENANTS - 10, 10)
    assert sorted(await stored(side)) == [name(number) for number in range(10)]
