"""The leader's loop: on every change, and every few seconds, compute the ledger and write what changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from capacity.config import CapacityConfig
from capacity.core.allocate import Demand, Model, ModelLedger, Replica, Reservation, allocate
from capacity.core.caution import Caution
from capacity.metrics import CapacityMetrics
from capacity.quota_book import ConflictAtStoreError, QuotaBook
from capacity.translate import demand_of
from common.clock import NS_PER_S, Clock, MonotonicNs
from common.leadership import Election
from common.logs import get_logger
from common.mirror import Mirror
from common.store import Epoch
from fairlead.errors import NotLeaderError, UnavailableError

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Views:
    """What the allocator watches."""

    replicas: Mirror[Replica]
    models: Mirror[Model]
    reservations: Mirror[Reservation]

    @property
    def synced(self) -> bool:
        """Whether the store has been read: until then an empty view means nothing."""
        return self.replicas.synced and self.models.synced and self.reservations.synced


class Allocator:
    """Turns views and demand into stored quotas while this instance leads.

    Args:
        views: Replicas, models and reservations.
        book: Stored quotas and targets.
        election: This instance's candidacy.
        config: Pace.
        clock: For the caution after a takeover.
        metrics: What to tell Prometheus.

    Attributes:
        ledgers: Of the last round, sorted by model; empty before the first.
        computed_wall_ns: When that was; 0 before the first.
    """

    def __init__(
        self,
        views: Views,
        book: QuotaBook,
        election: Election,
        config: CapacityConfig,
        clock: Clock,
        metrics: CapacityMetrics,
    ) -> None:
        self._views = views
        self._book = book
        self._election = election
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._demand: Mapping[tuple[str, str], Demand] = {}
        self._demand_epoch = 0
        self.ledgers: Sequence[ModelLedger] = ()
        self.computed_wall_ns = 0
        for mirror in (views.replicas, views.models, views.reservations):
            mirror.on_change(lambda _key, _value: self._changed.set())

    def take_demand(self, epoch: int, demand: Mapping[tuple[str, str], Demand]) -> None:
        """Replaces the demand.

        Args:
            epoch: Of the limiter that reports.
            demand: All of it, over all routers.

        Raises:
            NotLeaderError: A newer limiter has reported already.
        """
        if epoch < self._demand_epoch:
            raise NotLeaderError(f"demand of limiter epoch {epoch} refused: epoch {self._demand_epoch} has reported")
        self._demand_epoch = epoch
        self._metrics.demand_reports.inc()
        if demand != self._demand:
            self._demand = demand
            self._changed.set()

    async def run(self) -> None:
        """Leads whenever elected, until cancelled."""
        async for epoch in self._election.terms():
            self._metrics.leader.set(1)
            self._metrics.epoch.set(epoch)
            try:
                await self._lead(epoch)
            finally:
                self._metrics.leader.set(0)
                self._metrics.epoch.set(0)
                self.ledgers, self.computed_wall_ns = (), 0

    async def _lead(self, epoch: Epoch) -> None:
        caution = Caution(MonotonicNs(self._clock.monotonic_ns() + round(self._config.takeover_caution_s * NS_PER_S)))
        loaded = False
        # What this instance heard when it led before is old; the stored quotas remember what is not.
        self._demand, self._demand_epoch = {}, 0
        while self._election.epoch == epoch:
            self._changed.clear()
            try:
                if not loaded:
                    await self._load()
                    loaded = True
                await self._round(epoch, caution)
            except ConflictAtStoreError:
                self._metrics.conflicts.inc()
                log.warning("write refused by the store", epoch=epoch)
                loaded = False
            except NotLeaderError:
                break
            except UnavailableError as error:
                log.warning("store unavailable, quotas stand", error=error.message)
                loaded = False
            await self._wait()
        log.info("not leading any more", epoch=epoch)

    async def _load(self) -> None:
        for mirror in (self._views.replicas, self._views.models, self._views.reservations):
            await mirror.wait_synced()
        await self._book.load()
        if not self._demand:
            self._demand = demand_of(self._book.tables())

    async def _round(self, epoch: Epoch, caution: Caution) -> None:
        with self._metrics.round_seconds.time():
            ledgers = allocate(
                list(self._views.replicas.items.values()),
                list(self._views.models.items.values()),
                list(self._views.reservations.items.values()),
                self._demand,
            )
            kept = self._doubted(ledgers, caution)
            written = await self._book.write(ledgers, kept, epoch, self._election.fence())
        self.ledgers = ledgers
        self.computed_wall_ns = self._clock.wall_ns()
        self._metrics.rounds.inc()
        self._metrics.writes.inc(written)
        self._metrics.show(ledgers)
        if written:
            log.debug("quotas written", keys=written, epoch=epoch)

    def _doubted(self, ledgers: Sequence[ModelLedger], caution: Caution) -> list[str]:
        granted, now = self._book.granted(), self._clock.monotonic_ns()
        kept = []
        for ledger in ledgers:
            doubted = caution.doubts(ledger.model_id, ledger.have, granted.get(ledger.model_id, 0), now)
            self._metrics.doubted.labels(ledger.model_id).set(int(doubted))
            if doubted:
                kept.append(ledger.model_id)
                log.warning(
                    "collapse of live capacity doubted, quotas stand",
                    model=ledger.model_id,
                    have=ledger.have,
                    granted=granted[ledger.model_id],
                )
        return kept

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.round_interval_s):
                await self._changed.wait()
                # More changes usually follow at once: one computation for all of them.
                await asyncio.sleep(self._config.debounce_ms / 1000)
