"""The front doors of one router: opened when it can serve, drained before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Awaitable, Callable

from common import keys
from common.clock import Clock
from common.logs import get_logger
from common.ops import OpsServer
from common.registration import Registration
from common.rpc import GrpcServer
from common.store import Store
from common.telemetry import Telemetry
from data_plane.gateway.app import Gateway
from data_plane.gateway.server import HttpServer
from data_plane.relay.server import RelayServer
from data_plane.router.assignment_exchange import AssignmentExchange
from data_plane.router.assignment_service import ASSIGNMENT_SERVICE_NAME, AssignmentService
from data_plane.router.config import RouterConfig
from data_plane.router.decision_service import DECISION_SERVICE_NAME, DecisionService
from data_plane.router.door_limits import http_limits, http_patience, server_limits, tls
from data_plane.router.door_metrics import DoorsCollector
from data_plane.router.grpc_door import GrpcDoor
from data_plane.router.lease_desk import LeaseDesk
from data_plane.router.router import SERVICE, Router
from data_plane.router.service import SERVICE_NAME, InferenceService
from data_plane.router.sockets import Worker
from data_plane.router.succession import Succession
from data_plane.router.ticket_door import ticket_methods
from fairlead.admin.v1 import admin_pb2
from fairlead.inference.v1 import decision_pb2_grpc, inference_pb2_grpc
from fairlead.sharding.v1 import sharding_pb2_grpc

_FIRST_LEASE_WAIT_S = 3.0

_COLLECTED_EVERY = 10_000, 20, 20
"""New objects between two garbage collections, and so on for the older ones: Python's own 700 cost a twentieth of a
request."""

log = get_logger(__name__)


class FrontDoors:
    """The gRPC and HTTP servers of one router: opened when it can serve, drained before it ends.

    Args:
        config: The settings.
        router: What they serve.
        telemetry: Tracer and registry.
        clock: Time.
        missing: Says what the router still waits for.
        token: The platform's own.
        worker: This process's place under a supervisor, or None.
    """

    def __init__(
        self,
        config: RouterConfig,
        router: Router,
        telemetry: Telemetry,
        clock: Clock,
        missing: Callable[[], str | None],
        *,
        token: str,
        worker: Worker | None = None,
    ) -> None:
        self._config = config
        self._worker = worker
        self._holds, self._clock = router.holds, clock
        self._missing = missing
        self._opened = False
        self._draining = False
        self._grpc: RelayServer | GrpcServer
        if config.grpc_transport == "relay":
            self._grpc = RelayServer(
                config,
                telemetry,
                reuse_port=True,
                own_port=True,
                sockets=worker.grpc if worker is not None else (),
                tls=tls(config, "h2"),
                limits=server_limits(config),
            )
            door = GrpcDoor(router.flow, clock)
            self._grpc.serve(SERVICE_NAME, {**door.methods(), **ticket_methods(door, router.tickets)})
        else:
            self._grpc = GrpcServer(config, telemetry, reuse_port=True, own_port=True)
        servicer = InferenceService(router.flow, router.tables, router.pricing, clock, router.tickets)
        self._grpc.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer, SERVICE_NAME)
        explainer = DecisionService(router.decisions)
        self._grpc.add(decision_pb2_grpc.add_DecisionServiceServicer_to_server, explainer, DECISION_SERVICE_NAME)
        passes_on = AssignmentService(router.tables.assignments, token)
        self._grpc.add(sharding_pb2_grpc.add_AssignmentServiceServicer_to_server, passes_on, ASSIGNMENT_SERVICE_NAME)
        gateway = Gateway(
            router.flow,
            router.tables,
            clock,
            decisions=router.decisions,
            body_bytes_max=config.body_bytes_max,
        )
        self._http = HttpServer(
            gateway,
            host=config.bind_host,
            port=config.http_port,
            reuse_port=True,
            grace_s=config.drain_grace_s,
            limits=http_limits(config),
            patience=http_patience(config),
            tls=tls(config, "http/1.1"),
            sockets=worker.http if worker is not None else (),
        )
        if isinstance(self._grpc, RelayServer):
            telemetry.registry.register(DoorsCollector(self._grpc, self._http))
        self._ops = OpsServer(config, telemetry.registry, self._readiness)

    async def serve(
        self,
        stop: asyncio.Event,
        store: Store,
        router_id: str,
        *,
        leases: LeaseDesk,
        exchange: AssignmentExchange,
        leave: Callable[[], Awaitable[None]],
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Opens the doors, registers, waits for `stop`, drains; `leave` gives the leases back meanwhile."""
        ops_address = await self._ops.start()
        worker = self._worker
        try:
            if worker is not None:
                await worker.join(stop, tasks)
            await until(lambda: self._missing() is None, stop, None)
            await until(lambda: leases.usable and exchange.asked, stop, _FIRST_LEASE_WAIT_S)
            if worker is not None and worker.beside:
                inherits = Succession(worker.beside, store, leases, self._holds, self._clock, replaces=worker.replaces)
                await inherits.wait(stop)
            if stop.is_set():
                return
            grpc_address, http_port = await self._grpc.start(), await self._http.start()
            self._opened = True
            me = admin_pb2.ServiceInstance(
                service=SERVICE,
                instance_id=router_id,
                address=self._grpc.own_address,
                ops_address=ops_address,
                pid=os.getpid(),
            )
            me.start_time.GetCurrentTime()
            registration = Registration(store, keys.service(SERVICE, router_id), me.SerializeToString)
            registered = tasks.create_task(registration.run())
            # What lives until the end need not be looked at by every collection; and requests leave no circles behind.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*_COLLECTED_EVERY)
            log.info("serving", grpc=grpc_address, http_port=http_port, ops=ops_address, router_id=router_id)
            if worker is not None and isinstance(self._grpc, RelayServer):
                worker.serves(ops_address, self._grpc, self._http, tasks)
            await stop.wait()
            self._draining = True
            registered.cancel()
            if worker is not None:
                worker.leaves()
            grace_s = self._config.drain_grace_s
            log.info("draining", grace_s=grace_s)
            await asyncio.gather(self._grpc.drain_and_stop(grace_s), self._http.drain_and_stop(), leave())
        finally:
            if worker is not None:
                worker.leaves()
            await self._ops.stop()

    def _readiness(self) -> str | None:
        if self._draining:
            return "draining"
        return self._missing() or (None if self._opened else "waiting for the first leases")


async def until(done: Callable[[], bool], stop: asyncio.Event, timeout_s: float | None) -> None:
    """Waits for a condition that no event announces.

    Args:
        done: The condition.
        stop: Ends the wait.
        timeout_s: Seconds; None for ever.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not done() and not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await stop.wait()
