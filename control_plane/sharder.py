"""The sharder's loop: whoever leads keeps every model's assignment true to the fleet and its load.

What comes or goes is dealt with at once, after a short wait that lets crashes gather; sizes, cuts and balance are
looked at every `assign_interval_s`. Before it assigns, a leader makes sure that nobody holds a newer assignment than
the store.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from common import keys
from common.clock import NS_PER_S, Clock
from common.leadership import Election
from common.logs import get_logger
from common.shard_map import NUMBER_CONTINUED_MAX, Generation
from common.store import Epoch, Expect, Store
from control_plane.assignment_messages import from_bytes, from_message
from control_plane.assignment_recovery import AssignmentRecovery, Holder, renewed
from control_plane.config import ControlPlaneConfig
from control_plane.core.happenings import INFO, Happening
from control_plane.core.sharding.values import Placement
from control_plane.events import Events
from control_plane.fleet_views import FleetViews
from control_plane.metrics import ControlPlaneMetrics
from control_plane.replica_loads import ReplicaLoads
from control_plane.sharded_model import Assigning, Commit, ShardedModel
from fairlead.errors import NotLeaderError, UnavailableError
from fairlead.sharding.v1 import sharding_pb2

log = get_logger(__name__)

_SETTLE_S: Final = 0.1
_RETRY_S: Final = 1.0
# What failed unexpectedly will mostly fail again: its traceback need not fill the log.
_FAILED_RETRY_S: Final = 5.0
# A replica that says it holds a newer assignment, and does not hand it over, is not asked again before.
_ASK_AGAIN_NS: Final = 15 * NS_PER_S


class Sharder:
    """Assigns while this instance leads.

    Args:
        store: Where assignments are.
        views: The fleet.
        election: This instance's candidacy.
        loads: What replicas report.
        recovery: Asks those that hold assignments.
        events: Writes down what an operator wants to know.
        config: Pace.
        clock: Both kinds of time.
        metrics: What to tell Prometheus.
        assigner: Makes the core of one model.
    """

    def __init__(
        self,
        store: Store,
        views: FleetViews,
        election: Election,
        *,
        loads: ReplicaLoads,
        recovery: AssignmentRecovery,
        events: Events,
        config: ControlPlaneConfig,
        clock: Clock,
        metrics: ControlPlaneMetrics,
        assigner: Callable[[], Assigning],
    ) -> None:
        self._store = store
        self._views = views
        self._election = election
        self._loads = loads
        self._recovery = recovery
        self._events = events
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._assigner = assigner
        self._changed = asyncio.Event()
        self._models: dict[str, ShardedModel] = {}
        self._remembered: dict[str, Placement] = {}
        self._incarnation_seen = 0
        self._failed = False
        for mirror in (views.replicas, views.models, views.reservations):
            mirror.on_change(lambda _key, _value: self._changed.set())

    @property
    def leads(self) -> bool:
        """Whether this instance assigns."""
        return self._election.is_leader

    def heat(self, model_id: str = "") -> sharding_pb2.ListAssignmentsResponse:
        """How busy replicas and slices were in the last round, sorted, without assignments; nothing while this instance
        does not lead.

        Args:
            model_id: Only this model's; empty means all.
        """
        wanted = [model for name, model in sorted(self._models.items()) if model_id in ("", name)]
        return sharding_pb2.ListAssignmentsResponse(
            replicas=[heat for model in wanted for heat in model.heat()],
            slices=[heat for model in wanted for heat in model.slice_heat()],
        )

    async def run(self) -> None:
        """Leads whenever elected, until cancelled."""
        async for epoch in self._election.terms():
            self._metrics.leader.set(1)
            self._metrics.epoch.set(epoch)
            try:
                async with asyncio.TaskGroup() as group:
                    listening = group.create_task(self._loads.run(self._changed.set))
                    await self._lead(epoch)
                    listening.cancel()
            finally:
                self._models = {}
                self._metrics.left()

    async def _lead(self, epoch: Epoch) -> None:
        interval_ns = round(self._config.assign_interval_s * NS_PER_S)
        loaded, due_ns = False, self._clock.monotonic_ns() + interval_ns
        while self._election.epoch == epoch:
            self._changed.clear()
            try:
                if not loaded:
                    await self._load()
                    loaded = True
                balance = self._clock.monotonic_ns() >= due_ns
                wait_s = await self._round(epoch, balance=balance)
                if balance:
                    due_ns = self._clock.monotonic_ns() + interval_ns
                wait_s = min(wait_s, max(0, due_ns - self._clock.monotonic_ns()) / NS_PER_S)
            except _ConflictError:
                self._metrics.conflicts.inc()
                loaded, wait_s = False, _SETTLE_S
            except NotLeaderError:
                break
            except UnavailableError as error:
                log.warning("store unavailable, assignments stand", error=error.message)
                loaded, wait_s = False, _RETRY_S
            except Exception as error:  # whatever it is, routers need a sharder that tries again
                log.error("the sharder's round failed, assignments stand", exc_info=error)
                self._metrics.failures.labels("").inc()
                loaded, wait_s = False, _FAILED_RETRY_S
            await self._wait(wait_s)
        log.info("not assigning any more", epoch=epoch)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
                await asyncio.sleep(_SETTLE_S)

    async def _load(self) -> None:
        """Reads what is in force; what agents, routers and this process itself know of newer ones counts more."""
        await self._views.wait_synced()
        listing = await self._store.list(keys.ASSIGNMENTS)
        for model in self._models.values():
            model.placement, model.revision = None, 0
        for entry in listing.entries:
            message = from_bytes(entry.value)
            self._saw(Generation.of(message.generation))
            model = self._model(entry.key.removeprefix(keys.ASSIGNMENTS))
            model.placement, model.revision = from_message(message), entry.revision
        await self._recover(self._views.models.items.keys())
        for model in self._models.values():
            with self._alone(model.model_id):
                await self._leave_room(model)

    async def _leave_room(self, model: ShardedModel) -> None:
        """Lets a line of assignments whose number ran away go on in the next incarnation, while that is possible."""
        if model.placement is not None and model.generation.number > NUMBER_CONTINUED_MAX:
            reason = "its number left the range: the assignment goes on in the next incarnation"
            placement = renewed(model.placement, self._clock.wall_ns() // 1_000_000, reason)
            await self._commit(model, model.write(placement, self._clock.wall_ns()))

    def _model(self, model_id: str) -> ShardedModel:
        if model_id not in self._models:
            storm_wait_ns = round(self._config.storm_wait_s * NS_PER_S)
            self._models[model_id] = ShardedModel(model_id, self._assigner(), storm_wait_ns, self._metrics)
        return self._models[model_id]

    def _saw(self, generation: Generation) -> None:
        if generation.sound:
            self._incarnation_seen = max(self._incarnation_seen, generation.incarnation)

    async def _recover(self, model_ids: Collection[str]) -> None:
        """Takes over what others hold of some models and the store does not, or not as new."""
        held = {model_id: model.generation for model_id, model in self._models.items()}
        found = await self._recovery.ask(self._holders(model_ids), held)
        log.info("holders asked for assignments", answered=len(found.answered), silent=len(found.silent))
        for model_id in sorted(model_ids):
            if model_id in self._views.models.items:
                model = self._model(model_id)
                model.has_asked(found.answered, found.silent, self._clock.monotonic_ns())
                offers = (found.placements.get(model_id), self._remembered.get(model_id))
                newest = max(
                    (offer for offer in offers if offer is not None), key=lambda offer: offer.generation, default=None
                )
                if newest is not None and newest.generation > model.generation:
                    self._saw(newest.generation)
                    with self._alone(model_id):
                        await self._adopt(model, newest)

    def _holders(self, model_ids: Collection[str]) -> list[Holder]:
        """Who may hold assignments of some models."""
        replicas = [r for r in self._views.replicas.items.values() if r.model_id in model_ids and r.address]
        routers = [router for router in self._views.routers.items.values() if router.address]
        return [
            *(Holder(router.instance_id, router.address, is_router=True) for router in routers),
            *(Holder(replica.replica_id, replica.address) for replica in replicas),
        ]

    @contextlib.contextmanager
    def _alone(self, model_id: str) -> Iterator[None]:
        """What fails unexpectedly at one model is said and tried again in the next round, and stops no other model."""
        try:
            yield
        except (_ConflictError, NotLeaderError, UnavailableError):
            raise
        except Exception as error:
            log.error("the sharder failed at a model, its assignment stands", exc_info=error, model=model_id)
            self._metrics.failures.labels(model_id).inc()
            self._failed = True

    async def _adopt(self, model: ShardedModel, newest: Placement) -> None:
        placement = renewed(newest, self._clock.wall_ns() // 1_000_000)
        had = f"number {model.generation.number}" if model.placement is not None else "none"
        model.pending.append(
            Happening(
                "ASSIGNMENT_RECOVERED",
                INFO,
                model.model_id,
                f"the store had an older assignment ({had}) than agents and routers (number "
                f"{newest.generation.number}): theirs is in force again; nothing to do if the store was restored",
                {"stored_number": str(model.generation.number), "number": str(newest.generation.number)},
            )
        )
        await self._commit(model, model.write(placement, self._clock.wall_ns()))
        model.recovered(self._clock.monotonic_ns())
        self._metrics.recovered.labels(model.model_id).inc()

    async def _round(self, epoch: Epoch, *, balance: bool) -> float:
        """Looks at every model once; returns seconds until the next look is due at the latest."""
        wait_s, self._failed = self._config.assign_interval_s, False
        with self._metrics.round_seconds.time():
            if balance:
                await self._compare()
            for model_id in sorted(self._models.keys() - self._views.models.items.keys()):
                with self._alone(model_id):
                    await self._delete(self._models[model_id])
            for model_id in sorted(self._views.models.items):
                model = self._model(model_id)
                model.balance_due |= balance
                with self._alone(model_id):
                    wait_s = min(wait_s, await self._look(model, epoch))
        self._metrics.rounds.inc()
        return min(wait_s, _FAILED_RETRY_S) if self._failed else wait_s

    async def _compare(self) -> None:
        """Reads what is in force again: a store that was set back while this instance leads says nothing of it."""
        listing = await self._store.list(keys.ASSIGNMENTS)
        stored = {entry.key.removeprefix(keys.ASSIGNMENTS): entry.revision for entry in listing.entries}
        if stored != {model_id: model.revision for model_id, model in self._models.items() if model.revision}:
            raise _ConflictError

    async def _look(self, model: ShardedModel, epoch: Epoch) -> float:
        model_id, now_ns = model.model_id, self._clock.monotonic_ns()
        servers = self._views.servers(model_id, self._loads.dead)
        reserved = self._views.reserved(model_id)
        model.noticed_dead(self._loads.dead)
        model.sees(servers, reserved)
        if servers and self._may_be_older(model, now_ns):
            await self._recover([model_id])
        if model_id not in self._views.models.items:
            return self._config.assign_interval_s  # deleted while others, or its holders, had their turn
        wait_ns = model.wait_ns(self._views.of_model(model_id), now_ns)
        if wait_ns:
            return wait_ns / NS_PER_S
        balance = model.balance_due  # stays so through a storm, and until it was done
        if balance or model.has_changed or model.pending:
            # A wide fleet takes a moment, and nobody else's call waits for it.
            commit = await asyncio.to_thread(
                model.round,
                self._loads.reports(model_id),
                self._views.token_milli_mu(model_id),
                incarnation=max(epoch, self._incarnation_seen + 1),
                wall_ns=self._clock.wall_ns(),
                balance=balance,
            )
            await self._commit(model, commit)
            model.settled()
            model.balance_due = False
        return self._config.assign_interval_s

    def _may_be_older(self, model: ShardedModel, now_ns: int) -> bool:
        """Whether somebody seems to hold a newer assignment than the store."""
        if model.placement is None:
            return not {holder.name for holder in self._holders([model.model_id])} <= model.asked
        newer = self._loads.newest_generation(model.model_id) > model.generation
        return newer and now_ns - model.asked_ns >= _ASK_AGAIN_NS

    async def _delete(self, model: ShardedModel) -> None:
        if model.revision:
            await self._write(model, {}, [keys.assignment(model.model_id)])
        self._remembered.pop(model.model_id, None)
        del self._models[model.model_id]

    async def _commit(self, model: ShardedModel, commit: Commit) -> None:
        """Writes on the predecessor only; what happened is written with it."""
        puts: dict[str, bytes] = {}
        for happening in commit.happenings:
            puts |= self._events.entry(happening)
            log.warning("sharder", kind=happening.kind, model=model.model_id, facts=dict(happening.facts))
        if commit.placement is not None:
            puts[keys.assignment(model.model_id)] = commit.value
        if not puts:
            return
        revision = await self._write(model, puts)
        model.committed(commit, revision)
        if commit.placement is not None:
            self._saw(commit.placement.generation)
            self._remembered[model.model_id] = commit.placement
            number, reason = commit.placement.generation.number, commit.placement.reason
            log.info("assigned", model=model.model_id, number=number, bytes=len(commit.value), reason=reason)

    async def _write(self, model: ShardedModel, puts: Mapping[str, bytes], deletes: Sequence[str] = ()) -> int:
        expects = [self._election.fence(), Expect(keys.assignment(model.model_id), revision=model.revision)]
        stored = await self._store.commit(expects, puts, deletes)
        if stored is None:
            raise _ConflictError
        return stored


class _ConflictError(Exception):
    """The store does not hold what this leader believes."""
