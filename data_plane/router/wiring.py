"""Constructs a router with its gateway, and runs it."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from common import keys
from common.clock import SystemClock
from common.etcd_store import EtcdStore
from common.logs import get_logger
from common.mirror import Mirror
from common.platform_token import platform_token
from common.rpc import LeaderClient
from common.telemetry import Telemetry
from data_plane.relay.grpc.pool import Pool
from data_plane.router.assignment_exchange import AssignmentExchange
from data_plane.router.config import RouterConfig
from data_plane.router.dialects.dispatch import DispatchingUpstream, Engines
from data_plane.router.front_doors import FrontDoors, until
from data_plane.router.lease_desk import LeaseDesk
from data_plane.router.limiter_client import LimiterClient
from data_plane.router.load import LoadWatch
from data_plane.router.metrics import RouterCollector
from data_plane.router.peers import Peers
from data_plane.router.pepper import read_pepper
from data_plane.router.router import SERVICE, Router
from data_plane.router.routing_metrics import RoutingCollector
from data_plane.router.sockets import Worker
from data_plane.router.state import RouterState
from data_plane.router.ticket_links import TicketLinks
from data_plane.router.ticket_metrics import TicketCollector
from data_plane.router.upstream import Upstream
from data_plane.router.upstream_grpc import Channels, GrpcUpstream
from data_plane.router.upstream_pulled import Pulled
from data_plane.router.upstream_relay import RelayUpstream
from data_plane.router.usage_journal import UsageJournal
from data_plane.router.usage_publisher import UsagePublisher
from fairlead.admin.v1 import admin_pb2

# Requests that the end of the grace period has cut off need some steps to settle what they delivered.
_LAST_REQUESTS_WAIT_S = 2.0

log = get_logger(__name__)


async def serve(config: RouterConfig, stop: asyncio.Event) -> None:
    """Runs a router until `stop` is set, then drains it.

    Args:
        config: Its settings.
        stop: Set to end it.
    """
    pepper = read_pepper(config.key_pepper_file)
    clock, store = SystemClock(), EtcdStore(config.etcd_endpoint)
    telemetry = Telemetry(SERVICE, config, drawn_by_hand=True)
    router_id = config.instance_id or f"{SERVICE}-{secrets.token_hex(4)}"
    incarnation_id = secrets.token_hex(8)
    channels, pool = Channels(), Pool()
    upstream: Upstream = RelayUpstream(pool, clock)
    if config.grpc_transport == "grpcio":
        upstream = Pulled(GrpcUpstream(channels, clock))
    engines = Engines(clock, config.engine_credentials_file)
    upstream = DispatchingUpstream(upstream, engines.ways)
    state_dir = Path(config.state_dir) if config.state_dir else None
    state = RouterState(store, router_id=router_id, state_dir=state_dir, clock=clock)
    journal = UsageJournal(state_dir, router_id=router_id, incarnation_id=incarnation_id) if state_dir else None
    routers = Mirror(store, f"{keys.SERVICES}{SERVICE}/", admin_pb2.ServiceInstance.FromString)
    router = Router(
        config,
        tables=state.tables(),
        upstream=upstream,
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
    doors = FrontDoors(
        config,
        router,
        telemetry,
        clock,
        state.missing,
        token=platform_token(pepper),
        worker=Worker.from_environment(),
    )

    async def leave() -> None:
        """Gives the leases back once nothing waits for them any more: whoever takes this router's place needs them."""
        await until(lambda: not router.desk.waiting(), asyncio.Event(), config.drain_grace_s)
        await limiter.leave()

    try:
        async with asyncio.TaskGroup() as tasks:
            parts = (state, routers, watch, exchange, links, router.desk, router.waiting, limiter, publisher)
            background = [tasks.create_task(part.run()) for part in parts]
            await doors.serve(stop, store, router_id, leases=leases, exchange=exchange, leave=leave, tasks=tasks)
            await until(lambda: not len(router.tickets.ledger.book), asyncio.Event(), config.drain_grace_s)
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await limiter.leave()
            await until(lambda: not router.accounts.in_flight, asyncio.Event(), _LAST_REQUESTS_WAIT_S)
            await publisher.finish(quiet=not router.accounts.in_flight)
    finally:
        await leader.close()
        await channels.close()
        await pool.close()
        await engines.close()
        await store.close()
        telemetry.shutdown()
