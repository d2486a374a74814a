"""The leader's desk: reports come in, tables go out, quotas and the passing of time change them in between."""

from __future__ import annotations

import asyncio
import contextlib

from common.clock import Clock
from common.leadership import Election
from common.logs import get_logger
from common.mirror import Mirror
from common.store import Epoch, Store
from fairlead.capacity.v1 import capacity_pb2
from fairlead.errors import NotLeaderError, UnavailableError
from fairlead.quota.v1 import quota_pb2
from ratelimiter.config import RateLimiterConfig
from ratelimiter.core.demand import DemandBook
from ratelimiter.core.lease import Limiter
from ratelimiter.core.values import Report, Table
from ratelimiter.lease_book import LeaseBook
from ratelimiter.metrics import RateLimiterMetrics
from ratelimiter.translate import answer_to, quotas_from, within

log = get_logger(__name__)

# Expiry is looked for this often even when nothing happens.
_TICK_S = 1.0
_RETRY_S = 0.5
# Well below the 4 MiB that a gRPC message may have; what does not fit reaches the router through the store.
_ANSWER_BYTES_MAX = 2 << 20


class Desk:
    """Runs one Limiter per leadership.

    Args:
        store: Where lease tables are written.
        quotas: Mirror of quotas/.
        election: This instance's candidacy.
        config: Terms and pace.
        clock: Monotonic time of leases.
        metrics: What to tell Prometheus.
    """

    def __init__(
        self,
        store: Store,
        quotas: Mirror[capacity_pb2.QuotaTable],
        election: Election,
        config: RateLimiterConfig,
        clock: Clock,
        metrics: RateLimiterMetrics,
    ) -> None:
        self._store = store
        self._quotas = quotas
        self._election = election
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._limiter: Limiter | None = None
        self._book: LeaseBook | None = None
        self._changed = asyncio.Event()
        self._quotas_changed = True
        quotas.on_change(self._note_quota)

    def _note_quota(self, _key: str, _value: capacity_pb2.QuotaTable | None) -> None:
        self._quotas_changed = True
        self._changed.set()

    async def report(self, report: Report) -> quota_pb2.ReportWantsResponse:
        """Takes a router's report; returns its leases, of which the new ones are stored by then.

        Raises:
            NotLeaderError: Another instance leads.
            UnavailableError: This one leads and is not ready, or the store does not answer.
        """
        limiter, book = self._leading()
        answer = limiter.report(report, self._clock.monotonic_ns())
        # What they held may be granted in this very answer: the next leader must not find both.
        self._post(book, (), limiter.take_gone())
        self._changed.set()
        return answer_to(answer, within(_ANSWER_BYTES_MAX, await book.publish(answer.tables)))

    def leave(self, router_id: str, incarnation_id: str) -> None:
        """Frees the leases of a router process that shuts down.

        Raises:
            NotLeaderError: Another instance leads.
            UnavailableError: This one leads and is not ready.
        """
        limiter, _ = self._leading()
        limiter.leave(router_id, incarnation_id)
        log.info("router left", router=router_id)
        self._changed.set()

    def tables(self) -> list[quota_pb2.LeaseTable]:
        """The newest stored tables of every live router, sorted by router, then shard.

        Raises:
            NotLeaderError: Another instance leads.
            UnavailableError: This one leads and is not ready.
        """
        limiter, book = self._leading()
        return [table for router_id in limiter.routers() for table in book.stored(router_id)]

    def demand(self) -> tuple[int, DemandBook] | None:
        """Epoch and demand over all routers; None while not leading or while routers have not been heard yet."""
        if self._limiter is None or not self._election.is_leader:
            return None
        demand = self._limiter.demand
        return None if demand is None else (self._limiter.epoch, demand)

    def _leading(self) -> tuple[Limiter, LeaseBook]:
        if not self._election.is_leader:
            raise NotLeaderError("this instance of the rate limiter is a standby; ask the leader")
        if self._limiter is None or self._book is None or self._limiter.epoch != self._election.epoch:
            raise UnavailableError("the rate limiter has just taken over; try again", retry_after_s=_RETRY_S)
        return self._limiter, self._book

    async def run(self) -> None:
        """Leads whenever elected, until cancelled."""
        async for epoch in self._election.terms():
            try:
                await self._lead(epoch)
            except* NotLeaderError as deposed:
                log.warning("not leading any more", epoch=epoch, error=str(deposed.exceptions[0]))
            except* UnavailableError as error:
                log.warning("store unavailable while taking over", epoch=epoch, error=str(error.exceptions[0]))
                await asyncio.sleep(_RETRY_S)
            finally:
                self._limiter = self._book = None
                self._metrics.follow(None)

    async def _lead(self, epoch: Epoch) -> None:
        await self._quotas.wait_synced()
        book = LeaseBook(self._store, self._clock, self._election.fence)
        limiter = Limiter(epoch, self._config.terms())
        tables = await book.load()
        limiter.learn(tables, self._clock.monotonic_ns())
        self._quotas_changed = True
        self._set_quotas(limiter)
        self._limiter, self._book = limiter, book
        self._metrics.follow(limiter)
        log.info("granting", epoch=epoch, tables_learned=len(tables))
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(book.run())
            try:
                await self._watch(epoch, limiter, book)
            finally:
                writer.cancel()

    async def _watch(self, epoch: Epoch, limiter: Limiter, book: LeaseBook) -> None:
        while self._election.epoch == epoch:
            self._changed.clear()
            self._set_quotas(limiter)
            actions = limiter.tick(self._clock.monotonic_ns())
            self._post(book, actions.tables, actions.routers_gone)
            self._metrics.count_store(book.writes, book.conflicts)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._changed.wait()
                    await asyncio.sleep(self._config.debounce_ms / 1000)
        raise NotLeaderError("leadership ended")

    def _post(self, book: LeaseBook, tables: tuple[Table, ...], routers_gone: tuple[str, ...]) -> None:
        book.post(tables, routers_gone)
        if routers_gone:
            log.info("routers gone", routers=",".join(routers_gone))

    def _set_quotas(self, limiter: Limiter) -> None:
        if self._quotas_changed:
            self._quotas_changed = False
            limiter.set_quotas(quotas_from(self._quotas.items.values()))
