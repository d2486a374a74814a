"""Models and reservations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from common import keys
from common.clock import Clock
from common.store import Expect
from control_plane.core import check
from control_plane.core.activation import profile_in_force
from control_plane.core.paging import page
from control_plane.profiles import StoredProfiles
from control_plane.records import Tables, model_guard, stored_bytes, tenant_guard, until_stored
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import AlreadyExistsError, ConflictError, FailedPreconditionError, NotFoundError, Reason

_NAMED_MAX = 5

Shortfall = Callable[[admin_pb2.Reservation], Awaitable[int]]


class Models:
    """What an administrator does with models.

    Args:
        tables: The records.
        clock: Dates creations.
        profiles: Cost profiles a model may name.
    """

    def __init__(self, tables: Tables, clock: Clock, profiles: StoredProfiles) -> None:
        self._tables = tables
        self._clock = clock
        self._profiles = profiles

    async def create(self, request: admin_pb2.CreateModelRequest) -> admin_pb2.Model:
        """See AdminService."""
        model = check.model(request.model, await self._profiles.catalogue())
        model.create_time.FromNanoseconds(self._clock.wall_ns())
        key = keys.model(model.model_id)
        taken = AlreadyExistsError(f"there is a model {model.model_id!r} already")
        if await self._tables.models.find(key):
            raise taken
        if request.validate_only:
            return model
        revision = await self._tables.store.commit([Expect.absent(key)], {key: stored_bytes(model)})
        if revision is None:
            raise taken
        model.etag = str(revision)
        return model

    async def get(self, request: admin_pb2.GetModelRequest) -> admin_pb2.Model:
        """See AdminService."""
        return (await self._tables.models.require(keys.model(check.model_id(request.model_id)))).record

    async def list(self, request: admin_pb2.ListModelsRequest) -> admin_pb2.ListModelsResponse:
        """See AdminService."""
        found = [stored.record for stored in await self._tables.models.list()]
        models, token = page(found, lambda model: model.model_id, request.page_size, request.page_token)
        return admin_pb2.ListModelsResponse(models=models, next_page_token=token)

    async def update(self, request: admin_pb2.UpdateModelRequest) -> admin_pb2.Model:
        """See AdminService."""
        model = check.model(request.model, await self._profiles.catalogue())
        key = keys.model(model.model_id)

        async def attempt() -> admin_pb2.Model | None:
            stored = await self._tables.models.require(key)
            stored.check_etag(request.model.etag)
            model.create_time.CopyFrom(stored.record.create_time)
            model.previous_profile_id = _previous(stored.record, model)
            if request.validate_only:
                return model
            revision = await self._tables.store.commit([stored.unchanged()], {key: stored_bytes(model)})
            if revision is None:
                return None
            model.etag = str(revision)
            return model

        return await until_stored(attempt)

    async def delete(self, request: admin_pb2.DeleteModelRequest) -> admin_pb2.DeleteModelResponse:
        """See AdminService."""
        key = keys.model(check.model_id(request.model_id))
        guard = model_guard(request.model_id)

        async def attempt() -> admin_pb2.DeleteModelResponse | None:
            stored = await self._tables.models.require(key)
            stored.check_etag(request.etag)
            unmoved = await self._tables.guard(guard)
            buyers = [r.record.tenant_id for r in await self._tables.reservations.list(request.model_id + "/")]
            if buyers:
                named = ", ".join(buyers[:_NAMED_MAX]) + (", ..." if len(buyers) > _NAMED_MAX else "")
                raise FailedPreconditionError(
                    f"model {request.model_id} has {len(buyers)} reservations ({named}): delete them first"
                )
            if request.validate_only:
                return admin_pb2.DeleteModelResponse()
            revision = await self._tables.store.commit([stored.unchanged(), unmoved], {}, [key, guard])
            return None if revision is None else admin_pb2.DeleteModelResponse()

        return await until_stored(attempt)


def _previous(stored: admin_pb2.Model, changed: admin_pb2.Model) -> str:
    """What a rollback goes back to after an update: what was in force, if the update puts another one there."""
    present = profile_in_force(stored)
    return stored.previous_profile_id if profile_in_force(changed) == present else present


class Reservations:
    """What an administrator does with reservations.

    Args:
        tables: The records.
        shortfall: Asks the allocator what live capacity would leave uncovered with a reservation, milli-MU per minute;
            0 where it cannot be asked.
    """

    def __init__(self, tables: Tables, shortfall: Shortfall) -> None:
        self._tables = tables
        self._shortfall = shortfall

    async def set(self, request: admin_pb2.SetReservationRequest) -> admin_pb2.Reservation:
        """See AdminService. More than live capacity may be reserved: the answer says how much is not covered."""
        wanted = check.reservation(request.reservation)
        key = keys.policy(wanted.model_id, wanted.tenant_id)

        async def attempt() -> admin_pb2.Reservation | None:
            tenant = await self._tables.tenants.require(keys.tenant(wanted.tenant_id))
            model = await self._tables.models.require(keys.model(wanted.model_id))
            stored = await self._tables.reservations.find(key)
            etag = request.reservation.etag
            if stored is not None:
                stored.check_etag(etag)
            elif etag:
                raise ConflictError("somebody deleted this reservation since you read it")
            if request.validate_only:
                return wanted
            # Without an etag the reservation is replaced whatever it is, so only its parents are expected.
            expects = [tenant.exists(), model.exists(), *([stored.unchanged()] if stored and etag else [])]
            guards = {tenant_guard(wanted.tenant_id): b"", model_guard(wanted.model_id): b""}
            revision = await self._tables.store.commit(expects, {key: stored_bytes(wanted), **guards})
            if revision is None:
                return None
            wanted.etag = str(revision)
            return wanted

        answer = await until_stored(attempt)
        if answer.reserved_milli_mu_per_minute:
            answer.model_shortfall_milli_mu_per_minute = await self._shortfall(answer)
        return answer

    async def list(self, request: admin_pb2.ListReservationsRequest) -> admin_pb2.ListReservationsResponse:
        """See AdminService."""
        if request.model_id:
            check.model_id(request.model_id)
        below = request.model_id + "/" if request.model_id else ""
        records = [stored.record for stored in await self._tables.reservations.list(below)]
        wanted = [record for record in records if request.tenant_id in ("", record.tenant_id)]
        return admin_pb2.ListReservationsResponse(
            reservations=sorted(wanted, key=lambda record: (record.model_id, record.tenant_id))
        )

    async def delete(self, request: admin_pb2.DeleteReservationRequest) -> admin_pb2.DeleteReservationResponse:
        """See AdminService."""
        key = keys.policy(check.model_id(request.model_id), check.tenant_id(request.tenant_id))

        async def attempt() -> admin_pb2.DeleteReservationResponse | None:
            stored = await self._tables.reservations.find(key)
            if stored is None:
                raise NotFoundError(
                    f"tenant {request.tenant_id} has no reservation on model {request.model_id}",
                    reason=Reason.NOT_FOUND,
                )
            stored.check_etag(request.etag)
            if request.validate_only:
                return admin_pb2.DeleteReservationResponse()
            revision = await self._tables.store.commit([stored.unchanged()], {}, [key])
            return None if revision is None else admin_pb2.DeleteReservationResponse()

        return await until_stored(attempt)
