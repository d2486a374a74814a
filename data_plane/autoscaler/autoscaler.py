"""The autoscaler's loop: look, decide, act, while leading.

It decides nothing itself (core/scale.py does) and knows no process (the actuator does). One look per second, and one
right after every change of a model, a target or a replica. Actions run beside the loop, at most one per seat at a time,
so that a replica that takes its time to end delays nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

from common.clock import Clock
from common.leadership import Election
from common.logs import get_logger
from common.mirror import Mirror
from data_plane.autoscaler.actuator import Actuator, RunningSeat
from data_plane.autoscaler.core.scale import ModelScaler
from data_plane.autoscaler.core.seat import Action, Drain, Forget, Plan, ScalePolicy, SeatState, Start, Stop
from data_plane.autoscaler.metrics import AutoscalerMetrics
from data_plane.autoscaler.observe import registration_of, view_model
from fairlead.admin.v1 import admin_pb2
from fairlead.capacity.v1 import capacity_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError

log = get_logger(__name__)

DrainCall = Callable[[engine_pb2.Replica], Awaitable[int]]
"""Tells a replica to drain and returns how many requests it still serves; telling it again only asks."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Mirrors the autoscaler looks at.

    Attributes:
        models: models/ by model id.
        targets: targets/ by model id.
        replicas: replicas/ by replica id.
    """

    models: Mirror[admin_pb2.Model]
    targets: Mirror[capacity_pb2.CapacityTarget]
    replicas: Mirror[engine_pb2.Replica]

    @property
    def synced(self) -> bool:
        """Whether each has been read from the store itself: an unread view is not an empty one."""
        return all(mirror.synced for mirror in (self.models, self.targets, self.replicas))

    async def wait_synced(self) -> None:
        """Returns once `synced` is true."""
        for mirror in (self.models, self.targets, self.replicas):
            await mirror.wait_synced()


class Autoscaler:
    """Holds every model at the replicas its target asks for, while this instance leads.

    Args:
        election: Whether it leads.
        sources: What it looks at.
        actuator: What runs the replicas.
        drain: How a replica is told to drain.
        policy: How patient the decisions are.
        look_interval_s: Longest pause between two looks.
        clock: For the decisions.
        metrics: What is published.
    """

    def __init__(
        self,
        *,
        election: Election,
        sources: Sources,
        actuator: Actuator,
        drain: DrainCall,
        policy: ScalePolicy,
        look_interval_s: float,
        clock: Clock,
        metrics: AutoscalerMetrics,
    ) -> None:
        self._election = election
        self._sources = sources
        self._actuator = actuator
        self._drain = drain
        self._policy = policy
        self._look_interval_s = look_interval_s
        self._clock = clock
        self._metrics = metrics
        self._scalers: dict[str, ModelScaler] = {}
        self._busy: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._in_flight: dict[str, int] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Looks and acts until cancelled."""
        for mirror in (self._sources.models, self._sources.targets, self._sources.replicas):
            mirror.on_change(lambda _key, _value: self._wake.set())
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._sources.wait_synced()
                await self._election.wait_leader()
                self._metrics.leading.set(1)
                # What a former leadership remembered is stale: start over, and hold for a stable window.
                self._scalers.clear()
                while self._election.is_leader:
                    await self._look(tasks)
                    await self._pause()
                self._metrics.leading.set(0)

    async def _pause(self) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._look_interval_s):
                await self._wake.wait()

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        seats: defaultdict[str, list[RunningSeat]] = defaultdict(list)
        for seat in await self._actuator.seats():
            seats[seat.model_id].append(seat)
        replicas: defaultdict[str, list[engine_pb2.Replica]] = defaultdict(list)
        for replica in self._sources.replicas.items.values():
            replicas[replica.model_id].append(replica)
        self._in_flight = {key: busy for key, busy in self._in_flight.items() if key in self._sources.replicas.items}
        known = {*self._sources.models.items, *seats}
        for model_id in sorted(known):
            model = self._sources.models.items.get(model_id)
            target = self._sources.targets.items.get(model_id)
            view = view_model(model_id, model, target, seats[model_id], replicas[model_id], self._in_flight)
            scaler = self._scalers.setdefault(model_id, ModelScaler(self._policy))
            plan = scaler.decide(view, self._clock.monotonic_ns())
            self._metrics.show(model_id, plan)
            registered = {seat.slot: registration_of(seat, replicas[model_id]) for seat in seats[model_id]}
            self._act(tasks, model_id, model, plan, registered)
        self._scalers = {key: scaler for key, scaler in self._scalers.items() if key in known}

    def _act(
        self,
        tasks: asyncio.TaskGroup,
        model_id: str,
        model: admin_pb2.Model | None,
        plan: Plan,
        registered: dict[str, engine_pb2.Replica | None],
    ) -> None:
        """Carries a plan out, and asks draining replicas how far they are."""
        for action in plan.actions:
            if (model_id, action.slot) in self._busy:
                continue
            log.info(
                "scaling",
                model=model_id,
                action=action,
                wanted=plan.replicas_wanted,
                present=plan.replicas_present,
                have_milli_mu_per_minute=plan.have,
                need_milli_mu_per_minute=plan.need_held,
            )
            self._begin(tasks, model_id, action.slot, self._work(model_id, model, action, registered.get(action.slot)))
        for slot, state in plan.states:
            replica = registered.get(slot)
            if state is SeatState.DRAINING and replica is not None and (model_id, slot) not in self._busy:
                self._begin(tasks, model_id, slot, self._ask(replica))

    async def _work(
        self, model_id: str, model: admin_pb2.Model | None, action: Action, replica: engine_pb2.Replica | None
    ) -> None:
        match action:
            case Start():
                if model is not None:
                    seat = await self._actuator.start(model, action.slot)
                    self._metrics.starts.labels(model_id).inc()
                    log.info("replica started", model=model_id, slot=seat.slot, pid=seat.pid, start=seat.start_number)
            case Drain():
                if replica is not None:
                    await self._ask(replica)
                    self._metrics.drains.labels(model_id).inc()
            case Stop():
                await self._actuator.stop(model_id, action.slot)
                self._metrics.stops.labels(model_id, action.reason.value).inc()
                if action.forget:
                    await self._actuator.forget(model_id, action.slot)
                self._wake.set()
            case Forget():
                await self._actuator.forget(model_id, action.slot)

    async def _ask(self, replica: engine_pb2.Replica) -> None:
        busy = await self._drain(replica)
        if busy != self._in_flight.get(replica.replica_id):
            log.info("replica drains", replica=replica.replica_id, slot=replica.slot, requests_in_flight=busy)
            self._in_flight[replica.replica_id] = busy
            self._wake.set()

    def _begin(self, tasks: asyncio.TaskGroup, model_id: str, slot: str, work: Coroutine[None, None, None]) -> None:
        """Runs one piece of work for a seat beside the loop; what fails is decided again at the next look."""

        async def guarded() -> None:
            try:
                await work
            except FairleadError as error:
                self._metrics.failures.labels(model_id).inc()
                log.warning("action failed", model=model_id, slot=slot, reason=error.reason.value, error=error.message)
            finally:
                del self._busy[model_id, slot]

        self._busy[model_id, slot] = tasks.create_task(guarded())
