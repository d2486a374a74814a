"""Load streams: one per known replica, the router's ears."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import grpc
import grpc.aio
from google.protobuf import duration_pb2

from common.clock import Clock
from common.logs import get_logger
from common.shard_map import Generation
from data_plane.router.assignment_exchange import AssignmentExchange
from data_plane.router.core.fleet import Fleet, Link, Member
from data_plane.router.core.loads import Report
from data_plane.router.upstream_grpc import Channels
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc

log = get_logger(__name__)

REPORT_INTERVAL_S = 1.0
_RECONNECT_S_MIN = 0.1
_RECONNECT_S_MAX = 2.0
_CHANNEL_GRACE_S = 300.0


class LoadWatch:
    """Keeps a load stream to every known replica.

    Args:
        fleet: Where reports go; its members are watched.
        channels: Connections.
        clock: Monotonic time.
        router_id: Who asks.
        freed: Told of every replica that has reported: it may have got room.
        exchange: Told which assignment every replica holds.
    """

    def __init__(
        self,
        fleet: Fleet,
        channels: Channels,
        clock: Clock,
        *,
        router_id: str,
        freed: Callable[[Member], None],
        exchange: AssignmentExchange,
    ) -> None:
        self._fleet = fleet
        self._freed = freed
        self._exchange = exchange
        self._channels = channels
        self._clock = clock
        self._request = engine_pb2.WatchLoadRequest(
            router_id=router_id,
            interval=duration_pb2.Duration(nanos=0, seconds=int(REPORT_INTERVAL_S)),
            with_cache=True,
        )
        self._changed = asyncio.Event()
        self._streams: dict[str, asyncio.Task[None]] = {}

    def update(self) -> None:
        """Looks at the fleet's members again: some came or went."""
        self._changed.set()

    async def run(self) -> None:
        """Watches until cancelled."""
        try:
            async with asyncio.TaskGroup() as streams:
                while True:
                    self._fleet.sweep(self._clock.monotonic_ns())
                    self._match(streams)
                    self._changed.clear()
                    try:
                        async with asyncio.timeout(1.0):
                            await self._changed.wait()
                    except TimeoutError:
                        continue
        finally:
            self._streams.clear()

    def _match(self, streams: asyncio.TaskGroup) -> None:
        """Starts a stream for every new member and ends those of members that are forgotten."""
        members = {member.record.replica_id: member.record.address for member in self._fleet}
        for replica_id in [replica_id for replica_id in self._streams if replica_id not in members]:
            self._streams.pop(replica_id).cancel()
        for replica_id, address in members.items():
            if replica_id not in self._streams:
                self._streams[replica_id] = streams.create_task(self._watch(replica_id, address))
        self._channels.keep_only(set(members.values()), _CHANNEL_GRACE_S)

    async def _watch(self, replica_id: str, address: str) -> None:
        """Follows one replica, through every reconnect, until cancelled."""
        delay_s = _RECONNECT_S_MIN
        while True:
            link = Link.SILENT
            try:
                async with aclosing(self._reports(address)) as reports:
                    async for report in reports:
                        if not self._take(replica_id, report):
                            break
                        delay_s = _RECONNECT_S_MIN
            except grpc.aio.AioRpcError as failure:
                if "refused" in (failure.details() or "").lower():
                    link = Link.REFUSED
            except grpc.aio.UsageError as failure:  # the channel was closed under the call
                log.warning("load stream not opened", replica_id=replica_id, error=str(failure))
            self._down(replica_id, link)
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(2 * delay_s, _RECONNECT_S_MAX)

    async def _reports(self, address: str) -> AsyncGenerator[engine_pb2.LoadReport, None]:
        """One stream, as far as it can be read."""
        call = engine_pb2_grpc.EngineServiceStub(self._channels.get(address)).WatchLoad(self._request)
        try:
            async for report in call:
                if report is None:  # what grpc gives for a message that it cannot parse
                    log.warning("load report cannot be read", address=address)
                    return
                yield report
        finally:
            call.cancel()

    def _take(self, replica_id: str, report: engine_pb2.LoadReport) -> bool:
        """Takes a report; False when another replica answers at this address."""
        if report.replica_id != replica_id:
            log.warning("another replica answers", replica_id=replica_id, answered=report.replica_id)
            return False
        now_ns = self._clock.monotonic_ns()
        member = self._fleet.report(replica_id, Report.of(report), report.state, now_ns)
        if member is None:
            return True
        if member.link is not Link.UP:
            log.info("replica reports", replica_id=replica_id, state=report.state)
            self._fleet.link(replica_id, Link.UP, now_ns)
        self._freed(member)
        record = member.record
        self._exchange.noticed(replica_id, record.model_id, record.address, Generation.of(report.assignment))
        return True

    def _down(self, replica_id: str, link: Link) -> None:
        member = self._fleet.get(replica_id)
        if member is not None and member.link is not link:
            log.warning("load stream lost", replica_id=replica_id, link=link.value, listed=member.listed)
        self._fleet.link(replica_id, link, self._clock.monotonic_ns())
        if self._fleet.get(replica_id) is None:
            self.update()
