"""A router that comes to serve beside others, or in the place of one, waits until it may admit whom they may."""

from __future__ import annotations

import asyncio
from typing import Final

from common import keys
from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.store import Store
from data_plane.router.core.holds import BucketKey, Holds
from data_plane.router.lease_desk import LeaseDesk
from fairlead.errors import UnavailableError
from fairlead.quota.v1 import quota_pb2

_LOOK_INTERVAL_S: Final = 0.2

PATIENCE_S: Final = 12.0
"""A little longer than a lease lasts: what a limiter that answers has not granted by then, it will not grant for this
reason."""

log = get_logger(__name__)


class Succession:
    """How a router comes to leases before its first request.

    One that has just come is granted something for everybody, but what others hold has to come back to the limiter
    first; and one that was restarted after a crash gets nothing before its own earlier leases have ended. Others serve
    on meanwhile. Without this, it would refuse what they would not have.

    Args:
        example_id: A router that serves already: this one is to have a lease for every workload for which that one has.
        store: Where its leases are.
        leases: Tells whether the limiter has answered this router.
        holds: Leases of this router.
        clock: Monotonic time.
        replaces: The example leaves once this router serves. Then it waits for a limiter and a store that are away;
            otherwise no longer than `PATIENCE_S`, and then serves at the safe rates.
    """

    def __init__(
        self, example_id: str, store: Store, leases: LeaseDesk, holds: Holds, clock: Clock, *, replaces: bool
    ) -> None:
        self._example_id = example_id
        self._store = store
        self._leases = leases
        self._holds = holds
        self._clock = clock
        self._replaces = replaces

    async def wait(self, stop: asyncio.Event) -> None:
        """Returns when it may serve, or `stop` is set."""
        since_ns = None if self._replaces else self._clock.monotonic_ns()
        while not stop.is_set():
            missing = await self._missing()
            if since_ns is None and missing is not None and self._leases.applied:
                since_ns = self._clock.monotonic_ns()
            waited_s = (self._clock.monotonic_ns() - since_ns) / NS_PER_S if since_ns is not None else 0.0
            if missing == 0 or waited_s > PATIENCE_S:
                log.info("serves beside", router=self._example_id, not_granted=missing, replaces=self._replaces)
                return
            await asyncio.sleep(_LOOK_INTERVAL_S)

    async def _missing(self) -> int | None:
        """For how many workloads there is no lease; None where that is not known."""
        try:
            listing = await self._store.list(keys.leases_of(self._example_id))
        except UnavailableError as error:
            log.warning("leases of the other router are not known", router=self._example_id, error=error.message)
            return None
        tables = (quota_pb2.LeaseTable.FromString(entry.value) for entry in listing.entries)
        leases = (lease for table in tables for lease in table.leases if lease.rate_milli_mu_per_minute > 0)
        return sum(not self._granted((lease.tenant_id, lease.model_id)) for lease in leases)

    def _granted(self, key: BucketKey) -> bool:
        view = self._holds.view(key, self._clock.monotonic_ns())
        return view.rate_milli_mu_per_minute > 0 and not view.expired
