"""The sharder's loop: whoever leads keeps every model's assignment true to the fleet."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from common import keys
from common.clock import NS_PER_S, Clock
from common.leadership import Election
from common.logs import get_logger
from common.mirror import Mirror
from common.store import Epoch, Expect, Store
from control_plane.config import ControlPlaneConfig
from control_plane.core.assign import Candidate, Placement, StormWait, assign
from control_plane.metrics import ControlPlaneMetrics
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import NotLeaderError, UnavailableError
from fairlead.sharding.v1 import sharding_pb2
from model_units.units import MilliModelUnitsPerMinute as Rate

log = get_logger(__name__)

_SETTLE_S = 0.1


@dataclass(frozen=True, slots=True)
class FleetViews:
    """What the sharder watches."""

    replicas: Mirror[engine_pb2.Replica]
    models: Mirror[admin_pb2.Model]
    reservations: Mirror[admin_pb2.Reservation]

    @property
    def synced(self) -> bool:
        """Whether the store has been read."""
        return self.replicas.synced and self.models.synced and self.reservations.synced

    def candidates(self, model_id: str) -> list[Candidate]:
        """A model's READY replicas."""
        return [
            Candidate(r.replica_id, r.slot or r.replica_id, Rate(max(0, r.capacity_milli_mu_per_minute)))
            for r in self.replicas.items.values()
            if r.model_id == model_id and r.state == engine_pb2.REPLICA_STATE_READY
        ]

    def workloads(self, model_id: str) -> Mapping[str, Rate]:
        """Reserved rate by tenant."""
        return {
            r.tenant_id: Rate(r.reserved_milli_mu_per_minute)
            for r in self.reservations.items.values()
            if r.model_id == model_id
        }


class Sharder:
    """Assigns while this instance leads.

    Args:
        store: Where assignments are.
        views: The fleet.
        election: This instance's candidacy.
        config: Pace.
        clock: Both kinds of time.
        metrics: What to tell Prometheus.
    """

    def __init__(
        self,
        store: Store,
        views: FleetViews,
        election: Election,
        config: ControlPlaneConfig,
        clock: Clock,
        metrics: ControlPlaneMetrics,
    ) -> None:
        self._store = store
        self._views = views
        self._election = election
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._known: dict[str, tuple[Placement, int]] = {}
        views.replicas.on_change(lambda _key, _value: self._changed.set())
        views.models.on_change(lambda _key, _value: self._changed.set())
        views.reservations.on_change(lambda _key, _value: self._changed.set())

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

    async def _lead(self, epoch: Epoch) -> None:
        storms: dict[str, StormWait] = {}
        loaded = False
        while self._election.epoch == epoch:
            self._changed.clear()
            wait_s = self._config.assign_interval_s
            try:
                if not loaded:
                    await self._load()
                    loaded = True
                wait_s = min(wait_s, await self._round(epoch, storms))
            except _ConflictError:
                self._metrics.conflicts.inc()
                loaded = False
                wait_s = _SETTLE_S
            except NotLeaderError:
                break
            except UnavailableError as error:
                log.warning("store unavailable, assignments stand", error=error.message)
                loaded = False
            await self._wait(wait_s)
        log.info("not assigning any more", epoch=epoch)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
                await asyncio.sleep(_SETTLE_S)

    async def _load(self) -> None:
        for mirror in (self._views.replicas, self._views.models, self._views.reservations):
            await mirror.wait_synced()
        listing = await self._store.list(keys.ASSIGNMENTS)
        self._known = {}
        for entry in listing.entries:
            stored = sharding_pb2.Assignment.FromString(entry.value)
            self._known[stored.model_id] = (_placement_from(stored), entry.revision)

    async def _round(self, epoch: Epoch, storms: dict[str, StormWait]) -> float:
        """Looks at every model once; returns seconds until the next look is due at the latest."""
        wait_s = self._config.assign_interval_s
        with self._metrics.round_seconds.time():
            for model_id in sorted(self._known.keys() - self._views.models.items.keys()):
                await self._commit(model_id, None)
            for model_id in sorted(self._views.models.items):
                storm = storms.setdefault(model_id, StormWait(round(self._config.storm_wait_s * NS_PER_S)))
                wait_s = min(wait_s, await self._look(model_id, epoch, storm))
        self._metrics.rounds.inc()
        return wait_s

    async def _look(self, model_id: str, epoch: Epoch, storm: StormWait) -> float:
        candidates = self._views.candidates(model_id)
        previous = self._known.get(model_id, (None, 0))[0]
        placement = assign(
            model_id,
            candidates,
            self._views.workloads(model_id),
            previous,
            incarnation=epoch,
            now_ms=self._clock.wall_ns() // 1_000_000,
        )
        self._metrics.replicas.labels(model_id).set(len(candidates))
        if placement is None:
            return self._config.assign_interval_s
        removal = previous is not None and bool(previous.members() - placement.members())
        remaining_ns = storm.remaining_ns(removal, self._clock.monotonic_ns())
        if remaining_ns:
            return remaining_ns / NS_PER_S
        await self._commit(model_id, placement)
        return self._config.assign_interval_s

    async def _commit(self, model_id: str, placement: Placement | None) -> None:
        """Writes on the predecessor only; None deletes."""
        key = keys.assignment(model_id)
        revision = self._known.get(model_id, (None, 0))[1]
        puts = {}
        if placement is not None:
            message = _placement_to(model_id, placement)
            message.compute_time.FromNanoseconds(self._clock.wall_ns())
            puts[key] = message.SerializeToString()
        expects = [self._election.fence(), Expect(key, revision=revision)]
        stored = await self._store.commit(expects, puts, [] if puts else [key])
        if stored is None:
            raise _ConflictError
        if placement is None:
            del self._known[model_id]
            return
        self._known[model_id] = (placement, stored)
        self._metrics.assignments.labels(model_id).inc()
        log.info("assigned", model=model_id, number=placement.number, reason=placement.reason)


class _ConflictError(Exception):
    """The store does not hold what this leader believes."""


def _placement_from(message: sharding_pb2.Assignment) -> Placement:
    return Placement(
        incarnation=message.generation.incarnation,
        number=message.generation.number,
        subsets={subset.tenant_id: tuple(subset.replica_ids) for subset in message.subsets},
        default=tuple(message.default_replica_ids),
        reason=message.reason,
    )


def _placement_to(model_id: str, placement: Placement) -> sharding_pb2.Assignment:
    return sharding_pb2.Assignment(
        model_id=model_id,
        generation=sharding_pb2.Generation(incarnation=placement.incarnation, number=placement.number),
        subsets=[
            sharding_pb2.Subset(tenant_id=tenant_id, replica_ids=replica_ids)
            for tenant_id, replica_ids in sorted(placement.subsets.items())
        ],
        default_replica_ids=placement.default,
        reason=placement.reason,
    )
