"""Constructs the autoscaler and runs it."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
from pathlib import Path

from common import keys
from common.clock import SystemClock
from common.etcd_store import EtcdStore
from common.leadership import Election
from common.mirror import Mirror
from common.ops import OpsServer
from common.registration import Registration
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
    telemetry = Telemetry(SERVICE, config)
    store = EtcdStore(config.etcd_endpoint)
    metrics = AutoscalerMetrics(telemetry.registry)
    sources = Sources(
        models=Mirror(store, keys.MODELS, admin_pb2.Model.FromString),
        targets=Mirror(store, keys.TARGETS, capacity_pb2.CapacityTarget.FromString),
        replicas=Mirror(store, keys.REPLICAS, engine_pb2.Replica.FromString),
    )
    mirrors = (sources.models, sources.targets, sources.replicas)

    def readiness() -> str | None:
        return None if all(mirror.synced for mirror in mirrors) else "the store has not been read yet"

    # It serves no API of its own: this server is for health checks and reflection.
    server = GrpcServer(config, telemetry)
    ops = OpsServer(config, telemetry.registry, readiness)
    me = admin_pb2.ServiceInstance(
        service=SERVICE,
        instance_id=config.instance_id or f"{SERVICE}-{secrets.token_hex(4)}",
        address=await server.start(),
        ops_address=await ops.start(),
        pid=os.getpid(),
    )
    me.start_time.GetCurrentTime()
    election = Election(store, SERVICE, me)

    def current() -> bytes:
        now = admin_pb2.ServiceInstance()
        now.CopyFrom(me)
        now.leader, now.epoch = election.is_leader, election.epoch
        return now.SerializeToString()

    registration = Registration(store, keys.service(SERVICE, me.instance_id), current)
    autoscaler = Autoscaler(
        election=election,
        sources=sources,
        actuator=local_process_actuator(config),
        drain=drain,
        policy=config.policy(),
        look_interval_s=config.look_interval_s,
        clock=SystemClock(),
        metrics=metrics,
        on_leadership=registration.update,
    )
    loops = (*(mirror.run for mirror in mirrors), election.run, registration.run, autoscaler.run)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(loop()) for loop in loops]
            await stop.wait()
            for task in running:
                task.cancel()
    finally:
        await server.drain_and_stop(0.0)
        await ops.stop()
        await store.close()
        telemetry.shutdown()
