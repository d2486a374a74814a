"""Models."""

from __future__ import annotations

from common import keys
from common.clock import Clock
from common.store import Expect
from control_plane.core import check
from control_plane.core.activation import profile_in_force
from control_plane.core.paging import page
from control_plane.profiles import StoredProfiles
from control_plane.records import Tables, model_guard, stored_bytes, until_stored
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import AlreadyExistsError, FailedPreconditionError

_NAMED_MAX = 5


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
