"""The leader's loop: on every change, and every few seconds, compute what changed and write it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from capacity.config import CapacityConfig
from capacity.core.caution import Caution
from capacity.core.live import LiveLedgers, ModelDemand
from capacity.core.values import Model, ModelLedger, Replica, Reservation
from capacity.metrics import CapacityMetrics
from capacity.quota_book import ConflictAtStoreError, QuotaBook
from common.clock import NS_PER_S, Clock, MonotonicNs
from common.leadership import Election
from common.logs import get_logger
from common.mirror import Mirror
from common.store import Epoch
from fairlead.errors import NotLeaderError, UnavailableError

# After a failure the store is asked again this soon, not at the next change: usually it is back.
_RETRY_S: Final = 0.5

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
        clock: For what is counted over time, and the caution after a takeover.
        metrics: What to tell Prometheus.

    Attributes:
        ledgers: Of the last round, sorted by model; empty before the first.
        doubted: Models whose live capacity is not believed now, so that their stored quotas stand.
        computed_wall_ns: When the last round was; 0 before the first.
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
        self._live = LiveLedgers()
        self._demand_epoch = 0
        self._covered: dict[str, bool] = {}
        self._round_took_s = 0.0
        self.ledgers: Sequence[ModelLedger] = ()
        self.doubted: frozenset[str] = frozenset()
        self.computed_wall_ns = 0
        views.replicas.on_change(self._note_replica)
        views.models.on_change(self._note_model)
        views.reservations.on_change(self._note_reservation)

    @property
    def demand(self) -> ModelDemand:
        """Demand as last reported."""
        return self._live.demand

    def _note_replica(self, key: str, replica: Replica | None) -> None:
        self._live.set_replica(key, replica)
        self._changed.set()

    def _note_model(self, key: str, model: Model | None) -> None:
        self._live.set_model(key, model)
        self._changed.set()

    def _note_reservation(self, key: str, reservation: Reservation | None) -> None:
        model_id, _, tenant_id = key.rpartition("/")
        self._live.set_reservation(model_id, tenant_id, reservation)
        self._changed.set()

    def take_demand(self, epoch: int, demand: ModelDemand) -> None:
        """Replaces the demand; one that differs starts a round.

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
        if self._live.set_demand(demand):
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
                self.ledgers, self.doubted, self.computed_wall_ns = (), frozenset(), 0
                self._metrics.show((), frozenset())

    async def _lead(self, epoch: Epoch) -> None:
        caution = Caution(MonotonicNs(self._clock.monotonic_ns() + round(self._config.takeover_caution_s * NS_PER_S)))
        loaded = False
        # What this instance heard when it led before is old; the stored quotas remember what is not.
        self._live.set_demand({})
        self._demand_epoch = 0
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
            if loaded:
                await self._wait(caution.next_end(self._clock.monotonic_ns()))
            else:
                await asyncio.sleep(_RETRY_S)
        log.info("not leading any more", epoch=epoch)

    async def _load(self) -> None:
        for mirror in (self._views.replicas, self._views.models, self._views.reservations):
            await mirror.wait_synced()
        await self._book.load()
        if not self._demand_epoch:
            self._live.set_demand(self._book.demand())

    async def _round(self, epoch: Epoch, caution: Caution) -> None:
        began_ns = self._clock.monotonic_ns()
        with self._metrics.round_seconds.time():
            for model_id in self._live.changed(self._clock.monotonic_ns()):
                self._live.compute(model_id, self._clock.monotonic_ns())
                # Other work goes on between the models of a large fleet.
                await asyncio.sleep(0)
            ledgers = self._live.ledgers
            doubted = self._doubted(ledgers, caution)
            written = await self._book.write(ledgers, doubted, epoch, self._election.fence())
        self._round_took_s = (self._clock.monotonic_ns() - began_ns) / NS_PER_S
        self.ledgers, self.doubted = ledgers, doubted
        self.computed_wall_ns = self._clock.wall_ns()
        self._metrics.rounds.inc()
        self._metrics.writes.inc(written)
        self._metrics.show(ledgers, doubted)
        self._note_coverage(ledgers)
        if written:
            log.debug("quotas written", keys=written, epoch=epoch)

    def _doubted(self, ledgers: Sequence[ModelLedger], caution: Caution) -> frozenset[str]:
        granted, now = self._book.granted(), self._clock.monotonic_ns()
        kept = set()
        for ledger in ledgers:
            doubted = caution.doubts(ledger.model_id, ledger.have, granted.get(ledger.model_id, 0), now)
            if doubted:
                kept.add(ledger.model_id)
                log.warning(
                    "collapse of live capacity doubted, quotas stand",
                    model=ledger.model_id,
                    have=ledger.have,
                    granted=granted[ledger.model_id],
                )
        return frozenset(kept)

    def _note_coverage(self, ledgers: Sequence[ModelLedger]) -> None:
        """Logs when reservations stop being covered, by what there is or after a loss, and when they are again."""
        covered: dict[str, bool] = {}
        for ledger in ledgers:
            covered[ledger.model_id] = ledger.covered
            if ledger.covered == self._covered.get(ledger.model_id, True):
                continue
            domain = ledger.largest_domain
            facts: Mapping[str, object] = {
                "model": ledger.model_id,
                "headroom": ledger.headroom.name.lower(),
                "largest_domain": domain.name if domain else "",
                "have": ledger.have,
                "sold": ledger.sold,
                "sellable": ledger.sellable,
                "uncovered_after_loss": ledger.uncovered_after_loss,
            }
            if ledger.covered:
                log.info("reservations are covered again", **facts)
            else:
                log.warning("reservations are not covered", **facts)
        self._covered = covered

    async def _wait(self, until: MonotonicNs | None) -> None:
        """Returns at a change, but leaves a pause after the last round: what follows a first change is one round.

        The pause is no shorter than that round was, so that a large fleet does not keep the process busy with nothing
        else.

        Args:
            until: Also returns then.
        """
        await asyncio.sleep(max(self._config.debounce_ms / 1000, self._round_took_s))
        longest_s = self._config.round_interval_s
        if until is not None:
            longest_s = min(longest_s, (until - self._clock.monotonic_ns()) / NS_PER_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, longest_s)):
                await self._changed.wait()
