"""Many reservations at once, and the limit of what may be sold."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import keys
from common.store import Expect
from control_plane.core import policies
from control_plane.core.policies import BATCH_MAX, Key, Refusals
from control_plane.core.sales import LiveCapacity, Sale, capacity_for_sale
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnavailableError,
    to_status,
)
from tests.unit.control_plane.test_administration import Office
from tests.unit.control_plane.test_check import model as a_model

RESERVED, CEILING = "reserved_milli_mu_per_minute", "burst_ceiling_milli_mu_per_minute"
MU = 1_000


def bought(tenant_id: str, reserved: int, model_id: str = "tiny", **fields: Any) -> admin_pb2.Reservation:
    return admin_pb2.Reservation(
        tenant_id=tenant_id, model_id=model_id, reserved_milli_mu_per_minute=reserved, **fields
    )


class Shop(Office):
    """The admin service with ten tenants and a model of four replicas: 320 MU/min may be sold."""

    async def furnish(self) -> None:
        await super().furnish()
        for number in range(10):
            await self.call("CreateTenant", tenant=admin_pb2.Tenant(tenant_id=f"t{number}"))

    async def apply(self, *reservations: admin_pb2.Reservation, **fields: Any) -> Any:
        return await self.call("ApplyReservations", reservations=reservations, **fields)

    async def sold(self, model_id: str = "tiny") -> dict[str, int]:
        listed = (await self.call("ListReservations", model_id=model_id)).reservations
        return {reservation.tenant_id: reservation.reserved_milli_mu_per_minute for reservation in listed}


@pytest.fixture
async def shop() -> Shop:
    shop = Shop()
    await shop.furnish()
    return shop


def names(reservations: Sequence[admin_pb2.Reservation]) -> list[str]:
    return [reservation.tenant_id for reservation in reservations]


async def test_what_is_applied_is_there_and_again_is_nothing(shop: Shop) -> None:
    """Proves creation, change, deletion of others only where asked, and that a repetition changes nothing."""
    first = await shop.apply(bought("t1", 10 * MU), bought("t0", 20 * MU, weight=3))
    assert (names(first.created), first.unchanged) == (["t0", "t1"], 0)
    assert all(reservation.etag for reservation in first.created)
    wanted = (bought("t1", 15 * MU), bought("t2", 5 * MU), bought("t0", 20 * MU, weight=3, tier=5))
    second = await shop.apply(*wanted)
    assert (names(second.created), names(second.updated), second.unchanged) == (["t2"], ["t1"], 1)
    assert not second.deleted
    third = await shop.apply(*wanted[:2], complete_model_ids=["tiny"])
    assert (names(third.deleted), third.deleted[0].weight, third.unchanged) == (["t0"], 3, 2)
    before = await shop.store.list(keys.POLICIES)
    again = await shop.apply(*wanted[:2], complete_model_ids=["tiny"])
    assert (len(again.created), len(again.updated), len(again.deleted), again.unchanged) == (0, 0, 0, 2)
    assert await shop.store.list(keys.POLICIES) == before
    assert await shop.sold() == {"t1": 15 * MU, "t2": 5 * MU}


async def test_checks_only_answers_what_would_change(shop: Shop) -> None:
    """Proves that validate_only answers the same changes and writes nothing."""
    await shop.apply(bought("t0", 10 * MU), bought("t1", 10 * MU))
    before = await shop.store.list(keys.PREFIX)
    fields: dict[str, Any] = {"complete_model_ids": ["tiny"], "validate_only": True}
    tried = await shop.apply(bought("t1", 11 * MU), bought("t2", 1), **fields)
    assert (names(tried.created), names(tried.updated), names(tried.deleted)) == (["t2"], ["t1"], ["t0"])
    assert await shop.store.list(keys.PREFIX) == before


async def test_everything_wrong_is_said_at_once_and_nothing_is_written(shop: Shop) -> None:
    """Proves that bad values, duplicates and unknown names are all named, each by its place, and none is written."""
    with pytest.raises(InvalidArgumentError) as refused:
        await shop.apply(
            bought("t0", 10 * MU),
            bought("t1", -1),
            bought("t2", 2**63 - 1),
            bought("t3", 0),
            bought("t4", 1, burst_ceiling_milli_mu_per_minute=-5),
            bought("t5", 1, tier=10),
            bought("t0", 11 * MU),
            bought("nobody", 1),
            bought("t6", 1, model_id="none"),
        )
    for said in (*(f"reservations[{place}]" for place in range(1, 7)), "t0 on tiny is reservations[0]"):
        assert said in refused.value.message
    assert "no tenant 'nobody'" in refused.value.message
    assert "no model 'none'" in refused.value.message
    assert refused.value.metadata["problems"] == "8"
    assert await shop.sold() == {}
    with pytest.raises(NotFoundError) as missing:
        await shop.apply(bought("t0", 1), complete_model_ids=["none"])
    assert missing.value.reason is Reason.UNKNOWN_MODEL
    with pytest.raises(InvalidArgumentError, match="complete_model_ids"):
        await shop.apply(complete_model_ids=["/"])


def test_refusals_stay_small_and_name_the_most_basic() -> None:
    """Proves that a thousand problems fit into an error's metadata, and that values come before names and capacity."""
    refusals = Refusals()
    refusals.raise_if_any()
    refusals.add(FailedPreconditionError("too much", reason=Reason.CAPACITY_EXCEEDED))
    with pytest.raises(FailedPreconditionError, match=r"^too much$"):
        refusals.raise_if_any()
    for number in range(1_000):
        refusals.add(NotFoundError(f"there is no tenant 't{number}'", reason=Reason.UNKNOWN_TENANT))
    with pytest.raises(NotFoundError, match=r"1,001 problems.*and 981 more") as said:
        refusals.raise_if_any()
    assert len(said.value.message) < 2_000


@pytest.mark.parametrize("text", ["x", "\N{SNOWMAN}"])
@pytest.mark.parametrize("count", [2, 16, 100])
def test_many_refusals_fit_into_what_an_error_travels_in(text: str, count: int) -> None:
    """Proves that status, details and blamed field stay below the 8 KiB of metadata that a client takes, and that what
    is left out is counted."""
    refusals = Refusals()
    for number in range(count):
        refusals.add(InvalidArgumentError(f"reservations[{number}]: {text * 300} is wrong", field="reservations"))
    with pytest.raises(InvalidArgumentError) as refused:
        refusals.raise_if_any()
    details = base64.b64encode(to_status(refused.value).SerializeToString())
    assert len(quote(refused.value.message)) + len(details) < 8 << 10
    named = refused.value.message.count(" is wrong")
    assert named >= 1
    assert (f"and {count - named:,} more" in refused.value.message) == (named < count)


def test_a_file_has_an_end() -> None:
    """Proves the bound on entries."""
    with pytest.raises(InvalidArgumentError, match="in parts"):
        policies.checked([bought("a", 1)] * (policies.ENTRIES_MAX + 1), Refusals())


async def test_stale_etags_are_named_and_nobodys_change_is_lost(shop: Shop) -> None:
    """Proves that entries read before others changed or deleted them are refused by name, unless they say the same."""
    read = {r.tenant_id: r for r in (await shop.apply(*(bought(f"t{n}", 10 * MU) for n in range(4)))).created}
    await shop.call("SetReservation", reservation=bought("t0", 30 * MU))
    await shop.call("SetReservation", reservation=bought("t1", 20 * MU))
    await shop.call("DeleteReservation", tenant_id="t2", model_id="tiny")
    mine = []
    for tenant_id, reserved in (("t0", 20), ("t1", 20), ("t2", 20), ("t3", 20)):
        mine.append(bought(tenant_id, reserved * MU, etag=read[tenant_id].etag))
    with pytest.raises(ConflictError) as refused:
        await shop.apply(*mine)
    assert refused.value.reason is Reason.CONFLICT
    assert "t0 on tiny: somebody changed it" in refused.value.message
    assert "t2 on tiny: somebody deleted it" in refused.value.message
    assert "t1" not in refused.value.message, "it is what is wanted already"
    assert await shop.sold() == {"t0": 30 * MU, "t1": 20 * MU, "t3": 10 * MU}
    applied = await shop.apply(mine[1], mine[3])
    assert (names(applied.updated), applied.unchanged) == (["t3"], 1)


async def test_sales_stop_at_capacity(shop: Shop) -> None:
    """Proves the guard of both calls: up to the capacity, not beyond, with numbers and a remedy; less is fine."""
    await shop.apply(bought("t0", 200 * MU), bought("t1", 120 * MU))
    for refused_call in (
        shop.apply(bought("t2", 1)),
        shop.apply(bought("t0", 201 * MU), validate_only=True),
        shop.call("SetReservation", reservation=bought("t2", 1)),
        shop.call("SetReservation", reservation=bought("t0", 200 * MU + 1), validate_only=True),
    ):
        with pytest.raises(FailedPreconditionError) as refused:
            await refused_call
        assert refused.value.reason is Reason.CAPACITY_EXCEEDED
        assert refused.value.metadata["capacity_milli_mu_per_minute"] == "320000"
        assert "--oversell" in refused.value.message
        assert "fairlead capacity plan tiny" in refused.value.message
    moved = await shop.apply(bought("t0", 190 * MU), bought("t2", 10 * MU))
    assert (names(moved.created), names(moved.updated)) == (["t2"], ["t0"]), "moved, not grown"
    await shop.call("SetReservation", reservation=bought("t3", 50 * MU), allow_oversell=True)
    await shop.apply(bought("t4", 50 * MU), allow_oversell=True)
    assert sum((await shop.sold()).values()) == 420 * MU
    await shop.call("SetReservation", reservation=bought("t3", 40 * MU))
    await shop.apply(bought("t4", 45 * MU), bought("t3", 45 * MU))
    assert sum((await shop.sold()).values()) == 410 * MU, "still above, and less is always allowed"
    effort = bought("t5", 0, burst_ceiling_milli_mu_per_minute=10)
    await shop.call("SetReservation", reservation=effort)


async def test_a_policy_may_exceed_several_models_at_once(shop: Shop) -> None:
    """Proves that each model that is oversold is named."""
    await shop.call("CreateModel", model=a_model(model_id="other", replicas_max=1))
    with pytest.raises(FailedPreconditionError) as refused:
        await shop.apply(bought("t0", 81 * MU, "other"), bought("t0", 321 * MU))
    assert refused.value.reason is Reason.CAPACITY_EXCEEDED
    assert "other may sell 80 MU/min" in refused.value.message
    assert "tiny may sell 320 MU/min" in refused.value.message


H = admin_pb2.Headroom


@pytest.mark.parametrize(
    ("replicas_max", "headroom", "live", "capacity"),
    [
        (0, H.HEADROOM_NONE, None, None),
        (0, H.HEADROOM_RACK, LiveCapacity(160 * MU, 80 * MU, 80 * MU), 80 * MU),
        (0, H.HEADROOM_NONE, LiveCapacity(0, 0, 0), 0),
        (4, H.HEADROOM_NONE, None, 320 * MU),
        (4, H.HEADROOM_UNSPECIFIED, None, 320 * MU),
        (4, H.HEADROOM_REPLICA, None, 240 * MU),
        (1, H.HEADROOM_HOST, None, 0),
        (4, H.HEADROOM_HOST, LiveCapacity(320 * MU, 160 * MU, 160 * MU), 160 * MU),
        (4, H.HEADROOM_NONE, LiveCapacity(500 * MU, 500 * MU, 0), 500 * MU),
        (2, H.HEADROOM_REPLICA, LiveCapacity(60 * MU, 30 * MU, 30 * MU), 80 * MU),
    ],
)
def test_the_capacity_that_counts(
    replicas_max: int, headroom: admin_pb2.Headroom.ValueType, live: LiveCapacity | None, capacity: int | None
) -> None:
    """Proves: live or planned, whichever is more, each less its headroom; nothing known forbids nothing."""
    model = a_model(replicas_max=replicas_max, headroom=headroom)
    assert capacity_for_sale(model, live) == capacity
    if capacity is not None:
        assert Sale(model, 0, capacity).refusal(live) is None
        assert Sale(model, 0, capacity + 1).refusal(live) is not None
        assert Sale(model, capacity + 5, capacity + 5).refusal(live) is None


async def test_two_sellers_never_sell_the_same_capacity(shop: Shop) -> None:
    """Proves that concurrent sales, each of which fits, do not exceed the capacity together."""

    async def attempt(call: Any) -> bool:
        try:
            await call
        except FailedPreconditionError:
            return False
        return True

    single = [shop.call("SetReservation", reservation=bought(f"t{n}", 100 * MU)) for n in range(5)]
    many = [shop.apply(bought(f"t{n}", 50 * MU), bought(f"t{n + 1}", 50 * MU)) for n in (5, 7)]
    sold = await asyncio.gather(*(attempt(call) for call in (*single, *many)))
    assert sum(sold) == 3
    assert sum((await shop.sold()).values()) == 300 * MU


async def test_a_lost_seller_would_oversell_without_the_guard(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that the test above can fail: with the guard's condition left out, both sales pass."""
    commit = shop.store.commit

    async def unguarded(
        expects: Sequence[Expect], puts: Mapping[str, bytes], deletes: Sequence[str] = ()
    ) -> int | None:
        await asyncio.sleep(0)
        return await commit([expect for expect in expects if "guards/" not in expect.key], puts, deletes)

    monkeypatch.setattr(shop.store, "commit", unguarded)
    calls = [shop.apply(bought(f"t{number}", 200 * MU)) for number in range(2)]
    await asyncio.gather(*calls)
    assert sum((await shop.sold()).values()) == 400 * MU


async def test_lowering_what_somebody_deleted_meanwhile_oversells_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves that a reduction computed from a reservation that is gone is computed anew, and refused as the sale that
    it has become."""
    await shop.call("SetReservation", reservation=bought("t0", 300 * MU))
    commit, other = shop.store.commit, asyncio.Event()

    async def overtaken(expects: Any, puts: Any, deletes: Any = ()) -> int | None:
        if not other.is_set():
            other.set()
            await shop.call("DeleteReservation", tenant_id="t0", model_id="tiny")
            await shop.apply(bought("t1", 320 * MU))
        return await commit(expects, puts, deletes)

    monkeypatch.setattr(shop.store, "commit", overtaken)
    with pytest.raises(FailedPreconditionError, match="200 too much"):
        await shop.call("SetReservation", reservation=bought("t0", 200 * MU))
    assert await shop.sold() == {"t1": 320 * MU}


async def test_live_capacity_is_sold_once(shop: Shop) -> None:
    """Proves that where only live capacity counts, replicas to come do not, of two sales at once one is made, and
    nothing grows while the allocator cannot be asked."""
    with pytest.raises(UnavailableError, match="allocator cannot say"):
        await shop.call("SetReservation", reservation=bought("t0", 60 * MU), live_capacity_only=True)
    shop.live = LiveCapacity(80 * MU, 80 * MU, 0)
    calls = [
        shop.call("SetReservation", reservation=bought(f"t{number}", 60 * MU), live_capacity_only=True)
        for number in range(2)
    ]
    first, second = await asyncio.gather(*calls, return_exceptions=True)
    refused = second if isinstance(second, BaseException) else first
    assert isinstance(refused, FailedPreconditionError)
    assert "may sell 80 MU/min in all (of its live capacity now)" in refused.message
    assert "fairlead quota set" in refused.message
    assert len(await shop.sold()) == 1
    await shop.call("SetReservation", reservation=bought("t2", 60 * MU))
    shop.live = None
    await shop.call("SetReservation", reservation=bought("t2", 50 * MU), live_capacity_only=True)
    with pytest.raises(InvalidArgumentError, match="contradict"):
        await shop.call("SetReservation", reservation=bought("t2", 1), live_capacity_only=True, allow_oversell=True)


async def test_an_interrupted_policy_says_how_far_it_came_and_goes_on(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves that a store lost in the middle is said with the count in force, and that a repetition does the rest."""
    tenants = [f"many{number:03}" for number in range(150)]
    for tenant_id in tenants:
        await shop.call("CreateTenant", tenant=admin_pb2.Tenant(tenant_id=tenant_id))
    commit, writes = shop.store.commit, 0

    async def dying(expects: Sequence[Expect], puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> int | None:
        nonlocal writes
        writes += 1
        if writes == 3:
            raise UnavailableError("etcd does not answer", reason=Reason.STORE_UNAVAILABLE, retry_after_s=1.0)
        assert max(len(expects), len(puts) + len(deletes)) <= 128
        return await commit(expects, puts, deletes)

    monkeypatch.setattr(shop.store, "commit", dying)
    fields: dict[str, Any] = {"request_id": "the same"}
    with pytest.raises(UnavailableError, match="120 changes are in force") as refused:
        await shop.apply(*(bought(tenant_id, MU) for tenant_id in tenants), **fields)
    assert (refused.value.metadata["written"], refused.value.retry_after_s) == ("120", 1.0)
    rest = await shop.apply(*(bought(tenant_id, MU) for tenant_id in tenants), **fields)
    assert (len(rest.created), rest.unchanged) == (30, 120)
    assert await shop.apply(*(bought(tenant_id, MU) for tenant_id in tenants), **fields) == rest, "remembered"
    assert len(await shop.sold()) == 150


async def test_what_others_do_in_between_is_met(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that a change between two transactions is read and checked again: an etag it made stale is refused by
    name, and a tenant deleted meanwhile is."""
    tenants = [f"many{number:03}" for number in range(70)]
    for tenant_id in tenants:
        await shop.call("CreateTenant", tenant=admin_pb2.Tenant(tenant_id=tenant_id))
    first = await shop.apply(*(bought(tenant_id, MU) for tenant_id in tenants))
    commit, other = shop.store.commit, asyncio.Event()

    async def interrupted(expects: Any, puts: Any, deletes: Any = ()) -> int | None:
        revision = await commit(expects, puts, deletes)
        if not other.is_set():
            other.set()
            await shop.call("SetReservation", reservation=bought(tenants[-1], 3 * MU))
        return revision

    monkeypatch.setattr(shop.store, "commit", interrupted)
    mine = [bought(r.tenant_id, 2 * MU, etag=r.etag) for r in first.created]
    with pytest.raises(ConflictError, match=r"many069 on tiny: somebody changed it.*60 changes are in force"):
        await shop.apply(*mine)
    assert (await shop.sold())[tenants[-1]] == 3 * MU
    for entry in mine:
        entry.ClearField("etag")
    other.clear()

    async def deleting(expects: Any, puts: Any, deletes: Any = ()) -> int | None:
        if not other.is_set():
            other.set()
            await shop.call("DeleteTenant", tenant_id=tenants[-1])
        return await commit(expects, puts, deletes)

    monkeypatch.setattr(shop.store, "commit", deleting)
    with pytest.raises(NotFoundError, match="many069"):
        await shop.apply(*mine)
    applied = await shop.apply(*mine[:-1])
    assert len(applied.updated) + applied.unchanged == 69


entries = st.dictionaries(
    st.builds(Key, st.sampled_from(["a", "b"]), st.integers(0, 150).map(lambda n: f"t{n}")),
    st.integers(0, 50),
    max_size=200,
)


@given(stored=entries, wanted=entries)
def test_no_state_in_between_sells_more_than_before_or_after(stored: dict[Key, int], wanted: dict[Key, int]) -> None:
    """Proves the order of the transactions: each change once, in small batches of one model, freeing first."""

    def records(rates: dict[Key, int]) -> dict[Key, admin_pb2.Reservation]:
        return {
            key: bought(key.tenant_id, rate, key.model_id, burst_ceiling_milli_mu_per_minute=50)
            for key, rate in rates.items()
        }

    refusals = Refusals()
    change = policies.changes(records(wanted), records(stored), {"a"}, refusals)
    refusals.raise_if_any()
    state = dict(stored)
    after = {key: rate for key, rate in stored.items() if key.model_id != "a"} | wanted

    def total(rates: dict[Key, int], model_id: str) -> int:
        return sum(rate for key, rate in rates.items() if key.model_id == model_id)

    for batch in policies.batches(change, records(stored)):
        assert 0 < len(batch.puts) + len(batch.deletes) <= BATCH_MAX
        assert {key.model_id for key in (*batch.puts, *batch.deletes)} == {batch.model_id}
        for key in batch.deletes:
            del state[key]
        state |= {key: wanted[key] for key in batch.puts}
        for model_id in ("a", "b"):
            assert total(state, model_id) <= max(total(stored, model_id), total(after, model_id))
    assert state == after
