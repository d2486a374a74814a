"""One replica: the agent's queue and accounts in front of the step machine, driven in virtual time.

The agent's cores are the product's (`engines/agent/core`), the engine is the step machine the real-time simulated
engine runs on, and both drivers add the same host latencies (`engines/simulated/host.py`). One thing is coarser than in
real time: tokens are counted when the load is measured, and not one by one.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

from data_plane.router.core.loads import Report
from data_plane.router.core.prefix_index import CacheChange
from engines.agent.core.fair_line import turn_s
from engines.agent.core.key_loads import KeyLoad
from engines.agent.core.queue import AdmissionQueue, QueueLimits, prefill_limit
from engines.agent.core.replica_load import Demand, Origin, ReplicaLoad
from engines.simulated.hardware import LLAMA_3_1_CONTEXT_TOKENS
from engines.simulated.host import FINISH_S, INGEST_S, TOKEN_S
from engines.simulated.step_machine import StepMachine
from engines.simulated.work import EventKind, Work
from fairlead.errors import Reason
from model_units.length import OutputLengthEstimator
from model_units.text import BytesPerToken
from simulation.books import ReplicaTrack
from simulation.flight import Flight
from simulation.kernel import NS_PER_S, Loop
from simulation.replica_terms import ReplicaTerms, State

if TYPE_CHECKING:
    from simulation.router import Router

_INGEST_NS: Final = round(INGEST_S * NS_PER_S)
_TOKEN_NS: Final = round(TOKEN_S * NS_PER_S)
_FINISH_NS: Final = round(FINISH_S * NS_PER_S)
_FIRST_TOKEN: Final = EventKind.FIRST_TOKEN
_FINISHED: Final = EventKind.FINISHED

_BYTES_PER_TOKEN_START: Final = 4.0

# The decode load in the reports that ride on answers may be this old: ten tokens of a request of two hundred.
_COUNT_INTERVAL_NS: Final = NS_PER_S // 2


class Replica:
    """A replica agent and its engine.

    Args:
        replica_id: Its name.
        slot: Its seat.
        terms: What it is.
        loop: Virtual time.
        random: Its own random stream.

    Attributes:
        replica_id: Its name.
        slot: Its seat.
        capacity: What it serves at its objective, mMU per minute.
        state: Where it is in its life.
        frozen: Whether its machine stands still.
        track: What is kept of it for the results.
    """

    def __init__(self, replica_id: str, slot: str, terms: ReplicaTerms, loop: Loop, random: Random) -> None:
        self.replica_id = replica_id
        self.slot = slot
        self.capacity = terms.capacity
        self.state = State.STARTING
        self.frozen = False
        self.track = ReplicaTrack(replica_id, terms.model_id, slot, self.capacity)
        self._terms = terms
        self._loop = loop
        self._machine = StepMachine(terms.hardware, terms.limits)
        self._machine.slow_factor = 1.0 / terms.speed
        self._context_tokens = min(LLAMA_3_1_CONTEXT_TOKENS, terms.hardware.kv_capacity_tokens)
        self._queue = AdmissionQueue(
            QueueLimits(
                terms.queued_max,
                terms.limits.sequences_max,
                terms.hardware.kv_capacity_tokens,
                prefill_limit(self.capacity),
            )
        )
        self._accounts = ReplicaLoad(self.capacity)
        self._accounts.engine_started(terms.hardware.kv_capacity_tokens, prefix_cache=True)
        self._lengths = OutputLengthEstimator()
        self._ratios = BytesPerToken()
        self._runs: dict[str, tuple[Flight, Router]] = {}
        self._listeners: dict[str, Router] = {}
        self._told: dict[str, int] = {}  # how much of the prefix cache's changes each of them was told
        self._limbo: list[tuple[Flight, Router]] = []
        self._sequence = 0
        self._wake_ns = 0
        self._lag_ns = 0  # time its machine stood still
        self._frozen_ns = 0
        self._counted_ns = 0
        self._ready_ns = -1  # never
        self._phase_ns = int(terms.report_interval_ns * random.random())

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return len(self._runs) + len(self._limbo)

    @property
    def alive(self) -> bool:
        """Whether its process exists."""
        return self.state is not State.GONE

    def lived_s(self) -> float:
        """Seconds since it first took requests, until it died."""
        if not self.alive or self._ready_ns < 0:
            return self.track.lived_s
        return (self._loop.now_ns - self._ready_ns) / NS_PER_S

    # --- its life

    def open(self) -> None:
        """Its engine has loaded: it takes requests."""
        self.state = State.READY
        self._ready_ns = self._loop.now_ns
        self._loop.at(self._loop.now_ns + self._phase_ns, self._tick)

    def drain(self) -> None:
        """Takes no new requests; those in flight go on."""
        if self.alive:
            self.state = State.DRAINING
            self._tell()

    def die(self) -> None:
        """Its process ends: everything in flight fails at once, and its streams break."""
        self._count(force=True)
        self.track.lived_s = self.lived_s()
        self.state, lost = State.GONE, [*self._runs.values(), *self._limbo]
        self._runs.clear()
        self._limbo.clear()
        for router in self._listeners.values():
            self._loop.at(self._loop.now_ns + self._terms.report_delay_ns, router.on_stream_lost, self.replica_id)
        for flight, router in lost:
            router.failed(flight, Reason.REPLICA_LOST)

    def freeze(self) -> None:
        """Its machine stands still, agent and engine; connections stay open and nothing comes out of them."""
        if self.alive and not self.frozen:
            self._count(force=True)
            self.frozen, self._frozen_ns, self._wake_ns = True, self._loop.now_ns, 0

    def thaw(self) -> None:
        """It goes on where it stood still."""
        if not self.frozen or not self.alive:
            return
        self._lag_ns += self._loop.now_ns - self._frozen_ns
        self.frozen = False
        limbo, self._limbo = self._limbo, []
        for flight, router in limbo:
            self.accept(flight, router)
        self._plan()
        if self.state is not State.STARTING:
            self._loop.at(self._loop.now_ns, self._tick)

    def slow_down(self, factor: float) -> None:
        """Every step of its engine takes `factor` times as long from the next one on."""
        if not self.frozen:
            self._advance()
        self._machine.slow_factor = factor / self._terms.speed
        self._plan()

    # --- a request's way

    def accept(self, flight: Flight, router: Router) -> None:
        """A router sends a request."""
        if self.frozen:
            self._limbo.append((flight, router))
            return
        self._accounts.dispatches.receive(router.router_id, flight.dispatch.number)
        if self.state is not State.READY:
            reasons = {State.GONE: Reason.REPLICA_LOST, State.DRAINING: Reason.SHUTTING_DOWN}
            router.failed(flight, reasons.get(self.state, Reason.NOT_READY))
        elif flight.input_tokens + flight.output_tokens > self._context_tokens:
            router.refused_by_engine(flight, Reason.PROMPT_TOO_LONG)
        else:
            self._enqueue(flight, router)

    def cancel(self, flight: Flight) -> None:
        """A router has lost interest in a request."""
        self._limbo = [waiting for waiting in self._limbo if waiting[0] is not flight]
        if self._runs.pop(flight.key, None) is None:
            return
        if not self.frozen:
            self._advance()
        self._machine.cancel(flight.key)
        self._leave(flight.key)
        self._plan()

    def _enqueue(self, flight: Flight, router: Router) -> None:
        tenant, cost = flight.tenant, flight.price.cost
        model_id, now_s = self._terms.model_id, self._loop.now_ns / NS_PER_S
        tokens_in = self._ratios.estimate_tokens(model_id, flight.prompt_bytes, start=_BYTES_PER_TOKEN_START)
        tokens_out = self._lengths.estimate(tenant.id, model_id, max_tokens=flight.max_tokens)
        turn = turn_s(now_s, flight.prefill_milli_mu, self.capacity)
        offer = self._queue.offer(flight.ticket(tokens_in + tokens_out, turn))
        if not offer.accepted:
            router.failed(flight, Reason.QUEUE_FULL)
            return
        self._runs[flight.key] = (flight, router)
        demand = Demand(tenant.id, flight.prefill_milli_mu, cost.decode_milli_mu, tokens_in, tokens_out)
        origin = Origin(router.router_id, flight.dispatch.number, flight.shard_key, flight.prefix)
        self._accounts.queue(flight.key, demand, origin, now_s)
        if offer.displaced is not None:
            displaced, its_router = self._runs.pop(offer.displaced.request_id)
            self._accounts.end(displaced.key)
            its_router.failed(displaced, Reason.QUEUE_FULL)
        self._admit()

    def _admit(self) -> None:
        for ticket in self._queue.admit():
            self._accounts.start(ticket.request_id)
            self._loop.at(self._loop.now_ns + _INGEST_NS, self._join, ticket.request_id)

    def _join(self, key: str) -> None:
        """A request reaches the engine's scheduler."""
        run = self._runs.get(key)
        if run is None:
            return
        if self.frozen:
            self._loop.at(self._loop.now_ns + self._terms.report_interval_ns, self._join, key)
            return
        flight = run[0]
        self._advance()
        self._machine.add(Work(key, flight.input_tokens, flight.output_tokens, flight.tenant.priority, flight.prefix))
        self._plan()

    def _leave(self, key: str) -> None:
        self._queue.leave(key, decode_milli_mu=self._accounts.end(key))
        self._admit()

    # --- the engine in virtual time

    def _plan(self) -> None:
        """Plans the next wake-up."""
        next_s = self._machine.next_event_s()
        if next_s is None or self.frozen:
            self._wake_ns = 0
            return
        wake_ns = int(next_s * NS_PER_S) + 1 + self._lag_ns
        if wake_ns != self._wake_ns:
            self._wake_ns = wake_ns
            self._loop.at(wake_ns, self._wake, wake_ns)

    def _wake(self, wake_ns: int) -> None:
        if wake_ns == self._wake_ns and self.alive:
            self._wake_ns = 0
            self._advance()
            self._plan()

    def _advance(self) -> None:
        """Computes the engine's steps up to now; what comes out is seen a little later."""
        loop, lag_ns = self._loop, self._lag_ns
        for time_s, kind, key, cached in self._machine.advance((loop.now_ns - lag_ns) / NS_PER_S):
            time_ns = int(time_s * NS_PER_S) + lag_ns
            if kind is _FIRST_TOKEN:
                loop.at(time_ns + _TOKEN_NS, self._see_first, (key, cached))
            elif kind is _FINISHED:
                loop.at(time_ns + _FINISH_NS, self._see_end, key)
            else:
                self.track.preemptions += 1

    def _see_first(self, seen: tuple[str, int]) -> None:
        key, cached = seen
        run = self._runs.get(key)
        if run is None:
            return
        flight, router = run
        flight.cached = cached
        flight.delivered = 1
        self._produce(key, 1)
        self._queue.started(key)
        self._admit()
        self._report_with_answer(router)
        router.first_token(flight)

    def _see_end(self, key: str) -> None:
        run = self._runs.pop(key, None)
        if run is None:
            return
        flight, router = run
        model_id, tenant = self._terms.model_id, flight.tenant
        self._produce(key, flight.output_tokens - flight.delivered)
        flight.delivered = flight.output_tokens
        self._ratios.observe(
            model_id,
            prompt_bytes=flight.prompt_bytes,
            input_tokens=flight.input_tokens,
            start=_BYTES_PER_TOKEN_START,
        )
        self._lengths.observe(tenant.id, model_id, flight.output_tokens)
        self._leave(key)
        self.track.requests += 1
        self._report_with_answer(router)
        router.finished(flight)

    # --- its reports

    def key_loads(self) -> tuple[KeyLoad, ...]:
        """Its load by key, as a load stream that asks for it says."""
        return self._accounts.key_loads(self._loop.now_ns / NS_PER_S)

    def _report_with_answer(self, router: Router) -> None:
        if self._terms.answers_report:
            router.fleet.report(self.replica_id, self._measure(router), self.state.value, self._loop.now_ns)

    def listen(self, router: Router) -> None:
        """A router opens a load stream."""
        if router.router_id not in self._listeners and self.alive:
            self._listeners[router.router_id] = router
            if self.state is State.READY and not self.frozen:
                self._send_report(router)

    def _tick(self, _: object) -> None:
        if self.alive and not self.frozen:
            self._tell()
            self._loop.at(self._loop.now_ns + self._terms.report_interval_ns, self._tick)

    def _tell(self) -> None:
        if not self.frozen:
            for router in self._listeners.values():
                self._send_report(router)

    def _send_report(self, router: Router) -> None:
        changes = self._accounts.cache.changes(self._told.get(router.router_id))
        self._told[router.router_id] = changes.position
        change = CacheChange(changes.whole, changes.added, changes.dropped) if changes else None
        heard = (self.replica_id, self._measure(router, change), self.state.value)
        self._loop.at(self._loop.now_ns + self._terms.report_delay_ns, router.on_report, heard)

    def _measure(self, router: Router, change: CacheChange | None = None) -> Report:
        self._count()
        load, accounts = self._accounts.load(), self._accounts
        self._sequence += 1
        return Report(
            self._sequence,
            load.pending_prefill_milli_mu,
            load.decode_milli_mu,
            load.queued_decode_milli_mu,
            load.queued_requests + load.running_requests,
            self._machine.kv_used_tokens,
            accounts.kv_capacity_tokens,
            accounts.dispatches.seen(router.router_id),
            change,
        )

    def _count(self, *, force: bool = False) -> None:
        """Counts the tokens that came out since the last look."""
        now_ns = self._loop.now_ns
        if self.frozen or (not force and now_ns - self._counted_ns < _COUNT_INTERVAL_NS):
            return
        self._counted_ns = now_ns
        self._advance()
        if now_ns >= self._wake_ns:
            self._plan()  # before it, nothing has happened that would change it
        runs, produce = self._runs, self._produce
        for key, produced in self._machine.progress():
            run = runs.get(key)
            if run is None:
                continue
            flight = run[0]
            fresh = produced - flight.delivered
            if fresh > 0 and flight.delivered:
                produce(key, fresh)
                flight.delivered = produced
                if produced > flight.covered_tokens:
                    run[1].outran(flight)

    def _produce(self, key: str, tokens: int) -> None:
        self.track.served_milli_mu += self._accounts.produce(key, tokens, self._loop.now_ns / NS_PER_S)

    def sample(self, bucket: int) -> None:
        """Notes its utilisation and what waits at it for the results."""
        if not self.alive or self.state is State.STARTING:
            return
        self._count()
        self.track.utilization.append((bucket, self._accounts.utilization(self._loop.now_ns / NS_PER_S)))
        waiting_s = self._accounts.load().pending_prefill_milli_mu * 60.0 / self.capacity
        self.track.pending_s.append((bucket, waiting_s))
