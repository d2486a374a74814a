"""Constructs the control plane and runs it."""

from __future__ import annotations

import asyncio
import secrets

from common import keys
from common.clock import Clock, SystemClock
from common.etcd_store import EtcdStore
from common.leadership import Election
from common.member import Member
from common.mirror import Mirror
from common.ops import OpsServer
from common.platform_token import platform_token
from common.rpc import GrpcServer, LeaderClient
from common.store import Store
from common.telemetry import Telemetry
from control_plane.assignment_recovery import AssignmentRecovery
from control_plane.auth import AdminAuth
from control_plane.calibration.publish import Publisher
from control_plane.calibration.runner import CalibrationRunner
from control_plane.calibration.runs import Calibrations
from control_plane.calibration_service import CalibrationService, Runs
from control_plane.config import SERVICE, ControlPlaneConfig
from control_plane.core.sharding.assigner import Assigner
from control_plane.decisions import DecisionService
from control_plane.directory import Directory
from control_plane.drift import DriftViews, DriftWatch
from control_plane.events import Events
from control_plane.fleet_views import FleetViews
from control_plane.forward import CapacityForwarder, RateLimiterForwarder
from control_plane.metrics import ControlPlaneMetrics
from control_plane.models import Models
from control_plane.mutations import Mutations
from control_plane.policies import Policies
from control_plane.profiles import Profiles, StoredProfiles
from control_plane.records import Tables
from control_plane.replica_loads import ReplicaLoads
from control_plane.reservations import Reservations
from control_plane.service import AdminService
from control_plane.sharder import Sharder
from control_plane.sharding_service import ShardingService
from control_plane.tenants import ApiKeys, Tenants
from control_plane.usage import UsageService
from control_plane.usage_retention import UsageRetention
from fairlead.admin.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    calibration_pb2,
    calibration_pb2_grpc,
    usage_pb2,
    usage_pb2_grpc,
)
from fairlead.capacity.v1 import capacity_pb2, capacity_pb2_grpc
from fairlead.engine.v1 import engine_pb2
from fairlead.inference.v1 import decision_pb2, decision_pb2_grpc
from fairlead.quota.v1 import quota_pb2, quota_pb2_grpc
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc
from model_units.wire import decode_profile

# The largest policy file: a hundred thousand reservations of the longest names.
MESSAGE_BYTES_MAX = 32 << 20


def admin_service(
    store: Store, clock: Clock, pepper: bytes, capacity: CapacityForwarder, metrics: ControlPlaneMetrics
) -> AdminService:
    """The admin API on a store."""
    tables = Tables(store)
    return AdminService(
        tenants=Tenants(tables, clock),
        api_keys=ApiKeys(tables, clock, pepper, secrets.token_bytes),
        models=Models(tables, clock, StoredProfiles(store)),
        reservations=Reservations(tables, capacity.live),
        policies=Policies(tables, capacity.live),
        directory=Directory(tables),
        clock=clock,
        metrics=metrics,
    )


def calibration_service(
    store: Store, clock: Clock, runs: Runs, events: Events, metrics: ControlPlaneMetrics
) -> CalibrationService:
    """The API of calibrations, profiles, drift and events on a store."""
    return CalibrationService(
        calibrations=runs,
        profiles=Profiles(Tables(store), StoredProfiles(store), events, clock),
        events=events,
        mutations=Mutations(clock, metrics),
    )


def calibrations(
    store: Store, clock: Clock, events: Events, asked: Mirror[calibration_pb2.Calibration], election: Election
) -> tuple[Calibrations, CalibrationRunner]:
    """What administrators ask for, and what the leader does about it."""
    tables, profiles = Tables(store), StoredProfiles(store)
    publisher = Publisher(tables, profiles, events, clock)
    runner = CalibrationRunner(tables, asked, election, profiles=profiles, publisher=publisher, clock=clock)
    return Calibrations(tables, profiles, publisher, clock), runner


async def serve(config: ControlPlaneConfig, stop: asyncio.Event) -> None:
    """Runs the control plane until `stop` is set.

    Args:
        config: Its settings.
        stop: Set to end it.
    """
    pepper, token = config.pepper(), config.admin_token()
    clock, store, telemetry = SystemClock(), EtcdStore(config.etcd_endpoint), Telemetry(SERVICE, config)
    leaders = Mirror(store, keys.LEADERS, admin_pb2.ServiceInstance.FromString)
    routers = Mirror(store, f"{keys.SERVICES}router/", admin_pb2.ServiceInstance.FromString)
    profiles = Mirror(store, keys.PROFILES, decode_profile)
    views = FleetViews(
        replicas=Mirror(store, keys.REPLICAS, engine_pb2.Replica.FromString),
        models=Mirror(store, keys.MODELS, admin_pb2.Model.FromString),
        reservations=Mirror(store, keys.POLICIES, admin_pb2.Reservation.FromString),
        profiles=profiles,
        routers=routers,
    )
    asked = Mirror(store, keys.CALIBRATIONS, calibration_pb2.Calibration.FromString)
    metrics, events = ControlPlaneMetrics(telemetry.registry), Events(store, clock)
    member = Member(SERVICE, config, store, telemetry, election_ttl_s=config.election_ttl_s)
    runs, runner = calibrations(store, clock, events, asked, member.election)
    capacity_leader, limiter_leader = LeaderClient(leaders, "capacity"), LeaderClient(leaders, "ratelimiter")
    sharder_leader = LeaderClient(leaders, SERVICE)
    capacity = CapacityForwarder(capacity_leader)
    sharder = Sharder(
        store,
        views,
        member.election,
        loads=ReplicaLoads(views.replicas.items.values, member.me.instance_id, clock, metrics),
        recovery=AssignmentRecovery(platform_token(pepper), config.recovery_wait_s),
        events=events,
        config=config,
        clock=clock,
        metrics=metrics,
        assigner=Assigner,
    )
    server = GrpcServer(config, telemetry, interceptors=[AdminAuth(token)], message_bytes_max=MESSAGE_BYTES_MAX)
    server.add(
        admin_pb2_grpc.add_AdminServiceServicer_to_server,
        admin_service(store, clock, pepper, capacity, metrics),
        admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
    )
    server.add(
        calibration_pb2_grpc.add_CalibrationServiceServicer_to_server,
        calibration_service(store, clock, runs, events, metrics),
        calibration_pb2.DESCRIPTOR.services_by_name["CalibrationService"].full_name,
    )
    server.add(
        capacity_pb2_grpc.add_CapacityServiceServicer_to_server,
        capacity,
        capacity_pb2.DESCRIPTOR.services_by_name["CapacityService"].full_name,
    )
    server.add(
        quota_pb2_grpc.add_RateLimiterServiceServicer_to_server,
        RateLimiterForwarder(limiter_leader),
        quota_pb2.DESCRIPTOR.services_by_name["RateLimiterService"].full_name,
    )
    server.add(
        sharding_pb2_grpc.add_ShardingServiceServicer_to_server,
        ShardingService(store, views, sharder, sharder_leader),
        sharding_pb2.DESCRIPTOR.services_by_name["ShardingService"].full_name,
    )
    server.add(
        decision_pb2_grpc.add_DecisionServiceServicer_to_server,
        DecisionService(lambda: routers.items, platform_token(pepper)),
        decision_pb2.DESCRIPTOR.services_by_name["DecisionService"].full_name,
    )
    server.add(
        usage_pb2_grpc.add_UsageServiceServicer_to_server,
        UsageService(store, lambda: routers.items, clock, retention_days=config.usage_retention_days),
        usage_pb2.DESCRIPTOR.services_by_name["UsageService"].full_name,
    )
    drift = DriftWatch(
        store,
        DriftViews(views.replicas, views.models, profiles),
        member.election,
        events,
        config=config,
        clock=clock,
        metrics=metrics,
    )
    retention = UsageRetention(store, member.election, clock, retention_days=config.usage_retention_days)

    def readiness() -> str | None:
        return None if views.synced and leaders.synced else "the store has not been read yet"

    ops = OpsServer(config, telemetry.registry, readiness)
    mirrors = (leaders, views.replicas, views.models, views.reservations, routers, profiles, asked)
    loops = (sharder, drift, runner, retention)
    try:
        await member.serve(stop, server, ops, [part.run for part in (*mirrors, *loops)])
    finally:
        await capacity_leader.close()
        await limiter_leader.close()
        await sharder_leader.close()
