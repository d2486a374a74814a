"""A router that takes the place of another one waits until it may admit whom that one may."""

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

_PATIENCE_S: Final = 10.0
"""As long as a lease lasts: what a limiter that answers has not granted by then, it will not grant for this reason."""

log = get_logger(__name__)


async def until_granted(
    predecessor_id: str, store: Store, leases: LeaseDesk, holds: Holds, clock: Clock, stop: asyncio.Event
) -> None:
    """Waits until this router has a lease for every workload for which its predecessor has one.

    A router that has just come is granted something for everybody, but what others hold has to come back to the limiter
    first. While store or limiter are away it waits for them, and the predecessor serves on.

    Args:
        predecessor_id: The router whose place this one takes.
        store: Where its leases are.
        leases: Tells whether the limiter has answered this router.
        holds: Leases of this router.
        clock: Monotonic time.
        stop: Ends the wait.
    """
    answered_ns: int | None = None
    while not stop.is_set():
        try:
            missing = await _leased(predecessor_id, store) - _granted(holds, clock)
        except UnavailableError as error:
            log.warning("the predecessor's leases are not known", predecessor=predecessor_id, error=error.message)
        else:
            if leases.applied and answered_ns is None:
                answered_ns = clock.monotonic_ns()
            waited_ns = clock.monotonic_ns() - answered_ns if answered_ns is not None else 0
            if not missing or waited_ns > _PATIENCE_S * NS_PER_S:
                log.info("takes over", predecessor=predecessor_id, not_granted=len(missing))
                return
        await asyncio.sleep(_LOOK_INTERVAL_S)


async def _leased(router_id: str, store: Store) -> set[BucketKey]:
    listing = await store.list(keys.leases_of(router_id))
    tables = (quota_pb2.LeaseTable.FromString(entry.value) for entry in listing.entries)
    leases = (lease for table in tables for lease in table.leases)
    return {(lease.tenant_id, lease.model_id) for lease in leases if lease.rate_milli_mu_per_minute > 0}


def _granted(holds: Holds, clock: Clock) -> set[BucketKey]:
    return {key for key, rate in holds.rates(clock.monotonic_ns()).items() if rate > 0}
