"""RateLimiterService over gRPC: translation only."""

from __future__ import annotations

from typing import Any

from fairlead.errors import FairleadError
from fairlead.quota.v1 import quota_pb2, quota_pb2_grpc
from ratelimiter.config import RateLimiterConfig
from ratelimiter.desk import Desk
from ratelimiter.metrics import RateLimiterMetrics
from ratelimiter.translate import report_from


class RateLimiterService(quota_pb2_grpc.RateLimiterServiceServicer):
    """Answers while this instance leads.

    Args:
        desk: Grants.
        config: Pace.
        metrics: Counts reports.
    """

    def __init__(self, desk: Desk, config: RateLimiterConfig, metrics: RateLimiterMetrics) -> None:
        self._desk = desk
        self._refresh_ns = round(config.refresh_s * 1e9)
        self._metrics = metrics

    async def ReportWants(self, request: quota_pb2.ReportWantsRequest, context: Any) -> quota_pb2.ReportWantsResponse:
        """Takes a router's report; answers with its stored leases."""
        try:
            response = await self._answer(request)
        except FairleadError as error:
            self._metrics.reports.labels(error.reason.value.lower()).inc()
            raise
        self._metrics.reports.labels("left" if request.leaving else "granted").inc()
        response.refresh_interval.FromNanoseconds(self._refresh_ns)
        return response

    async def _answer(self, request: quota_pb2.ReportWantsRequest) -> quota_pb2.ReportWantsResponse:
        report = report_from(request)
        if request.leaving:
            self._desk.leave(report.router_id, report.incarnation_id)
            return quota_pb2.ReportWantsResponse(report_number=report.number)
        return await self._desk.report(report)

    async def ListLeases(self, request: quota_pb2.ListLeasesRequest, context: Any) -> quota_pb2.ListLeasesResponse:
        """The newest tables of every live router."""
        tables = []
        for stored in self._desk.tables():
            table = quota_pb2.LeaseTable()
            table.CopyFrom(stored)
            del table.leases[:], table.outstanding[:]
            table.leases.extend(lease for lease in stored.leases if _matches(lease, request))
            table.outstanding.extend(lease for lease in stored.outstanding if _matches(lease, request))
            tables.append(table)
        return quota_pb2.ListLeasesResponse(tables=tables)


def _matches(lease: quota_pb2.Lease, request: quota_pb2.ListLeasesRequest) -> bool:
    return request.tenant_id in ("", lease.tenant_id) and request.model_id in ("", lease.model_id)
