"""Reservations, one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from common import keys
from common.store import Expect
from control_plane.core import check
from control_plane.core.sales import LiveCapacity, Sale
from control_plane.records import Tables, model_guard, stored_bytes, tenant_guard, until_stored
from fairlead.admin.v1 import admin_pb2
from fairlead.errors import ConflictError, InvalidArgumentError, NotFoundError, Reason, UnavailableError

AskLive = Callable[[admin_pb2.Reservation], Awaitable[LiveCapacity | None]]
"""Asks the allocator what a model has, given a reservation that is to be sold of it; None where it cannot be asked."""

# An election of the allocator takes a few seconds.
_ALLOCATOR_RETRY_S = 2.0


class Reservations:
    """What an administrator does with reservations.

    Args:
        tables: The records.
        live: Asks the allocator.
    """

    def __init__(self, tables: Tables, live: AskLive) -> None:
        self._tables = tables
        self._live = live
        # Sales of one process take turns: only those of other processes make them repeat.
        self._turn = asyncio.Lock()

    async def set(self, request: admin_pb2.SetReservationRequest) -> admin_pb2.Reservation:
        """See AdminService. What the model's capacity does not cover is refused unless overselling is allowed; then
        the answer says how much live capacity does not cover.

        Raises:
            FairleadError: A field is wrong, a name unknown, an etag stale, the capacity is exceeded, or only live
                capacity is to count and the allocator cannot be asked.
        """
        wanted = check.reservation(request.reservation)
        if request.live_capacity_only and request.allow_oversell:
            raise InvalidArgumentError(
                "live_capacity_only and allow_oversell contradict each other: set one", field="live_capacity_only"
            )
        live = await self._live(wanted) if wanted.reserved_milli_mu_per_minute else None

        async def attempt() -> admin_pb2.Reservation | None:
            return await self._set(request, wanted, live)

        async with self._turn:
            return await until_stored(attempt)

    async def _set(
        self, request: admin_pb2.SetReservationRequest, wanted: admin_pb2.Reservation, live: LiveCapacity | None
    ) -> admin_pb2.Reservation | None:
        tenant = await self._tables.tenants.require(keys.tenant(wanted.tenant_id))
        model = await self._tables.models.require(keys.model(wanted.model_id))
        # The guard is read before what it guards: whoever sells of this model in between moves it.
        unmoved = await self._tables.guard(model_guard(wanted.model_id))
        reservations = await self._tables.reservations.list(wanted.model_id + "/")
        stored = next((r for r in reservations if r.record.tenant_id == wanted.tenant_id), None)
        etag = request.reservation.etag
        if stored is not None:
            stored.check_etag(etag)
        elif etag:
            raise ConflictError("somebody deleted this reservation since you read it")
        sold = sum(r.record.reserved_milli_mu_per_minute for r in reservations)
        before = stored.record.reserved_milli_mu_per_minute if stored is not None else 0
        after = sold - before + wanted.reserved_milli_mu_per_minute
        sale = Sale(model.record, sold, after, live_only=request.live_capacity_only)
        if sale.live_only and sale.grows and live is None:
            raise UnavailableError(
                f"the capacity allocator cannot say what {wanted.model_id} has now, and only live capacity was to be "
                "sold: try again, or sell ahead of its replicas with `fairlead quota set`",
                retry_after_s=_ALLOCATOR_RETRY_S,
            )
        if not request.allow_oversell and (refusal := sale.refusal(live)):
            raise refusal
        answer = admin_pb2.Reservation()
        answer.CopyFrom(wanted)
        if live is not None:
            answer.model_shortfall_milli_mu_per_minute = max(0, sale.sold_after - live.have)
        if request.validate_only:
            return answer
        key = keys.policy(wanted.model_id, wanted.tenant_id)
        # Whether it grows depends on what was there: that must still be there, with an etag or without.
        expects = [tenant.exists(), stored.unchanged() if stored is not None else Expect.absent(key)]
        if sale.grows and not request.allow_oversell:
            expects += [model.unchanged(), unmoved]
        else:
            expects.append(model.exists())
        guards = {tenant_guard(wanted.tenant_id): b"", model_guard(wanted.model_id): b""}
        revision = await self._tables.store.commit(expects, {key: stored_bytes(wanted), **guards})
        if revision is None:
            return None
        answer.etag = str(revision)
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
