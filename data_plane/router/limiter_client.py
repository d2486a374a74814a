"""The router's side of the rate limiter: says each second, or at once, what it wants; applies what it is granted."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

import grpc.aio

from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from common.rpc import LeaderClient
from data_plane.router.batch_desk import BatchDesk
from data_plane.router.core.demand import Demand
from data_plane.router.core.holds import Holds
from data_plane.router.lease_desk import LeaseDesk
from fairlead.errors import FairleadError, from_rpc_error
from fairlead.quota.v1 import quota_pb2, quota_pb2_grpc

log = get_logger(__name__)

_REPORT_INTERVAL_S = 1.0
_REPORT_INTERVAL_S_MAX = 5.0
# Without any lease nothing can be admitted: asked for more often until there is one.
_FIRST_LEASE_INTERVAL_S = 0.1
# A tenant that comes back, or is refused for want of quota, is reported at once, but not more often than this. Under
# lasting overload somebody is always short: then, after so many, one report in four seconds comes early.
_EARLY_INTERVAL_S = 0.2
_EARLY_AT_ONCE = 4
_EARLY_PER_S = 0.25
_CALL_TIMEOUT_S = 1.5


class LimiterClient:
    """Reports wants to the leading rate limiter.

    Args:
        leader: Finds it.
        leases: Numbers reports, applies answers.
        demand: What tenants want.
        holds: What requests in flight hold.
        desk: What waits.
        clock: Monotonic time.
        router_id: This router.
        incarnation_id: This process.
        past_known: Whether the leases of an earlier process of this router have been seen; nothing is asked for before.
    """

    def __init__(
        self,
        *,
        leader: LeaderClient,
        leases: LeaseDesk,
        demand: Demand,
        holds: Holds,
        desk: BatchDesk,
        clock: Clock,
        router_id: str,
        incarnation_id: str,
        past_known: Callable[[], bool],
    ) -> None:
        self._leader = leader
        self._leases = leases
        self._demand = demand
        self._holds = holds
        self._desk = desk
        self._clock = clock
        self._router_id = router_id
        self._incarnation_id = incarnation_id
        self._past_known = past_known
        self._failing = False
        self._left = False
        self._notable = asyncio.Event()
        self._early = float(_EARLY_AT_ONCE)
        self._rested_ns = clock.monotonic_ns()
        demand.on_notable(self._notable.set)

    async def run(self) -> None:
        """Reports until it leaves."""
        while not self._left:
            interval_s = _REPORT_INTERVAL_S if self._leases.usable else _FIRST_LEASE_INTERVAL_S
            try:
                if self._past_known():
                    interval_s = await self._report()
                if self._failing:
                    log.info("rate limiter answers again")
                self._failing = False
            except FairleadError as error:
                # A standby, a limiter that is gone or a defect of it: the leases run on, then the safe rates.
                self._note_failure(error)
            await self._rest(interval_s * random.uniform(0.9, 1.0))

    async def _rest(self, interval_s: float) -> None:
        """Waits for the next report's turn, or for news that cannot wait so long."""
        now_ns = self._clock.monotonic_ns()
        self._early = min(_EARLY_AT_ONCE, self._early + _EARLY_PER_S * (now_ns - self._rested_ns) / NS_PER_S)
        self._rested_ns = now_ns
        if self._early < 1:
            await asyncio.sleep(interval_s)
            return
        early_s = min(interval_s, _EARLY_INTERVAL_S)
        await asyncio.sleep(early_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s - early_s):
                await self._notable.wait()
                self._early -= 1

    async def leave(self) -> None:
        """Says that this router admits nothing any more, so that others get its leases at once. Best effort, once."""
        if self._left:
            return
        self._left = True
        try:
            await self._report(leaving=True)
        except FairleadError as error:
            log.info("rate limiter not told", reason=error.reason.value)

    async def _report(self, *, leaving: bool = False) -> float:
        """Sends one report; returns seconds until the next."""
        channel = self._leader.channel()
        self._notable.clear()
        now_ns = self._clock.monotonic_ns()
        rows = self._demand.report(now_ns, held=self._holds.held(), waiting=self._desk.waiting())
        request = quota_pb2.ReportWantsRequest(
            router_id=self._router_id,
            incarnation_id=self._incarnation_id,
            applied=[
                quota_pb2.TableVersion(shard=shard, epoch=epoch, table_number=number)
                for shard, (epoch, number) in self._leases.applied.items()
            ],
            wants=[
                quota_pb2.Want(
                    tenant_id=row.tenant_id,
                    model_id=row.model_id,
                    wants_milli_mu_per_minute=row.wants_milli_mu_per_minute,
                    used_milli_mu_per_minute=row.used_milli_mu_per_minute,
                    held_milli_mu=row.held_milli_mu,
                )
                for row in rows
            ],
            report_number=self._leases.next_report(),
            leaving=leaving,
        )
        try:
            answer = await quota_pb2_grpc.RateLimiterServiceStub(channel).ReportWants(request, timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as failure:
            raise from_rpc_error(failure) from failure
        if not leaving:
            self._leases.answer(answer)
            self._desk.look()
        interval_s = answer.refresh_interval.ToNanoseconds() / 1e9 or _REPORT_INTERVAL_S
        return float(min(_REPORT_INTERVAL_S_MAX, interval_s))

    def _note_failure(self, error: FairleadError) -> None:
        if not self._failing:
            log.warning("rate limiter does not answer", reason=error.reason.value, error=error.message)
        self._failing = True
