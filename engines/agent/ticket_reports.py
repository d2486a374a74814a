"""TicketReportService: routers follow what becomes of their tickets here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from engines.agent.issuers import Issuer, Issuers
from engines.agent.record import ReplicaRecord
from fairlead.engine.v1 import ticket_pb2, ticket_pb2_grpc
from fairlead.errors import NotFoundError, Reason

SERVICE: Final = ticket_pb2.DESCRIPTOR.services_by_name["TicketReportService"].full_name

_INTERVAL_S: Final = 1.0
# News that come closer together than this share one message. First tokens are news: requests may wait at the router for
# the room that a replica has after them, so that a longer pause is seen in others' time to first token.
_PAUSE_S: Final = 0.02


class TicketReportServicer(ticket_pb2_grpc.TicketReportServiceServicer):
    """Translates between gRPC and the issuers.

    Args:
        record: Who this replica is.
        issuers: The routers.
    """

    def __init__(self, record: ReplicaRecord, issuers: Issuers) -> None:
        self._record = record
        self._issuers = issuers
        self._closing = False

    async def FollowTickets(
        self, request_iterator: AsyncIterator[ticket_pb2.FollowTicketsRequest], context: Any
    ) -> AsyncIterator[ticket_pb2.TicketReports]:
        """See TicketReportService."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None:
            return
        if first.replica_id != self._record.replica_id:
            raise NotFoundError(
                f"the replica at this address is {self._record.replica_id!r}, not {first.replica_id!r}",
                reason=Reason.UNKNOWN_REPLICA,
            )
        issuer = self._issuers.follow(first)
        stream = issuer.begin()
        issuer.hear(first)
        hearing = asyncio.create_task(_hear(issuer, stream, requests))
        loop = asyncio.get_running_loop()
        whole_s = 0.0
        try:
            while issuer.streams == stream and not hearing.done() and not self._done(issuer):
                issuer.news.clear()
                whole = loop.time() >= whole_s
                if whole:
                    whole_s = loop.time() + _INTERVAL_S
                yield issuer.message(whole=whole)
                await asyncio.sleep(_PAUSE_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, whole_s - loop.time())):
                        await issuer.news.wait()
        finally:
            hearing.cancel()
            issuer.leave(stream)

    def close(self) -> None:
        """Ends the streams as soon as their routers have heard everything."""
        self._closing = True

    def _done(self, issuer: Issuer) -> bool:
        return self._closing and not issuer.register.unacknowledged


async def _hear(issuer: Issuer, stream: int, requests: AsyncIterator[ticket_pb2.FollowTicketsRequest]) -> None:
    """Hears a router until its stream ends."""
    async for request in requests:
        if issuer.streams != stream:
            break
        issuer.hear(request)
    issuer.news.set()
