"""Constructs a router with its gateway, and runs it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import secrets
from collections.abc import Callable
from pathlib import Path

from common import keys
from common.clock import Clock, SystemClock
from common.etcd_store import EtcdStore
from common.logs import get_logger
from common.mirror import Mirror
from common.ops import OpsServer
from common.platform_token import platform_token
from common.registration import Registration
from common.rpc import GrpcServer, LeaderClient
from common.store import Store
from common.telemetry import Telemetry
from data_plane.gateway.app import Gateway
from data_plane.gateway.server import HttpServer
from data_plane.router.admission import Admission
from data_plane.router.assignment_exchange import AssignmentExchange
from data_plane.router.assignment_service import ASSIGNMENT_SERVICE_NAME, AssignmentService
from data_plane.router.attempts import Attempts
from data_plane.router.batch_desk import BatchDesk
from data_plane.router.books import Answer, Books
from data_plane.router.config import RouterConfig
from data_plane.router.core.accounts import Accounts
from data_plane.router.core.batch_queue import BatchQueue
from data_plane.router.core.decisions import DecisionLog
from data_plane.router.core.demand import Demand
from data_plane.router.core.fleet import Fleet, Room
from data_plane.router.core.holds import BucketKey, Hold, Holds
from data_plane.router.core.idempotency import IdempotencyWindow
from data_plane.router.core.policies.policy import WEIGHED_MAX
from data_plane.router.core.pricing import Pricing
from data_plane.router.core.quarantine import Quarantine
from data_plane.router.core.waiting_line import WAITING_MAX
from data_plane.router.decision_service import DECISION_SERVICE_NAME, Decisions, DecisionService
from data_plane.router.exchange import Receipt
from data_plane.router.flow import Flow
from data_plane.router.lease_desk import LeaseDesk
from data_plane.router.limiter_client import LimiterClient
from data_plane.router.load import LoadWatch
from data_plane.router.metrics import RouterCollector
from data_plane.router.peers import Peers
from data_plane.router.pepper import read_pepper
from data_plane.router.routing import Found, Routing
from data_plane.router.routing_metrics import RoutingCollector
from data_plane.router.service import SERVICE_NAME, InferenceService
from data_plane.router.state import RouterState
from data_plane.router.tables import Tables
from data_plane.router.ticket_desk import TicketDesk
from data_plane.router.ticket_links import TicketLinks
from data_plane.router.ticket_metrics import TicketCollector
from data_plane.router.tracing import Tracing
from data_plane.router.upstream import Upstream
from data_plane.router.upstream_grpc import Channels, GrpcUpstream
from data_plane.router.upstream_pulled import Pulled
from data_plane.router.usage_desk import UsageDesk
from data_plane.router.usage_journal import UsageJournal
from data_plane.router.usage_publisher import UsagePublisher
from data_plane.router.waiting_desk import WaitingDesk
from fairlead.admin.v1 import admin_pb2
from fairlead.inference.v1 import decision_pb2_grpc, inference_pb2_grpc
from fairlead.sharding.v1 import sharding_pb2_grpc
from model_units.length import OutputLengthEstimator
from model_units.text import BytesPerToken

SERVICE = "router"

_FIRST_LEASE_WAIT_S = 3.0
# Requests that the end of the grace period has cut off need some steps to settle what they delivered.
_LAST_REQUESTS_WAIT_S = 2.0

log = get_logger(__name__)


class Router:
    """The parts of one router that the front doors and the background loops share.

    Args:
        config: The settings.
        tables: The platform's configuration.
        upstream: How replicas are reached.
        pepper: Of the key HMACs.
        telemetry: Tracer and registry.
        clock: Time.
        router_id: This router, as decisions name it.
        incarnation_id: Of this process; empty where nothing outlives it.
        journal: Where settlements survive the process, or None for nowhere.
        peers: The other routers, asked for decisions too, or None for none.

    Attributes:
        dispatcher_id: This process, as replicas know it. They remember how far a dispatcher's numbers went, and those
            of a router that was restarted begin again.
    """

    def __init__(
        self,
        config: RouterConfig,
        *,
        tables: Tables,
        upstream: Upstream,
        pepper: bytes,
        telemetry: Telemetry,
        clock: Clock,
        router_id: str = SERVICE,
        incarnation_id: str = "",
        journal: UsageJournal | None = None,
        peers: Peers | None = None,
    ) -> None:
        self.tables = tables
        self.dispatcher_id = f"{router_id}.{incarnation_id}" if incarnation_id else router_id
        self.holds, self.demand, self.fleet = Holds(), Demand(), Fleet()
        self.accounts = Accounts()
        self.pricing = Pricing(OutputLengthEstimator(), BytesPerToken())
        queue: BatchQueue[Hold] = BatchQueue(
            waiting_max=config.batch_waiting_max, waiting_per_tenant_max=config.batch_waiting_per_tenant_max
        )
        self.desk = BatchDesk(
            queue, self.holds, self._room, clock, free_milli_mu=lambda key: self.routing.free_milli_mu(key)
        )
        admission = Admission(
            tables=tables,
            pepper=pepper,
            pricing=self.pricing,
            holds=self.holds,
            demand=self.demand,
            desk=self.desk,
            clock=clock,
            prompt_bytes_max=config.prompt_bytes_max,
            request_timeout_ns=int(config.request_timeout_s_max * 1e9),
        )
        self.waiting: WaitingDesk[Found] = WaitingDesk(clock, waiting_max=WAITING_MAX)
        self.routing = Routing(
            tables=tables,
            fleet=self.fleet,
            desk=self.waiting,
            clock=clock,
            random=random.Random(),
            weighed_max=WEIGHED_MAX if config.decisions_kept_max else 0,
        )
        tables.assignments.on_change(self.waiting.moved)
        tracing = Tracing(telemetry, random.Random())
        quarantine = Quarantine()
        attempts = Attempts(
            fleet=self.fleet,
            tables=tables,
            routing=self.routing,
            quarantine=quarantine,
            upstream=upstream,
            accounts=self.accounts,
            tracing=tracing,
            clock=clock,
            router_id=self.dispatcher_id,
            token_timeout_s=config.token_timeout_s,
        )
        answers: IdempotencyWindow[Answer] = IdempotencyWindow(answer_bytes_max=config.answers_kept_bytes_max)
        log_: DecisionLog[Receipt] = DecisionLog(config.decisions_kept_max)
        self.usage = UsageDesk(clock, journal)
        books = Books(
            accounts=self.accounts,
            holds=self.holds,
            demand=self.demand,
            pricing=self.pricing,
            answers=answers,
            decisions=log_,
            usage=self.usage,
            settled=attempts.settled,
            clock=clock,
        )
        self.decisions = Decisions(log_, admission, platform_token(pepper), clock, router_id=router_id, peers=peers)
        self.flow = Flow(admission=admission, attempts=attempts, books=books, tracing=tracing, clock=clock)
        self.tickets = TicketDesk(
            self.flow, routing=self.routing, fleet=self.fleet, quarantine=quarantine, life_s=config.ticket_life_s
        )
        self._clock = clock

    def _room(self, key: BucketKey) -> Room:
        """Whether a replica takes a workload's requests now: batch waits for one."""
        tenant_id, model_id = key
        return self.fleet.room(model_id, self.tables.subset_of(model_id, tenant_id), self._clock.monotonic_ns())


async def serve(config: RouterConfig, stop: asyncio.Event) -> None:
    """Runs a router until `stop` is set, then drains it.

    Args:
        config: Its settings.
        stop: Set to end it.
    """
    pepper = read_pepper(config.key_pepper_file)
    clock, telemetry, store = (
        SystemClock(),
        Telemetry(SERVICE, config, drawn_by_hand=True),
        EtcdStore(config.etcd_endpoint),
    )
    router_id = config.instance_id or f"{SERVICE}-{secrets.token_hex(4)}"
    incarnation_id = secrets.token_hex(8)
    channels = Channels()
    state_dir = Path(config.state_dir) if config.state_dir else None
    state = RouterState(store, router_id=router_id, state_dir=state_dir, clock=clock)
    journal = UsageJournal(state_dir, router_id=router_id, incarnation_id=incarnation_id) if state_dir else None
    routers = Mirror(store, f"{keys.SERVICES}{SERVICE}/", admin_pb2.ServiceInstance.FromString)
    router = Router(
        config,
        tables=state.tables(),
        upstream=Pulled(GrpcUpstream(channels, clock)),
        pepper=pepper,
        telemetry=telemetry,
        clock=clock,
        router_id=router_id,
        incarnation_id=incarnation_id,
        journal=journal,
        peers=Peers(lambda: routers.items, platform_token(pepper), router_id=router_id),
    )
    publisher = UsagePublisher(
        router.usage, store, clock, router_id=router_id, incarnation_id=incarnation_id, state_dir=state_dir
    )
    exchange = AssignmentExchange(
        state.assignments,
        router.fleet,
        channels,
        routers=lambda: routers.items,
        models=lambda: state.models.items,
        clock=clock,
        token=platform_token(pepper),
        router_id=router_id,
    )
    watch = LoadWatch(
        router.fleet,
        channels,
        clock,
        router_id=router.dispatcher_id,
        freed=router.routing.freed,
        exchange=exchange,
    )
    links = TicketLinks(router.tickets, router.fleet, channels, clock, router_id=router.dispatcher_id)
    leases = LeaseDesk(router.holds, clock, router_id=router_id, incarnation_id=incarnation_id)
    state.feed_fleet(router.fleet, watch.update)
    state.feed_leases(leases)
    leader = LeaderClient(state.leaders, "ratelimiter")
    limiter = LimiterClient(
        leader=leader,
        leases=leases,
        demand=router.demand,
        holds=router.holds,
        desk=router.desk,
        clock=clock,
        router_id=router_id,
        incarnation_id=incarnation_id,
        past_known=lambda: state.leases.usable,
    )
    telemetry.registry.register(
        RouterCollector(
            accounts=router.accounts,
            holds=router.holds,
            fleet=router.fleet,
            desk=router.desk,
            decisions=router.flow.books.decisions,
            usage=router.usage,
            models=lambda: sorted(state.models.items),
            clock=clock,
        )
    )
    telemetry.registry.register(RoutingCollector(router.routing.counts, router.waiting, state.assignments))
    telemetry.registry.register(TicketCollector(router.tickets.ledger))
    doors = FrontDoors(config, router, telemetry, clock, state.missing, token=platform_token(pepper))
    try:
        async with asyncio.TaskGroup() as tasks:
            parts = (state, routers, watch, exchange, links, router.desk, router.waiting, limiter, publisher)
            background = [tasks.create_task(part.run()) for part in parts]
            await doors.serve(stop, store, router_id, leases=leases, exchange=exchange, tasks=tasks)
            await _until(lambda: not len(router.tickets.ledger.book), asyncio.Event(), config.drain_grace_s)
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await limiter.leave()
            await _until(lambda: not router.accounts.in_flight, asyncio.Event(), _LAST_REQUESTS_WAIT_S)
            await publisher.finish(quiet=not router.accounts.in_flight)
    finally:
        await leader.close()
        await channels.close()
        await store.close()
        telemetry.shutdown()


class FrontDoors:
    """The gRPC and HTTP servers of one router: opened when it can serve, drained before it ends.

    Args:
        config: The settings.
        router: What they serve.
        telemetry: Tracer and registry.
        clock: Time.
        missing: Says what the router still waits for.
        token: The platform's own.
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
    ) -> None:
        self._config = config
        self._missing = missing
        self._opened = False
        self._draining = False
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
            gateway, host=config.bind_host, port=config.http_port, reuse_port=True, grace_s=config.drain_grace_s
        )
        self._ops = OpsServer(config, telemetry.registry, self._readiness)

    async def serve(
        self,
        stop: asyncio.Event,
        store: Store,
        router_id: str,
        *,
        leases: LeaseDesk,
        exchange: AssignmentExchange,
        tasks: asyncio.TaskGroup,
    ) -> None:
        """Opens the doors, registers, waits for `stop`, drains."""
        ops_address = await self._ops.start()
        try:
            await _until(lambda: self._missing() is None, stop, None)
            await _until(lambda: leases.usable and exchange.asked, stop, _FIRST_LEASE_WAIT_S)
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
            # What lives until the end need not be looked at by every collection.
            gc.collect()
            gc.freeze()
            log.info("serving", grpc=grpc_address, http_port=http_port, ops=ops_address, router_id=router_id)
            await stop.wait()
            self._draining = True
            registered.cancel()
            log.info("draining", grace_s=self._config.drain_grace_s)
            await asyncio.gather(self._grpc.drain_and_stop(self._config.drain_grace_s), self._http.drain_and_stop())
        finally:
            await self._ops.stop()

    def _readiness(self) -> str | None:
        if self._draining:
            return "draining"
        return self._missing() or (None if self._opened else "waiting for the first leases")


async def _until(done: Callable[[], bool], stop: asyncio.Event, timeout_s: float | None) -> None:
    """Waits for a condition that no event announces, until `stop` or for `timeout_s`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not done() and not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await stop.wait()
