"""Keeps one engine serving: starts it, probes it, watches its progress, replaces it when the health core says so."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Final

from common.clock import NS_PER_S, Clock
from common.logs import get_logger
from engines.agent.core.health import Action, Decision, HealthCore, HealthLimits, Observation
from engines.agent.core.restarts import RestartBackoff
from engines.agent.dispatcher import Dispatcher
from engines.agent.job import Refusal
from engines.agent.metrics import AgentMetrics, ProbeResult
from engines.agent.probe import probe
from engines.agent.record import ReplicaRecord, State
from engines.engine import Engine
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FailedPreconditionError, FairleadError, Reason

log = get_logger(__name__)

_TICK_S: Final = 0.25
_STOP_MAX_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class SupervisorLimits:
    """How patient the supervisor is.

    Attributes:
        health: With a running engine.
        start_max_s: With a starting one, seconds.
    """

    health: HealthLimits
    start_max_s: float = 600.0


class Supervisor:
    """The driver of the health core.

    Args:
        engine: The engine.
        dispatcher: Opened while the engine serves; everything in flight ends with the engine.
        record: Shows the state.
        limits: Patience.
        clock: Monotonic time.
        metrics: Counts probes and restarts.
    """

    def __init__(
        self,
        engine: Engine,
        dispatcher: Dispatcher,
        record: ReplicaRecord,
        *,
        limits: SupervisorLimits,
        clock: Clock,
        metrics: AgentMetrics,
    ) -> None:
        self._engine = engine
        self._dispatcher = dispatcher
        self._record = record
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._health: HealthCore | None = None
        self._nudge = asyncio.Event()

    def engine_failed(self) -> None:
        """The engine failed a request: look at it now."""
        if self._health is not None:
            self._health.request_failed()
            self._nudge.set()

    def drain(self) -> None:
        """Takes no new requests, for good; those in flight go on."""
        self._record.drain()
        self._dispatcher.close(Refusal("the replica is draining; try another one", Reason.SHUTTING_DOWN))

    def reserve(self) -> None:
        """Sets the replica aside for a calibration: it takes no requests, those in flight go on.

        Raises:
            FailedPreconditionError: It is set aside already, or does not serve.
        """
        if self._record.calibrating:
            raise FailedPreconditionError("the replica is being calibrated already; try another one or wait")
        if self._record.state != State.REPLICA_STATE_READY:
            state = engine_pb2.ReplicaState.Name(self._record.state).removeprefix("REPLICA_STATE_")
            raise FailedPreconditionError(f"the replica is {state}; only a READY one can be calibrated")
        self._record.set_calibrating(True)
        self._dispatcher.close(Refusal("the replica is being calibrated; try another one", Reason.NOT_READY))

    def release(self) -> None:
        """Ends the calibration: the replica serves again, unless something else keeps it from serving."""
        self._record.set_calibrating(False)
        if self._record.state == State.REPLICA_STATE_READY:
            self._dispatcher.open()

    async def run(self) -> None:
        """Keeps the engine serving until cancelled, then stops it."""
        backoff = RestartBackoff()
        try:
            while True:
                started_s = self._now_s()
                served_s = 0.0
                if await self._start():
                    decision = await self._watch()
                    served_s = self._now_s() - started_s
                    self._lose(decision)
                await self._stop()
                pause_s = backoff.pause_s(served_s)
                log.info("starting the engine again", pause_s=pause_s)
                await asyncio.sleep(pause_s)
        finally:
            await self._stop()

    async def _start(self) -> bool:
        try:
            async with asyncio.timeout(self._limits.start_max_s):
                description = await self._engine.start()
        except (FairleadError, TimeoutError) as error:
            log.error("the engine did not start", error=str(error) or "no answer in time")
        except Exception as error:  # whatever an adapter raises, the agent must live to try again
            log.error("the engine did not start", exc_info=error)
        else:
            self._dispatcher.resize(description)
            self._record.set_engine(description, self._engine.process_id)
            log.info(
                "engine started",
                engine=description.engine,
                version=description.version,
                sequences_max=description.sequences_max,
                kv_capacity_tokens=description.kv_capacity_tokens,
                process_id=self._engine.process_id,
            )
            return True
        self._record.set_state(State.REPLICA_STATE_UNHEALTHY)
        return False

    async def _watch(self) -> Decision:
        """Watches the engine until it has to be replaced."""
        health = self._health = HealthCore(self._limits.health, self._now_s())
        probing: asyncio.Task[None] | None = None
        try:
            while True:
                observation = Observation(
                    alive=self._engine.alive(),
                    progress_tokens=self._engine.progress_tokens,
                    work=self._dispatcher.awaited,
                )
                decision = health.tick(observation, self._now_s())
                if decision.action is Action.RESTART:
                    return decision
                if decision.action is Action.PROBE:
                    probing = asyncio.create_task(self._probe(health), name="probe")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_S):
                        await self._nudge.wait()
                self._nudge.clear()
        finally:
            self._health = None
            if probing is not None:
                probing.cancel()
                await asyncio.wait({probing})

    async def _probe(self, health: HealthCore) -> None:
        began_s = self._now_s()
        try:
            await probe(self._dispatcher)
        except FairleadError as error:
            log.warning("probe failed", reason=error.reason.value, error=error.message)
            self._metrics.probes.labels(ProbeResult.FAILED).inc()
            health.probe_failed()
        except Exception as error:  # an adapter's defect is a failed probe; watching must go on
            log.error("probe failed", exc_info=error)
            self._metrics.probes.labels(ProbeResult.FAILED).inc()
            health.probe_failed()
        else:
            self._metrics.probes.labels(ProbeResult.SUCCEEDED).inc()
            self._metrics.probe_s.observe(self._now_s() - began_s)
            health.probe_succeeded()
            self._serve()
        self._nudge.set()

    def _serve(self) -> None:
        if self._record.draining:
            return
        if not self._record.calibrating:
            self._dispatcher.open()
            if self._record.state != State.REPLICA_STATE_READY:
                log.info("ready", replica=self._record.replica_id)
        self._record.set_state(State.REPLICA_STATE_READY)

    def _lose(self, decision: Decision) -> None:
        """Takes the replica out of service and ends what was in flight."""
        assert decision.cause is not None
        log.error(
            "replacing the engine",
            cause=decision.cause.value,
            alive=decision.observation.alive,
            progress_tokens=decision.observation.progress_tokens,
            work=decision.observation.work,
            quiet_s=round(decision.quiet_s, 3),
            stall_s=decision.stall_s,
            probe_failures=decision.probe_failures,
            errors=decision.errors,
            in_flight=self._dispatcher.in_flight,
        )
        self._metrics.engine_restarts.labels(decision.cause.value).inc()
        self._record.set_state(State.REPLICA_STATE_UNHEALTHY)
        self._record.count_restart()
        if not self._record.draining:
            self._dispatcher.close(Refusal("the replica's engine is being replaced; try another one", Reason.NOT_READY))
        self._dispatcher.interrupt_all(
            Refusal("the replica's engine died or hung and is being replaced", Reason.REPLICA_LOST)
        )

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(_STOP_MAX_S):
                await self._engine.stop()
        except Exception as error:  # an engine that cannot be stopped must not keep the agent from trying
            log.error("the engine did not stop", exc_info=error)

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / NS_PER_S
