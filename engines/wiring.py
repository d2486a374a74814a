"""Constructs a replica, the agent and its engine, and runs it."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

from common.clock import SystemClock
from common.etcd_store import EtcdStore
from common.logs import get_logger
from common.ops import OpsServer
from common.rpc import GrpcServer
from common.telemetry import Telemetry
from engines.agent.assignment_service import SERVICE as ASSIGNMENT_SERVICE
from engines.agent.assignment_service import AssignmentServicer
from engines.agent.assignments import AssignmentHolder
from engines.agent.calibrate import Bench
from engines.agent.dispatcher import Dispatcher
from engines.agent.drift import DriftWatch
from engines.agent.experiment import LiveExperiments
from engines.agent.metrics import AgentMetrics
from engines.agent.notices import Notices
from engines.agent.observed import Observer
from engines.agent.record import Direct, ReplicaIdentity, ReplicaRecord
from engines.agent.reports import LoadReporter
from engines.agent.requests import Requests
from engines.agent.service import SERVICE as ENGINE_SERVICE
from engines.agent.service import EngineServicer
from engines.agent.supervisor import Supervisor, SupervisorLimits
from engines.agent.ticket_door import TicketDoor
from engines.config import OPENAI, SERVICE, SIMULATED, EngineConfig
from engines.engine import Engine
from engines.simulated.engine import PIECE_TOKENS, SimulatedEngine
from engines.simulated.hardware import hardware
from engines.simulated.service import SERVICE as FAULT_SERVICE
from engines.simulated.service import FaultServicer
from engines.simulated.work import SchedulerLimits
from fairlead.engine.v1 import engine_pb2_grpc
from fairlead.errors import InvalidArgumentError
from fairlead.sharding.v1 import sharding_pb2_grpc
from model_units.units import MilliModelUnitsPerMinute

log = get_logger(__name__)

_LOOK_S = 0.05
_LAST_CALLS_S = 1.0
# The sharder takes a draining replica out of its assignment within a second or two; one that is gone never does.
_RELEASE_MAX_S = 3.0


def build_engine(config: EngineConfig, work_directory: Path) -> Engine:
    """The engine the settings ask for.

    Args:
        config: The settings.
        work_directory: A folder of the engine's own.

    Raises:
        InvalidArgumentError: Its hardware is unknown, or its limits exclude each other.
    """
    if config.engine == SIMULATED:
        machine = hardware(config.hardware_label)
        return SimulatedEngine(machine, _limits(config), cold_start_s=config.cold_start_s(machine.cold_start_s()))
    if config.engine == OPENAI:
        return _openai_engine(config)
    # Imported here because a simulated replica needs none of Triton's packages.
    from engines.triton.adapter import TritonEngine, TritonSettings
    from engines.triton.tensors import Dialect

    own = TritonSettings(work_directory=work_directory)
    return TritonEngine(
        TritonSettings(
            work_directory=work_directory,
            endpoint=config.endpoint,
            dialect=Dialect(config.dialect) if config.dialect else own.dialect,
            model_directory=Path(config.model_directory) if config.model_directory else None,
            model_name=config.model_name,
            context_tokens=config.context_tokens or own.context_tokens,
            prefix_cache=config.prefix_cache,
            threads=config.threads,
            sequences_max=config.sequences_max or own.sequences_max,
            kv_capacity_tokens=config.kv_capacity_tokens or own.kv_capacity_tokens,
            otlp_traces_url=config.otlp_traces_url,
        )
    )


def _openai_engine(config: EngineConfig) -> Engine:
    # Imported here because other replicas need no HTTP client.
    from engines.openai.adapter import OpenAIEngine, OpenAISettings

    key = ""
    if config.endpoint_key_file:
        try:
            key = Path(config.endpoint_key_file).read_text().strip()
        except OSError as error:
            raise InvalidArgumentError(f"endpoint_key_file {config.endpoint_key_file}: {error.strerror}") from error
    own = OpenAISettings(config.endpoint)
    return OpenAIEngine(
        OpenAISettings(
            config.endpoint,
            model_name=config.model_name,
            key=key,
            sequences_max=config.sequences_max or own.sequences_max,
            kv_capacity_tokens=config.kv_capacity_tokens or own.kv_capacity_tokens,
            context_tokens=config.context_tokens,
            prefix_cache=config.prefix_cache,
        )
    )


def _limits(config: EngineConfig) -> SchedulerLimits:
    """The scheduler limits of a simulated engine."""
    sequences_max = config.sequences_max or SchedulerLimits().sequences_max
    if config.step_tokens_max < sequences_max:
        raise InvalidArgumentError(
            f"step_tokens_max is {config.step_tokens_max}; it must hold a token of each of {sequences_max} sequences",
            field="step_tokens_max",
        )
    return SchedulerLimits(sequences_max, config.step_tokens_max, piece_tokens=PIECE_TOKENS)


async def serve(config: EngineConfig, stop: asyncio.Event) -> None:
    """Runs the replica until `stop` is set, then finishes what is in flight and ends the engine.

    Args:
        config: Its settings.
        stop: Set to end it.
    """
    if config.engine == SIMULATED or config.work_directory:
        await _serve(config, build_engine(config, Path(config.work_directory)), stop)
    else:
        with tempfile.TemporaryDirectory(prefix="fairlead-engine-") as folder:
            await _serve(config, build_engine(config, Path(folder)), stop)


async def _serve(config: EngineConfig, engine: Engine, stop: asyncio.Event) -> None:
    clock = SystemClock()
    telemetry = Telemetry(SERVICE, config)
    store = EtcdStore(config.etcd_endpoint)
    metrics = AgentMetrics(telemetry.registry)
    changed = Notices()
    capacity = MilliModelUnitsPerMinute(config.capacity_milli_mu_per_minute)
    dispatcher = Dispatcher(
        engine,
        model_id=config.model_id,
        queued_max=config.queued_max,
        capacity=capacity,
        clock=clock,
        changed=changed,
        engine_failed=lambda: supervisor.engine_failed(),
        displaced=lambda why: metrics.displaced.labels(why).inc(),
    )
    direct = Direct(config.direct_address, config.direct_credentials) if config.direct else None
    identity = ReplicaIdentity(
        config.model_id, config.hardware_label, config.engine, config.slot, config.rack, capacity, direct
    )
    record = ReplicaRecord(store, identity, clock=clock, changed=changed)
    assignments = AssignmentHolder(store, model_id=config.model_id, replica_id=record.replica_id, changed=changed)
    supervisor = Supervisor(
        engine,
        dispatcher,
        record,
        limits=SupervisorLimits(config.health, config.start_max_s),
        clock=clock,
        metrics=metrics,
    )
    experiments = LiveExperiments(dispatcher, clock, lambda: record.described.context_tokens)
    bench = Bench(
        supervisor=supervisor,
        dispatcher=dispatcher,
        record=record,
        measure=engine.rehearse if isinstance(engine, SimulatedEngine) else experiments.run,
        changed=changed,
    )
    drift = DriftWatch(
        store,
        model_id=config.model_id,
        hardware=config.hardware_label,
        meter=dispatcher.meter,
        record=record,
        clock=clock,
        window_s=config.drift_window_s,
        smoothing_s=config.drift_smoothing_s,
    )
    requests = Requests(
        model_id=config.model_id,
        dispatcher=dispatcher,
        observer=Observer(record.replica_id, telemetry.tracer, metrics, clock),
        assignments=assignments,
        metrics=metrics,
    )
    servicer = EngineServicer(
        requests=requests,
        dispatcher=dispatcher,
        reporter=LoadReporter(record, dispatcher, engine, assignments, clock),
        supervisor=supervisor,
        record=record,
        changed=changed,
        bench=bench,
    )
    _watch_gauges(metrics, dispatcher, engine)
    metrics.gauge(
        "profile_drift_ratio", "Time the engine takes over time its profile says; 0 unknown", lambda: drift.ratio
    )
    server = GrpcServer(config, telemetry)
    server.add(engine_pb2_grpc.add_EngineServiceServicer_to_server, servicer, ENGINE_SERVICE)
    server.add(
        sharding_pb2_grpc.add_AssignmentServiceServicer_to_server, AssignmentServicer(assignments), ASSIGNMENT_SERVICE
    )
    if isinstance(engine, SimulatedEngine):
        server.add(engine_pb2_grpc.add_FaultServiceServicer_to_server, FaultServicer(engine), FAULT_SERVICE)
    tickets = TicketDoor(
        config, telemetry, record=record, requests=requests, metrics=metrics, clock=clock, inner=server
    )
    ops = OpsServer(
        config, telemetry.registry, lambda: None if dispatcher.refusal is None else dispatcher.refusal.message
    )
    try:
        record.set_addresses(await server.start(), await ops.start(), await tickets.start())
        async with asyncio.TaskGroup() as tasks:
            registering = tasks.create_task(record.run())
            supervising = tasks.create_task(supervisor.run())
            comparing = tasks.create_task(drift.run())
            following = tasks.create_task(assignments.run())
            await stop.wait()
            supervisor.drain()
            # An engine of our own ends with us, and streams that go past us are not seen.
            unseen = config.direct and engine.process_id != 0
            await asyncio.gather(
                finish(dispatcher, config.drain_grace_s, unseen=unseen), _release(assignments, config.drain_grace_s)
            )
            await tickets.stop(_LAST_CALLS_S)
            servicer.close()
            await server.drain_and_stop(_LAST_CALLS_S)
            following.cancel()
            comparing.cancel()
            supervising.cancel()
            registering.cancel()
    finally:
        await tickets.stop(0.0)
        await server.drain_and_stop(0.0)
        await ops.stop()
        await store.close()
        telemetry.shutdown()


async def finish(dispatcher: Dispatcher, grace_s: float, *, unseen: bool) -> None:
    """Waits until nothing is in flight.

    Args:
        dispatcher: Knows what is.
        grace_s: At most so long, seconds.
        unseen: There may be more than it knows: exactly so long.
    """
    log.info("finishing", in_flight=dispatcher.in_flight, grace_s=grace_s, unseen=unseen)
    if unseen:
        await asyncio.sleep(grace_s)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            while dispatcher.in_flight:  # noqa: ASYNC110  # a few looks at the very end are no loop worth an event
                await asyncio.sleep(_LOOK_S)


async def _release(assignments: AssignmentHolder, grace_s: float) -> None:
    """Waits until no newly routed request is meant for this replica, at most _RELEASE_MAX_S or `grace_s` seconds."""
    try:
        async with asyncio.timeout(min(_RELEASE_MAX_S, grace_s)):
            await assignments.released()
    except TimeoutError:
        log.warning("ending while the assignment still names this replica", generation=str(assignments.generation))


def _watch_gauges(metrics: AgentMetrics, dispatcher: Dispatcher, engine: Engine) -> None:
    metrics.gauge("queued_requests", "Requests waiting in the agent", lambda: dispatcher.load().queued_requests)
    metrics.waiting(dispatcher.waiting)
    metrics.gauge("running_requests", "Requests in the engine", lambda: dispatcher.load().running_requests)
    metrics.gauge(
        "pending_prefill_milli_mu",
        "Prefill of requests without a token yet",
        lambda: dispatcher.load().pending_prefill_milli_mu,
    )
    metrics.gauge(
        "decode_milli_mu", "Decode work left of requests in the engine", lambda: dispatcher.load().decode_milli_mu
    )
    metrics.gauge(
        "queued_decode_milli_mu",
        "Decode work of requests in the queue",
        lambda: dispatcher.load().queued_decode_milli_mu,
    )
    metrics.gauge("utilization", "Share of the capacity used in the last ten seconds", dispatcher.utilization)
    metrics.gauge("kv_used_tokens", "KV cache in use", lambda: engine.kv_used_tokens)
    metrics.gauge(
        "cached_tokens", "Prompt tokens expected in the prefix cache", lambda: dispatcher.accounts.cache.tokens
    )
    metrics.gauge("progress_tokens", "Tokens since the engine started", lambda: engine.progress_tokens)
