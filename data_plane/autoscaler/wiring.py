"""Constructs the autoscaler and runs it."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

from common import keys
from common.clock import SystemClock
from common.etcd_store import EtcdStore
from common.member import Member
from common.mirror import Mirror
from common.ops import OpsServer
from common.rpc import GrpcServer
from common.telemetry import Telemetry
from data_plane.autoscaler.agent_command import agent_command
from data_plane.autoscaler.autoscaler import Autoscaler, Sources
from data_plane.autoscaler.config import SERVICE, AutoscalerConfig
from data_plane.autoscaler.drains import drain
from data_plane.autoscaler.local_process import LocalProcessActuator
from data_plane.autoscaler.metrics import AutoscalerMetrics
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.engine.v1 import engine_pb2

CHECKOUT = Path(__file__).resolve().parents[2]


def local_process_actuator(config: AutoscalerConfig) -> LocalProcessActuator:
    """The actuator that runs agents on this machine, from this checkout."""
    return LocalProcessActuator(
        state_dir=Path(config.state_dir).absolute(),
        log_dir=Path(config.log_dir).absolute(),
        command=functools.partial(agent_command, config),
        working_dir=CHECKOUT,
        stop_grace_s=config.agent_stop_grace_s,
    )


async def serve(config: AutoscalerConfig, stop: asyncio.Event) -> None:
    """Runs the autoscaler until `stop` is set. The replicas it started live on.

    Args:
        config: Its settings.
        stop: Set to end it.
    """
    store, telemetry = EtcdStore(config.etcd_endpoint), Telemetry(SERVICE, config)
    sources = Sources(
        models=Mirror(store, keys.MODELS, admin_pb2.Model.FromString),
        targets=Mirror(store, keys.TARGETS, capacity_pb2.CapacityTarget.FromString),
        replicas=Mirror(store, keys.REPLICAS, engine_pb2.Replica.FromString),
    )
    member = Member(SERVICE, config, store, telemetry, election_ttl_s=config.election_ttl_s)
    autoscaler = Autoscaler(
        election=member.election,
        sources=sources,
        actuator=local_process_actuator(config),
        drain=drain,
        policy=config.policy(),
        look_interval_s=config.look_interval_s,
        clock=SystemClock(),
        metrics=AutoscalerMetrics(telemetry.registry),
    )
    # It serves no API of its own: this server is for health checks and reflection.
    server = GrpcServer(config, telemetry)
    ops = OpsServer(config, telemetry.registry, lambda: None if sources.synced else "the store has not been read yet")
    loops = (sources.models.run, sources.targets.run, sources.replicas.run, autoscaler.run)
    await member.serve(stop, server, ops, loops)
