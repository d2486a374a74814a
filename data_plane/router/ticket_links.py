"""Ticket links: one stream to every replica that takes tickets, with the key and the clock there and reports back."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

import grpc.aio

from common.clock import Clock
from common.logs import get_logger
from data_plane.router.core.fleet import Fleet
from data_plane.router.ticket_desk import TicketDesk
from data_plane.router.upstream_grpc import Channels
from fairlead.engine.v1 import ticket_pb2, ticket_pb2_grpc
from fairlead.errors import Reason, from_rpc_error

log = get_logger(__name__)

_SAY_S: Final = 1.0
_LOOK_S: Final = 0.5
_RECONNECT_S_MIN: Final = 0.1
_RECONNECT_S_MAX: Final = 2.0


@dataclass(slots=True)
class _Link:
    """One stream.

    Attributes:
        booked: The last of its messages that was.
        news: Set when the replica should hear something at once.
    """

    booked: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)


class TicketLinks:
    """Keeps the links.

    Args:
        desk: Issues the tickets; its ledger books the reports.
        fleet: The replicas.
        channels: Connections.
        clock: Monotonic time.
        router_id: This process, as replicas know it.
    """

    def __init__(self, desk: TicketDesk, fleet: Fleet, channels: Channels, clock: Clock, *, router_id: str) -> None:
        self._desk = desk
        self._fleet = fleet
        self._channels = channels
        self._clock = clock
        self._router_id = router_id
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._links: dict[str, _Link] = {}
        desk.on_given_back = self._given_back

    async def run(self) -> None:
        """Follows until cancelled. Then every ticket that is still open is settled by what is known of it."""
        try:
            await self._run()
        finally:
            self._desk.ledger.close()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as streams:
            while True:
                self._match(streams)
                self._desk.ledger.sweep()
                await asyncio.sleep(_LOOK_S)

    def _given_back(self) -> None:
        """A ticket was given back: replicas are told at once."""
        for link in self._links.values():
            link.news.set()

    def _match(self, streams: asyncio.TaskGroup) -> None:
        """Starts a stream for every new replica that takes tickets; ends those of forgotten ones that hold none."""
        members = {each.record.replica_id: each.record for each in self._fleet if each.record.ticket_address}
        needed = {*members, *self._desk.ledger.book.replicas()}
        for replica_id in [each for each in self._streams if each not in needed]:
            self._streams.pop(replica_id).cancel()
            self._desk.unlinked(replica_id)
        for replica_id, record in members.items():
            if replica_id not in self._streams:
                self._streams[replica_id] = streams.create_task(self._follow(replica_id, record.address))

    async def _follow(self, replica_id: str, address: str) -> None:
        """Follows one replica, through every reconnect, until cancelled."""
        delay_s = _RECONNECT_S_MIN
        while True:
            link = self._links[replica_id] = _Link()
            stub = ticket_pb2_grpc.TicketReportServiceStub(self._channels.get(address))
            call = None
            try:
                call = stub.FollowTickets(self._said(replica_id, link))
                async for reports in call:
                    if reports is None:  # what grpc gives for a message that it cannot parse
                        break
                    self._desk.ledger.booked(replica_id, reports)
                    link.booked = reports.number
                    self._desk.linked(replica_id)
                    delay_s = _RECONNECT_S_MIN
            except grpc.aio.AioRpcError as failure:
                if _is_gone(failure):
                    self._desk.ledger.lost(replica_id)
            except grpc.aio.UsageError as failure:  # the channel was closed under the call
                log.warning("ticket link not opened", replica_id=replica_id, error=str(failure))
            finally:
                del self._links[replica_id]
                if call is not None:
                    call.cancel()
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(2 * delay_s, _RECONNECT_S_MAX)

    async def _said(self, replica_id: str, link: _Link) -> AsyncIterator[ticket_pb2.FollowTicketsRequest]:
        """What a replica is told: first who asks, then the time, and what was booked and given back."""
        yield ticket_pb2.FollowTicketsRequest(
            replica_id=replica_id,
            router_id=self._router_id,
            key=self._desk.key(replica_id),
            now_ns=self._clock.monotonic_ns(),
        )
        while True:
            link.news.clear()
            yield ticket_pb2.FollowTicketsRequest(
                now_ns=self._clock.monotonic_ns(),
                acknowledged=link.booked,
                returned=self._desk.ledger.book.returned(replica_id),
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SAY_S):
                    await link.news.wait()


def _is_gone(failure: grpc.aio.AioRpcError) -> bool:
    """Whether the replica's process has ended: nothing listens at its address, or another one."""
    return "refused" in (failure.details() or "").lower() or from_rpc_error(failure).reason is Reason.UNKNOWN_REPLICA
