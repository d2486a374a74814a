"""Policy files: many reservations checked together, then written in as few transactions as etcd allows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from common import keys
from common.store import Expect
from control_plane.core import check, policies
from control_plane.core.policies import Batch, Changes, Key, Refusals
from control_plane.core.sales import LiveCapacity, Sale
from control_plane.records import ATTEMPTS, Stored, Tables, model_guard, stored_bytes, tenant_guard
from control_plane.reservations import AskLive
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import ConflictError, FairleadError


@dataclass(frozen=True, slots=True)
class _There:
    """What was there at the last look, and the conditions under which it still is."""

    tenants: Mapping[str, Stored[admin_pb2.Tenant]]
    models: Mapping[str, Stored[admin_pb2.Model]]
    guards: dict[str, Expect]
    reservations: Mapping[Key, Stored[admin_pb2.Reservation]]

    @property
    def records(self) -> dict[Key, admin_pb2.Reservation]:
        """The reservations alone."""
        return {key: stored.record for key, stored in self.reservations.items()}


@dataclass(slots=True)
class _Written:
    """What has been written so far, over all looks."""

    created: dict[Key, admin_pb2.Reservation] = field(default_factory=dict)
    updated: dict[Key, admin_pb2.Reservation] = field(default_factory=dict)
    deleted: dict[Key, admin_pb2.Reservation] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.created) + len(self.updated) + len(self.deleted)

    def take(self, change: Changes, batch: Batch, revision: int) -> None:
        """Notes a batch that was written."""
        for key in batch.puts:
            new = key in change.created
            record = admin_pb2.Reservation()
            record.CopyFrom((change.created if new else change.updated)[key])
            record.etag = str(revision)
            (self.created if new or key in self.created else self.updated)[key] = record
        self.deleted.update((key, change.deleted[key]) for key in batch.deletes)


class Policies:
    """What an administrator does with many reservations at once.

    Everything is checked before anything is written: fields, names, etags, capacity. The writes then go out in
    transactions of one model each, at most 60 changes in one. What is atomic: each transaction; and a request of one
    model, one kind (deleting; lowering or moving; raising) and at most 60 changes as a whole. What is not: more than
    that. Deletions and reductions go first, so that no state in between sells more than the larger of before and after.

    Each transaction holds only while nobody has touched what it was computed from: the reservation, the model, whatever
    else was sold of the model, the tenant's existence. Where somebody has, everything is read and checked again, and
    goes on with the rest. An error after the first transaction says how many changes are in force; what is already as
    it should be is no change and no conflict, so that the same request again does the rest.

    Args:
        tables: The records.
        live: Asks the allocator.
    """

    def __init__(self, tables: Tables, live: AskLive) -> None:
        self._tables = tables
        self._live = live

    async def apply(self, request: admin_pb2.ApplyReservationsRequest) -> admin_pb2.ApplyReservationsResponse:
        """See AdminService.

        Raises:
            FairleadError: Fields are wrong, names unknown, etags stale, or capacities exceeded: all of it at once.
        """
        refusals = Refusals()
        # A hundred thousand entries take seconds: the loop goes on meanwhile.
        wanted = await asyncio.to_thread(policies.checked, request.reservations, refusals)
        complete = {check.model_id(model_id, "complete_model_ids") for model_id in request.complete_model_ids}
        model_ids = {key.model_id for key in wanted} | complete
        written, alive = _Written(), dict[str, LiveCapacity | None]()
        idle = 0
        while idle < ATTEMPTS:
            try:
                there = await self._look(model_ids)
                policies.check_parents(wanted, complete, there.tenants.keys(), there.models.keys(), refusals)
                change = await asyncio.to_thread(policies.changes, wanted, there.records, complete, refusals)
                if not request.allow_oversell and not refusals.errors:
                    await self._check_sales(change, there, alive, refusals)
                refusals.raise_if_any()
            except FairleadError as error:
                raise _with_progress(error, len(written)) from None
            if request.validate_only:
                return _answer(change.created, change.updated, change.deleted, len(wanted))
            before = len(written)
            try:
                if await self._write(change, there, written):
                    return _answer(written.created, written.updated, written.deleted, len(wanted))
            except FairleadError as error:
                raise _with_progress(error, len(written)) from None
            idle = 0 if len(written) > before else idle + 1
        raise _with_progress(
            ConflictError(
                "others keep changing these reservations at the same time; apply them again", retry_after_s=0.5
            ),
            len(written),
        )

    async def _look(self, model_ids: Iterable[str]) -> _There:
        tenants = {stored.record.tenant_id: stored for stored in await self._tables.tenants.list()}
        models = {stored.record.model_id: stored for stored in await self._tables.models.list()}
        guards: dict[str, Expect] = {}
        reservations: dict[Key, Stored[admin_pb2.Reservation]] = {}
        for model_id in sorted(model_ids):
            # The guard first: whoever sells of the model after this moves it.
            guards[model_id] = await self._tables.guard(model_guard(model_id))
            for stored in await self._tables.reservations.list(model_id + "/"):
                reservations[policies.key_of(stored.record)] = stored
        return _There(tenants, models, guards, reservations)

    async def _check_sales(
        self, change: Changes, there: _There, alive: dict[str, LiveCapacity | None], refusals: Refusals
    ) -> None:
        """Refuses what capacity does not cover; `alive` remembers what the allocator said."""
        after = {**there.records, **change.created, **change.updated}
        for key in change.deleted:
            del after[key]
        before, sold = policies.sold(there.records.values()), policies.sold(after.values())
        sales = [
            Sale(there.models[model_id].record, before.get(model_id, 0), total)
            for model_id, total in sorted(sold.items())
            if total > before.get(model_id, 0)
        ]
        samples = {key.model_id: reservation for key, reservation in {**change.updated, **change.created}.items()}
        unknown = [sale.model.model_id for sale in sales if sale.model.model_id not in alive]
        alive |= zip(
            unknown, await asyncio.gather(*(self._live(samples[model_id]) for model_id in unknown)), strict=True
        )
        for sale in sales:
            if refusal := sale.refusal(alive[sale.model.model_id]):
                refusals.add(refusal)

    async def _write(self, change: Changes, there: _There, written: _Written) -> bool:
        """Writes until all is written; False where somebody was in between."""
        for batch in policies.batches(change, there.records):
            if batch.deletes:
                stored = [there.reservations[key] for key in batch.deletes]
                names = [one.entry.key for one in stored]
                revision = await self._tables.store.commit([one.unchanged() for one in stored], {}, names)
            else:
                revision = await self._put(batch, change, there)
            if revision is None:
                return False
            written.take(change, batch, revision)
        return True

    async def _put(self, batch: Batch, change: Changes, there: _There) -> int | None:
        guard = model_guard(batch.model_id)
        expects = [there.models[batch.model_id].unchanged(), there.guards[batch.model_id]]
        expects += [there.tenants[tenant_id].exists() for tenant_id in sorted({key.tenant_id for key in batch.puts})]
        values = {guard: b""}
        for key in batch.puts:
            name, stored = keys.policy(*key), there.reservations.get(key)
            expects.append(stored.unchanged() if stored is not None else Expect.absent(name))
            values[name] = stored_bytes(change.created.get(key) or change.updated[key])
            values[tenant_guard(key.tenant_id)] = b""
        revision = await self._tables.store.commit(expects, values)
        if revision is not None:
            there.guards[batch.model_id] = Expect(guard, revision=revision)
        return revision


def _answer(
    created: Mapping[Key, admin_pb2.Reservation],
    updated: Mapping[Key, admin_pb2.Reservation],
    deleted: Mapping[Key, admin_pb2.Reservation],
    wanted: int,
) -> admin_pb2.ApplyReservationsResponse:
    return admin_pb2.ApplyReservationsResponse(
        created=[created[key] for key in sorted(created)],
        updated=[updated[key] for key in sorted(updated)],
        deleted=[deleted[key] for key in sorted(deleted)],
        unchanged=wanted - len(created) - len(updated),
    )


def _with_progress(error: FairleadError, written: int) -> FairleadError:
    if not written:
        return error
    message = error.message.replace("nothing was written", "nothing more was written")
    return type(error)(
        f"{message}; {written:,} changes are in force already: put it right and apply the rest with the same request",
        reason=error.reason,
        metadata={**error.metadata, "written": str(written)},
        retry_after_s=error.retry_after_s,
        field=error.field,
    )
