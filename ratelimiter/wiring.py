"""Constructs the rate limiter and runs it."""

from __future__ import annotations

import asyncio

from common import keys
from common.clock import SystemClock
from common.etcd_store import EtcdStore
from common.member import Member
from common.mirror import Mirror
from common.ops import OpsServer
from common.rpc import GrpcServer, LeaderClient
from common.telemetry import Telemetry
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.quota.v1 import quota_pb2, quota_pb2_grpc
from ratelimiter.config import SERVICE, RateLimiterConfig
from ratelimiter.demand_reporter import DemandReporter
from ratelimiter.desk import Desk
from ratelimiter.metrics import RateLimiterMetrics
from ratelimiter.service import RateLimiterService

# Wants of 100,000 (tenant, model) pairs with long names are 10 MB.
_REPORT_BYTES_MAX = 32 << 20


async def serve(config: RateLimiterConfig, stop: asyncio.Event) -> None:
    """Runs the rate limiter until `stop` is set.

    Args:
        config: Its settings.
        stop: Set to end it.
    """
    clock, store, telemetry = SystemClock(), EtcdStore(config.etcd_endpoint), Telemetry(SERVICE, config)
    quotas = Mirror(store, keys.QUOTAS, capacity_pb2.QuotaTable.FromString)
    leaders = Mirror(store, keys.LEADERS, admin_pb2.ServiceInstance.FromString)
    member = Member(SERVICE, config, store, telemetry, election_ttl_s=config.election_ttl_s)
    metrics = RateLimiterMetrics(telemetry.registry)
    desk = Desk(store, quotas, member.election, config, clock, metrics)
    allocator = LeaderClient(leaders, "capacity")
    reporter = DemandReporter(desk, allocator, clock, config.demand_interval_s, metrics)
    server = GrpcServer(config, telemetry, message_bytes_max=_REPORT_BYTES_MAX)
    server.add(
        quota_pb2_grpc.add_RateLimiterServiceServicer_to_server,
        RateLimiterService(desk, config, metrics),
        quota_pb2.DESCRIPTOR.services_by_name["RateLimiterService"].full_name,
    )

    def readiness() -> str | None:
        return None if quotas.synced and leaders.synced else "the store has not been read yet"

    ops = OpsServer(config, telemetry.registry, readiness)
    try:
        await member.serve(stop, server, ops, (quotas.run, leaders.run, desk.run, reporter.run))
    finally:
        await allocator.close()
