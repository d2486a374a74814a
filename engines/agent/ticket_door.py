"""The door for clients with tickets: a port of its own, so that nothing else of the agent is within their reach."""

from __future__ import annotations

import dataclasses
from typing import Any

from common.clock import Clock
from common.rpc import GrpcServer
from common.telemetry import Telemetry
from engines.agent.issuers import Issuers
from engines.agent.metrics import AgentMetrics
from engines.agent.record import ReplicaRecord
from engines.agent.requests import Requests
from engines.agent.ticket_reports import SERVICE as REPORT_SERVICE
from engines.agent.ticket_reports import TicketReportServicer
from engines.agent.ticket_service import SERVICE as TICKET_SERVICE
from engines.agent.ticket_service import TicketServicer
from engines.config import EngineConfig
from fairlead.engine.v1 import ticket_pb2_grpc
from fairlead.inference.v1 import ticket_pb2_grpc as public_grpc


class TicketDoor:
    """Takes tickets where the settings say so; does nothing where they do not.

    Args:
        config: The settings.
        telemetry: Joins traces.
        record: Who this replica is.
        requests: Serves requests.
        metrics: Shows how many tickets are open.
        clock: Monotonic time.
        inner: The agent's own server, where routers follow their tickets.
    """

    def __init__(
        self,
        config: EngineConfig,
        telemetry: Telemetry,
        *,
        record: ReplicaRecord,
        requests: Requests,
        metrics: AgentMetrics,
        clock: Clock,
        inner: GrpcServer,
    ) -> None:
        self._server: GrpcServer | None = None
        if not config.tickets:
            return
        issuers = Issuers(clock)
        metrics.gauge(
            "tickets_open", "Tickets that run or that their routers have not settled", lambda: issuers.unacknowledged
        )
        self._reports = TicketReportServicer(record, issuers)
        inner.add(ticket_pb2_grpc.add_TicketReportServiceServicer_to_server, self._reports, REPORT_SERVICE)
        self._server = GrpcServer(dataclasses.replace(config, grpc_port=config.ticket_port), telemetry)
        servicer: Any = TicketServicer(record.replica_id, issuers, requests)
        self._server.add(public_grpc.add_TicketServiceServicer_to_server, servicer, TICKET_SERVICE)

    async def start(self) -> str:
        """Listens.

        Returns:
            host:port that clients dial; empty where no tickets are taken.
        """
        return "" if self._server is None else await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Ends the streams of clients within `grace_s` seconds; routers hear what became of them."""
        if self._server is not None:
            await self._server.drain_and_stop(grace_s)
            self._reports.close()
