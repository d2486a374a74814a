"""The parts of one router that its front doors and its background loops share."""

from __future__ import annotations

import random

from common.clock import Clock
from common.platform_token import platform_token
from common.telemetry import Telemetry
from data_plane.router.admission import Admission
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
from data_plane.router.decision_service import Decisions
from data_plane.router.exchange import Receipt
from data_plane.router.flow import Flow
from data_plane.router.peers import Peers
from data_plane.router.routing import Found, Routing
from data_plane.router.tables import Tables
from data_plane.router.ticket_desk import TicketDesk
from data_plane.router.tracing import Tracing
from data_plane.router.upstream import Upstream
from data_plane.router.usage_desk import UsageDesk
from data_plane.router.usage_journal import UsageJournal
from data_plane.router.waiting_desk import WaitingDesk
from model_units.length import OutputLengthEstimator
from model_units.text import BytesPerToken

SERVICE = "router"


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
            now_ns=clock.monotonic_ns,
            wall_ns=clock.wall_ns,
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
