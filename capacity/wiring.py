"""Constructs the capacity allocator and runs it."""

from __future__ import annotations

import asyncio

from capacity.allocator import Allocator, Views
from capacity.config import SERVICE, CapacityConfig
from capacity.metrics import CapacityMetrics
from capacity.quota_book import QuotaBook
from capacity.service import CapacityService
from capacity.translate import model_from, replica_from, reservation_from
from common import keys
from common.clock import SystemClock
from common.etcd_store import EtcdStore
from common.member import Member
from common.mirror import Mirror
from common.ops import OpsServer
from common.rpc import GrpcServer
from common.telemetry import Telemetry
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from fairlead.engine.v1 import engine_pb2

# Demand of 100,000 (tenant, model) pairs with long names is 10 MB.
_DEMAND_BYTES_MAX = 32 << 20


async def serve(config: CapacityConfig, stop: asyncio.Event) -> None:
    """Runs the capacity allocator until `stop` is set.

    Args:
        config: Its settings.
        stop: Set to end it.
    """
    clock, store, telemetry = SystemClock(), EtcdStore(config.etcd_endpoint), Telemetry(SERVICE, config)
    views = Views(
        replicas=Mirror(store, keys.REPLICAS, lambda raw: replica_from(engine_pb2.Replica.FromString(raw))),
        models=Mirror(store, keys.MODELS, lambda raw: model_from(admin_pb2.Model.FromString(raw))),
        reservations=Mirror(store, keys.POLICIES, lambda raw: reservation_from(admin_pb2.Reservation.FromString(raw))),
    )
    member = Member(SERVICE, config, store, telemetry, election_ttl_s=config.election_ttl_s)
    metrics = CapacityMetrics(telemetry.registry)
    allocator = Allocator(views, QuotaBook(store, clock), member.election, config, clock, metrics)
    server = GrpcServer(config, telemetry, message_bytes_max=_DEMAND_BYTES_MAX)
    server.add(
        capacity_pb2_grpc.add_CapacityServiceServicer_to_server,
        CapacityService(allocator, store, member.election, config.demand_interval_s),
        capacity_pb2.DESCRIPTOR.services_by_name["CapacityService"].full_name,
    )

    def readiness() -> str | None:
        return None if views.synced else "the store has not been read yet"

    ops = OpsServer(config, telemetry.registry, readiness)
    loops = (views.replicas.run, views.models.run, views.reservations.run, allocator.run)
    await member.serve(stop, server, ops, loops)
