"""The drift watch's loop: whoever leads turns what replicas say of their speed into status, events and a proposal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common import keys
from common.clock import NS_PER_S, Clock
from common.leadership import Election
from common.logs import get_logger
from common.mirror import Mirror
from common.store import Epoch, Expect, Store
from control_plane.config import ControlPlaneConfig
from control_plane.core.drift import ModelDrift, Reading, Verdict
from control_plane.events import Events
from control_plane.metrics import ControlPlaneMetrics
from fairlead.admin.v1 import admin_pb2
from fairlead.admin.v1 import calibration_pb2 as pb
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import NotFoundError, NotLeaderError, UnavailableError
from model_units.cost import CostProfile
from model_units.profiles import built_in_profiles
from model_units.wire import profile_to_proto

log = get_logger(__name__)

_SWEEP_INTERVAL_NS = 600 * NS_PER_S
_REPORTING = frozenset({engine_pb2.REPLICA_STATE_READY, engine_pb2.REPLICA_STATE_DRAINING})


@dataclass(frozen=True, slots=True)
class DriftViews:
    """What the drift watch reads."""

    replicas: Mirror[engine_pb2.Replica]
    models: Mirror[admin_pb2.Model]
    profiles: Mirror[CostProfile]

    async def wait_synced(self) -> None:
        """Returns once the store has been read."""
        for mirror in (self.replicas, self.models, self.profiles):
            await mirror.wait_synced()

    def profile(self, model: admin_pb2.Model) -> CostProfile | None:
        """The model's profile in force; None where it is not here."""
        try:
            return built_in_profiles().with_live(self.profiles.items).resolve(model.profile_id, model.engine.hardware)
        except NotFoundError:
            return None

    def readings(self, model_id: str, profile_id: str) -> list[Reading]:
        """What a model's replicas say about this profile."""
        return [
            Reading(replica.replica_id, replica.drift_ratio, replica.drift_tokens)
            for replica in self.replicas.items.values()
            if replica.model_id == model_id and replica.drift_profile_id == profile_id and replica.state in _REPORTING
        ]


class DriftWatch:
    """Watches while this instance leads.

    Args:
        store: Where the status is.
        views: The fleet.
        election: This instance's candidacy.
        events: Writes down what begins and ends; old ones are swept here.
        config: Pace.
        clock: Both kinds of time.
        metrics: What to tell Prometheus.
    """

    def __init__(
        self,
        store: Store,
        views: DriftViews,
        election: Election,
        events: Events,
        *,
        config: ControlPlaneConfig,
        clock: Clock,
        metrics: ControlPlaneMetrics,
    ) -> None:
        self._store = store
        self._views = views
        self._election = election
        self._events = events
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._watches: dict[str, ModelDrift] = {}
        self._stored: dict[str, tuple[pb.DriftStatus, int]] = {}
        self._slow: dict[str, set[str]] = {}

    async def run(self) -> None:
        """Leads whenever elected, until cancelled."""
        async for epoch in self._election.terms():
            try:
                await self._lead(epoch)
            finally:
                self._metrics.profile_drift_ratio.clear()
                self._metrics.profile_drifting.clear()

    async def _lead(self, epoch: Epoch) -> None:
        loaded, swept_ns = False, 0
        while self._election.epoch == epoch:
            try:
                if not loaded:
                    await self._load()
                    loaded = True
                await self._round()
                if not swept_ns or self._clock.monotonic_ns() - swept_ns >= _SWEEP_INTERVAL_NS:
                    await self._events.sweep(self._election.fence())
                    swept_ns = self._clock.monotonic_ns()
            except _ConflictError:
                loaded = False
            except NotLeaderError:
                return
            except UnavailableError as error:
                log.warning("store unavailable, drift is not written", error=error.message)
                loaded = False
            await asyncio.sleep(self._config.drift_interval_s)

    async def _load(self) -> None:
        """Goes on where the leader before stopped: what it found is not found anew."""
        await self._views.wait_synced()
        listing = await self._store.list(keys.DRIFT)
        self._stored = {
            entry.key.removeprefix(keys.DRIFT): (pb.DriftStatus.FromString(entry.value), entry.revision)
            for entry in listing.entries
        }
        self._watches = {}
        self._slow = {}
        for event in await self._events.all():
            if event.kind == "REPLICA_SLOW":
                self._slow.setdefault(event.model_id, set()).add(event.facts["replica_id"])

    async def _round(self) -> None:
        """Looks at every model once."""
        for model_id in sorted(self._stored.keys() - self._views.models.items.keys()):
            await self._forget(model_id)
        for model_id, model in sorted(self._views.models.items.items()):
            profile = self._views.profile(model)
            if profile is not None:
                await self._look(model_id, profile)

    async def _look(self, model_id: str, profile: CostProfile) -> None:
        watch = self._watches.get(model_id)
        if watch is None or watch.profile != profile:
            watch = self._watches[model_id] = self._watch(model_id, profile)
        readings = self._views.readings(model_id, profile.profile_id)
        verdict = watch.look(readings, self._clock.monotonic_ns() / NS_PER_S)
        self._metrics.profile_drift_ratio.labels(model_id).set(verdict.ratio)
        self._metrics.profile_drifting.labels(model_id).set(verdict.drifting)
        await self._write(model_id, profile.profile_id, verdict)

    def _watch(self, model_id: str, profile: CostProfile) -> ModelDrift:
        status = self._stored.get(model_id, (pb.DriftStatus(), 0))[0]
        known = status.profile_id == profile.profile_id
        return ModelDrift(
            model_id,
            profile,
            start_s=self._config.drift_start_s,
            drifting=known and status.HasField("drift_since"),
            ratio=status.ratio if known else 0.0,
            slow=self._slow.get(model_id, ()),
        )

    async def _write(self, model_id: str, profile_id: str, verdict: Verdict) -> None:
        """Writes what has changed, with the events that say so, on the predecessor only."""
        before, revision = self._stored.get(model_id, (pb.DriftStatus(), 0))
        status = pb.DriftStatus(
            model_id=model_id,
            profile_id=profile_id,
            ratio=round(verdict.ratio, 4),
            tolerance=verdict.tolerance,
            replicas=verdict.replicas,
            replicas_drifting=verdict.replicas_drifting,
        )
        now_ns = self._clock.wall_ns()
        if verdict.drifting:
            status.drift_since.FromNanoseconds(now_ns)
            if before.profile_id == profile_id and before.HasField("drift_since"):
                status.drift_since.CopyFrom(before.drift_since)
        if verdict.proposal is not None:
            status.proposal.CopyFrom(profile_to_proto(verdict.proposal))
        status.update_time.CopyFrom(before.update_time)
        if status == before and not verdict.happenings:
            return
        status.update_time.FromNanoseconds(now_ns)
        puts = {keys.drift(model_id): status.SerializeToString()}
        for happening in verdict.happenings:
            puts |= self._events.entry(happening)
            log.warning("drift", kind=happening.kind, model=model_id, **happening.facts)
        self._stored[model_id] = (status, await self._commit(model_id, revision, puts))

    async def _forget(self, model_id: str) -> None:
        """A deleted model has no status."""
        await self._commit(model_id, self._stored[model_id][1], {}, [keys.drift(model_id)])
        del self._stored[model_id]
        self._watches.pop(model_id, None)
        for gauge in (self._metrics.profile_drift_ratio, self._metrics.profile_drifting):
            with contextlib.suppress(KeyError):  # an earlier leader's model
                gauge.remove(model_id)

    async def _commit(
        self, model_id: str, revision: int, puts: Mapping[str, bytes], deletes: Sequence[str] = ()
    ) -> int:
        expects = [self._election.fence(), Expect(keys.drift(model_id), revision=revision)]
        stored = await self._store.commit(expects, puts, deletes)
        if stored is None:
            raise _ConflictError
        return stored


class _ConflictError(Exception):
    """The store does not hold what this leader believes."""
