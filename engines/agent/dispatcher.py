"""The way of a request through the agent: into the queue, into the engine, token by token out again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final, cast

from common.clock import NS_PER_S, Clock
from engines.agent.core.decoding import DecodeMeter, Sequence
from engines.agent.core.fair_line import turn_s
from engines.agent.core.load import Load, sane_price
from engines.agent.core.queue import AdmissionQueue, Priority, QueueLimits, Ticket, prefill_limit
from engines.agent.core.replica_load import Demand, ReplicaLoad
from engines.agent.job import Job, Refusal, prompt_bytes
from engines.agent.metrics import Displacement
from engines.agent.notices import Notices
from engines.engine import Engine, EngineDescription, Finish, TokenBatch
from fairlead.errors import FairleadError, InvalidArgumentError, QuotaExceededError, Reason, UnavailableError
from model_units.length import OutputLengthEstimator
from model_units.text import BytesPerToken
from model_units.units import MilliModelUnitsPerMinute

_QUEUE_RETRY_S: Final = 1.0
_BYTES_PER_TOKEN_START: Final = 4.0


@dataclass(slots=True, eq=False)
class _Run:
    """A job on its way."""

    job: Job
    ticket: Ticket
    arrived_s: float
    admitted: asyncio.Future[None]
    sequence: Sequence
    error: FairleadError | None = None
    reader: asyncio.Task[object] | None = field(default=None)  # set while it waits for the engine
    asked_s: float = 0.0  # of the last batch
    answered_s: float = 0.0

    def interrupt(self, error: FairleadError) -> None:
        """Makes the run end with `error` at its next await, or now if it is in one."""
        self.error = self.error or error
        if not self.admitted.done():
            self.admitted.set_result(None)
        elif self.reader is not None:
            self.reader.cancel()


class Dispatcher:
    """The queue in front of one engine and everything in flight.

    Refuses requests until `open` and after `close`; the agent's own probes and calibrations always pass.

    Args:
        engine: The engine.
        model_id: What it serves.
        queued_max: Most requests that wait.
        capacity: What the replica serves, mMU per minute, above 0.
        clock: Monotonic time.
        changed: Told when the queue becomes empty or no longer is.
        engine_failed: Told when the engine failed a request.
        displaced: Told when a waiting request had to leave a full queue for another.

    Attributes:
        meter: Follows how fast the engine decodes; the agent's own probes are left out.
        accounts: What load reports say.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        model_id: str,
        queued_max: int,
        capacity: MilliModelUnitsPerMinute,
        clock: Clock,
        changed: Notices,
        engine_failed: Callable[[], None],
        displaced: Callable[[Displacement], None] = lambda _why: None,
    ) -> None:
        self._engine = engine
        self._model_id = model_id
        self._queued_max = queued_max
        self._clock = clock
        self._changed = changed
        self._engine_failed = engine_failed
        self._displaced = displaced
        self._capacity = capacity
        self._prefill_limit = prefill_limit(capacity)
        self._queue = AdmissionQueue(QueueLimits(queued_max, 1))
        self.accounts = ReplicaLoad(capacity)
        self.meter = DecodeMeter()
        self._lengths = OutputLengthEstimator()
        self._bytes_per_token = BytesPerToken()
        self._runs: dict[str, _Run] = {}
        self._count = 0
        self._reading = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusal: Refusal | None = Refusal("the engine is starting", Reason.NOT_READY)

    @property
    def refusal(self) -> Refusal | None:
        """Why requests are refused, or None when they are taken."""
        return self._refusal

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return len(self._runs)

    @property
    def awaited(self) -> int:
        """Requests that wait for the engine now, the agent's own probes not counted.

        0 while every request inside is held up by its own reader: then the engine owes nobody anything, and those in
        the queue wait for the readers.
        """
        return self._reading + self._queue.waiting if self._reading else 0

    def waiting(self, priority: Priority) -> int:
        """Requests of a class that wait for their turn."""
        return self._queue.waiting_of(priority)

    async def idle(self) -> None:
        """Returns once nothing is in flight."""
        await self._idle.wait()

    def load(self) -> Load:
        """The load now."""
        return self.accounts.load()

    def utilization(self) -> float:
        """Share of the capacity used in the last ten seconds."""
        return self.accounts.utilization(self._now_s())

    def resize(self, description: EngineDescription) -> None:
        """Takes what a freshly started engine says of itself. Its prefix cache is empty."""
        self.accounts.engine_started(description.kv_capacity_tokens, prefix_cache=description.prefix_cache)
        self._queue.resize(
            QueueLimits(
                self._queued_max,
                max(1, description.sequences_max),
                max(0, description.kv_capacity_tokens),
                self._prefill_limit,
            )
        )
        self._admit()

    def open(self) -> None:
        """Takes requests from now on."""
        self._refusal = None

    def close(self, refusal: Refusal) -> None:
        """Refuses requests from now on; those in flight go on."""
        self._refusal = refusal

    def interrupt_all(self, refusal: Refusal) -> None:
        """Ends everything in flight."""
        for run in list(self._runs.values()):
            run.interrupt(refusal.error())

    async def run(self, job: Job, *, probe: bool = False, calibration: bool = False) -> AsyncGenerator[TokenBatch]:
        """Serves a request.

        Closing the generator, or cancelling the task that reads it, takes the request out of the queue or stops the
        engine's work on it at once.

        Args:
            job: The request.
            probe: The agent's own: passes a closed door and does not count as others' work.
            calibration: Of a calibration this replica is set aside for: passes a closed door.

        Yields:
            What the engine produced; the last batch says why it ended.

        Raises:
            QuotaExceededError: The queue is full.
            UnavailableError: The agent takes no requests, or the engine failed.
            FairleadError: What the engine raised.
        """
        self.accounts.dispatches.receive(job.origin.router_id, job.origin.dispatch_number)
        if self._refusal is not None and not (probe or calibration):
            raise self._refusal.error()
        run = self._enqueue(job)
        try:
            await run.admitted
            if run.error is not None:
                raise run.error
            self.accounts.start(run.ticket.request_id)
            if job.on_admitted is not None:
                job.on_admitted(self._now_s() - run.arrived_s)
            request = replace(job.request, request_id=run.ticket.request_id)
            stream = cast(AsyncGenerator[TokenBatch], self._engine.generate(request))
            produced, finished = 0, False
            async with aclosing(stream):
                while (batch := await self._next(run, stream, counts=not probe)) is not None:
                    produced += batch.output_tokens
                    self.accounts.produce(run.ticket.request_id, batch.output_tokens, run.answered_s)
                    if produced and produced == batch.output_tokens:
                        self._queue.started(run.ticket.request_id)
                        self._admit()
                    if not probe:
                        self.meter.batch(run.sequence, batch.output_tokens, run.asked_s, run.answered_s)
                    if batch.finish is not None:
                        finished = True
                        self._learn(job, batch, produced)
                        self.meter.settle(run.sequence, batch.input_tokens, batch.cached_input_tokens)
                        self._end(run)
                    yield batch
            if not finished:
                self._engine_failed()
                raise UnavailableError("the engine ended the stream unfinished", reason=Reason.ENGINE_FAILED)
        finally:
            self._end(run)

    def _enqueue(self, job: Job) -> _Run:
        self._count += 1
        request, now_s = job.request, self._now_s()
        name = f"{request.request_id}#{self._count}"  # a retry may meet the attempt it follows
        tokens_out = self._expected_output(job)
        tokens_in = self._bytes_per_token.estimate_tokens(
            self._model_id, prompt_bytes(request.prompt), start=_BYTES_PER_TOKEN_START
        )
        prefill, decode = sane_price(job.prefill_milli_mu), sane_price(job.decode_milli_mu)
        ticket = Ticket(
            name,
            Priority(request.priority),
            tokens_in + tokens_out,
            job.tenant_id,
            job.weight,
            prefill,
            decode,
            turn_s(now_s, prefill, self._capacity),
        )
        self._offer(ticket)
        run = _Run(job, ticket, now_s, asyncio.get_running_loop().create_future(), Sequence(tokens_in))
        self._runs[name] = run
        self._idle.clear()
        self.accounts.queue(name, Demand(job.tenant_id, prefill, decode, tokens_in, tokens_out), job.origin, now_s)
        self._admit()
        if self._queue.waiting == 1:
            self._changed.notify()
        return run

    def _offer(self, ticket: Ticket) -> None:
        offer = self._queue.offer(ticket)
        if not offer.accepted:
            raise _queue_full()
        if offer.displaced is not None:
            overtaken = offer.displaced.priority < ticket.priority
            self._displaced(Displacement.HIGHER_CLASS if overtaken else Displacement.FAIR_SHARE)
            self._runs[offer.displaced.request_id].interrupt(_queue_full())

    def _expected_output(self, job: Job) -> int:
        sampling = job.request.sampling
        if sampling.ignore_end_token:
            return sampling.max_tokens
        return self._lengths.estimate(job.tenant_id, self._model_id, max_tokens=sampling.max_tokens)

    def _admit(self) -> None:
        waited = self._queue.waiting
        for ticket in self._queue.admit():
            run = self._runs[ticket.request_id]
            if not run.admitted.done():
                run.admitted.set_result(None)
        if waited and not self._queue.waiting:
            self._changed.notify()

    async def _next(self, run: _Run, stream: AsyncIterator[TokenBatch], *, counts: bool) -> TokenBatch | None:
        """The next batch; an interruption of the run ends the wait with the run's error."""
        if run.error is not None:
            raise run.error
        task = asyncio.current_task()
        assert task is not None
        run.reader = task
        self._reading += counts
        run.asked_s = self._now_s()
        if counts:
            self.meter.asked(run.asked_s)
        try:
            return await anext(stream, None)
        except asyncio.CancelledError:
            if run.error is not None and task.uncancel() == 0:
                raise run.error from None
            raise
        except Exception as error:
            if counts and not isinstance(error, InvalidArgumentError):
                self._engine_failed()
            raise
        finally:
            run.reader = None
            run.answered_s = self._now_s()
            self._reading -= counts
            if counts:
                self.meter.answered(run.answered_s)

    def _learn(self, job: Job, last: TokenBatch, produced: int) -> None:
        if not job.tenant_id or last.finish is Finish.CANCELLED:
            return
        request = job.request
        self._bytes_per_token.observe(
            self._model_id,
            prompt_bytes=prompt_bytes(request.prompt),
            input_tokens=last.input_tokens,
            start=_BYTES_PER_TOKEN_START,
        )
        if not request.sampling.ignore_end_token:
            self._lengths.observe(job.tenant_id, self._model_id, produced)

    def _end(self, run: _Run) -> None:
        """Takes a run off every account; doing it again does nothing."""
        name = run.ticket.request_id
        if self._runs.pop(name, None) is not None:
            self._queue.leave(name, decode_milli_mu=self.accounts.end(name))
            self._admit()
            if not self._runs:
                self._idle.set()

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / NS_PER_S


def _queue_full() -> QuotaExceededError:
    return QuotaExceededError(
        "the replica's queue is full; try another one or come back",
        reason=Reason.QUEUE_FULL,
        retry_after_s=_QUEUE_RETRY_S,
    )
