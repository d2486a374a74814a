"""Tells the capacity allocator what tenants want over all routers: regularly, and at once when it changes notably."""

from __future__ import annotations

import asyncio

import grpc.aio

from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.rpc import LeaderClient
from fairlead.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from fairlead.errors import FairleadError, from_rpc_error
from ratelimiter.core.demand import DemandBook
from ratelimiter.desk import Desk
from ratelimiter.metrics import RateLimiterMetrics
from ratelimiter.translate import wants_to

log = get_logger(__name__)

_CALL_TIMEOUT_S = 1.0
# How often a notable change is looked for, as a part of the report interval.
_LOOKS_PER_INTERVAL = 5


class DemandReporter:
    """Reports while this instance leads.

    Args:
        desk: Knows the demand.
        allocator: Finds the leading allocator.
        clock: Paces reports.
        interval_s: Longest time between two reports.
        metrics: What to tell Prometheus.
    """

    def __init__(
        self, desk: Desk, allocator: LeaderClient, clock: Clock, interval_s: float, metrics: RateLimiterMetrics
    ) -> None:
        self._desk = desk
        self._allocator = allocator
        self._clock = clock
        self._interval_s = interval_s
        self._metrics = metrics
        self._told_epoch = 0
        self._told_ns = 0
        self._failing = False

    async def run(self) -> None:
        """Reports until cancelled."""
        while True:
            known = self._desk.demand()
            if known is not None and self._is_due(*known):
                await self._report(*known)
            await asyncio.sleep(self._interval_s / _LOOKS_PER_INTERVAL)

    def _is_due(self, epoch: int, demand: DemandBook) -> bool:
        in_turn = self._clock.monotonic_ns() - self._told_ns >= self._interval_s * NS_PER_S
        return in_turn or epoch != self._told_epoch or demand.notable

    async def _report(self, epoch: int, demand: DemandBook) -> None:
        self._told_epoch, self._told_ns = epoch, self._clock.monotonic_ns()
        request = capacity_pb2.ReportDemandRequest(epoch=epoch, wants=wants_to(demand.tell()))
        try:
            stub = capacity_pb2_grpc.CapacityServiceStub(self._allocator.channel())
            await stub.ReportDemand(request, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as failure:
            self._note(from_rpc_error(failure))
        except FairleadError as error:
            self._note(error)
        else:
            self._note(None)

    def _note(self, error: FairleadError | None) -> None:
        """Logs the first failure and the recovery; in between the allocator computes with the last demand it got."""
        self._metrics.demand_reports.labels("failed" if error else "taken").inc()
        if error is not None and not self._failing:
            log.warning("capacity allocator does not take demand", reason=error.reason.value, error=error.message)
        if error is None and self._failing:
            log.info("capacity allocator takes demand again")
        self._failing = error is not None
