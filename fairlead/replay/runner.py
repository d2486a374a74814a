"""Sends a trace: open loop, at the recorded times, whatever the platform answers.

trace = read_trace()
targets = [ReplayTarget("alpha", "fl-..."), ReplayTarget("beta", "fl-...")]
report = await replay(trace.requests, targets, ReplayOptions(["127.0.0.1:8081"], speed=2.0), print)
print(report.total.ok, report.to_dict()["total"]["ttft"])
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fairlead.errors import InvalidArgumentError
from fairlead.replay.deal import deal, group_of
from fairlead.replay.prompts import LengthScale, PromptMaker, choose_scale, describe_scale
from fairlead.replay.recorder import Recorder
from fairlead.replay.report import Outcome, ReplayReport, percentiles, tenant_report
from fairlead.replay.traces import TraceRequest
from fairlead.sdk.async_client import AsyncClient
from fairlead.sdk.model_choice import choose_model
from fairlead.sdk.results import ModelInfo
from fairlead.sdk.retries import RetryPolicy
from fairlead.sdk.settings import Tls

PROGRESS_INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True)
class ReplayTarget:
    """A tenant that requests are dealt to."""

    name: str
    """Shown in the report."""
    api_key: str
    """Its key."""
    model: str = ""
    """The model to ask; may be left empty where the tenant may use exactly one."""
    weight: float = 1.0
    """Its share of the requests, relative to the other targets."""


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to replay."""

    addresses: Sequence[str]
    """host:port of the routers."""
    speed: float = 1.0
    """Recorded seconds per real second: 2 sends twice as fast."""
    length_factor: float | None = None
    """Multiplies all lengths; None for the largest up to 1 at which nearly all requests fit the model."""
    in_flight_max: int = 512
    """Safety valve: what is due while so many are in flight is counted as not sent."""
    deadline_s: float = 120.0
    """Deadline of each request, seconds."""
    priority: Literal["interactive", "batch"] = "interactive"
    """Scheduling class of all requests."""
    attempts_max: int = 1
    """Tries of each request: 1 shows every refusal."""
    exact_output: bool = True
    """Have the model run to the recorded length instead of to its own end."""
    tls: bool | Tls | None = None
    """As for `fairlead.AsyncClient`."""


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """Where a replay stands."""

    elapsed_s: float
    """Real seconds since it began."""
    due: int
    """Requests of the trace that were due so far."""
    total: int
    """Requests of the trace."""
    in_flight: int
    """Sent and not ended."""
    ended: dict[str, int]
    """Ended requests by outcome."""
    not_sent: int
    """Held back by the safety valve."""
    output_tokens: int
    """Tokens that arrived."""


async def replay(
    requests: Sequence[TraceRequest],
    targets: Sequence[ReplayTarget],
    options: ReplayOptions,
    on_progress: Callable[[ReplayProgress], None] | None = None,
    *,
    stop: asyncio.Event | None = None,
    notes: Sequence[str] = (),
) -> ReplayReport:
    """Replays a trace and reports what came of it.

    Args:
        requests: The trace, sorted by arrival; lengths as recorded, they are scaled here.
        targets: The tenants; requests are dealt to them deterministically, by client or conversation where known.
        options: How to replay.
        on_progress: Called about five times a second on the event loop, and once at the end.
        stop: Setting it ends the replay early: nothing more is sent, what is in flight is cancelled and counted so.
        notes: Put in front of the report's own.

    Returns:
        The report. Refusals and failures of single requests are in it, not raised.

    Raises:
        InvalidArgumentError: An option or a target makes no sense.
        FairleadError: The models of a target could not be read: wrong key, no router.
    """
    _check(requests, options)
    places = deal(requests, [target.weight for target in targets])
    clients = [_connect(target, options) for target in targets]
    try:
        lanes = []
        for place, (target, client) in enumerate(zip(targets, clients, strict=True)):
            own = [request for request, at in zip(requests, places, strict=True) if at == place]
            lanes.append(await _Lane.open(target, client, own or requests, options))
        run = _Run(requests, [lanes[place] for place in places], options, stop or asyncio.Event())
        await run.run(on_progress)
    finally:
        for client in clients:
            await client.aclose()
    said = dict.fromkeys([*notes, *(lane.note for lane in lanes)])
    return run.report(lanes, tuple(said))


def _check(requests: Sequence[TraceRequest], options: ReplayOptions) -> None:
    if not requests:
        raise InvalidArgumentError("there is nothing to replay: the trace holds no requests", field="requests")
    if not options.speed > 0:
        raise InvalidArgumentError(f"speed must be above 0, not {options.speed}", field="speed")
    if options.in_flight_max < 1:
        raise InvalidArgumentError("in_flight_max must be 1 or more", field="in_flight_max")


def _connect(target: ReplayTarget, options: ReplayOptions) -> AsyncClient:
    return AsyncClient(
        options.addresses,
        api_key=target.api_key,
        tls=options.tls,
        deadline_s=options.deadline_s,
        retries=RetryPolicy(attempts_max=options.attempts_max),
    )


@dataclass(frozen=True, slots=True)
class _Lane:
    """One target, ready to be sent to."""

    target: ReplayTarget
    client: AsyncClient
    model: ModelInfo
    scale: LengthScale
    prompts: PromptMaker
    recorder: Recorder
    note: str

    @staticmethod
    async def open(
        target: ReplayTarget, client: AsyncClient, requests: Sequence[TraceRequest], options: ReplayOptions
    ) -> _Lane:
        model = choose_model(target.model, await client.list_models(), target.name)
        scale = choose_scale(requests, model, options.length_factor)
        prompts = PromptMaker(model.bytes_per_token, scale.factor)
        note = f"{target.name}: {describe_scale(scale, requests, model)}"
        return _Lane(target, client, model, scale, prompts, Recorder(target.name), note)


class _Run:
    """One replay under way."""

    def __init__(
        self, requests: Sequence[TraceRequest], lanes: Sequence[_Lane], options: ReplayOptions, stop: asyncio.Event
    ) -> None:
        self._requests = requests
        self._lanes = lanes
        self._options = options
        self._stop = stop
        self._began_s = 0.0
        self._ended_s = 0.0
        self._due = 0
        self._received: Counter[str] = Counter()
        self._not_sent: Counter[str] = Counter()
        self._in_flight: set[asyncio.Task[None]] = set()

    async def run(self, on_progress: Callable[[ReplayProgress], None] | None) -> None:
        self._began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            ticker = group.create_task(self._tick(on_progress)) if on_progress else None
            stopper = group.create_task(self._cancel_when_stopped())
            try:
                await self._send_all(group)
                while self._in_flight:
                    await asyncio.wait(self._in_flight)
            finally:
                stopper.cancel()
                if ticker is not None:
                    ticker.cancel()
        self._ended_s = time.monotonic()
        if on_progress:
            on_progress(self._progress())

    async def _send_all(self, group: asyncio.TaskGroup) -> None:
        for number, (request, lane) in enumerate(zip(self._requests, self._lanes, strict=True)):
            due_s = self._began_s + request.arrival_s / self._options.speed
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                await self._sleep(wait_s)
            elif number % 16 == 0:
                await asyncio.sleep(0)  # behind the schedule: answers must still be read
            if self._stop.is_set():
                return
            self._due = number + 1
            name = lane.target.name
            if len(self._in_flight) >= self._options.in_flight_max:
                self._not_sent[name] += 1
                continue
            task = group.create_task(self._send(number, request, lane, due_s))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    async def _sleep(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._stop.wait()
        except TimeoutError:
            return

    async def _cancel_when_stopped(self) -> None:
        await self._stop.wait()
        for task in self._in_flight:
            task.cancel()

    async def _send(self, number: int, request: TraceRequest, lane: _Lane, due_s: float) -> None:
        self._received[lane.target.name] += 1
        lengths = lane.scale.apply(request)
        prompt = lane.prompts.prompt(number, request, lengths.input_tokens)
        stream = lane.client.stream_generate(
            prompt,
            model=lane.model.id,
            max_tokens=lengths.output_tokens,
            ignore_end_token=self._options.exact_output,
            priority=self._options.priority,
            session=group_of(number, request) if request.prefix_blocks else None,
        )
        with lane.recorder.record(stream.request_id, due_s, time.monotonic) as record:
            async with stream:
                async for piece in stream:
                    record.piece(piece.output_tokens)
                record.ended(stream.result)

    async def _tick(self, on_progress: Callable[[ReplayProgress], None]) -> None:
        while True:
            on_progress(self._progress())
            await asyncio.sleep(PROGRESS_INTERVAL_S)

    def _progress(self) -> ReplayProgress:
        recorders = {lane.recorder.tenant: lane.recorder for lane in self._lanes}.values()
        ended = {outcome.value: sum(recorder.ended[outcome] for recorder in recorders) for outcome in Outcome}
        return ReplayProgress(
            elapsed_s=time.monotonic() - self._began_s,
            due=self._due,
            total=len(self._requests),
            in_flight=len(self._in_flight),
            ended=ended,
            not_sent=self._not_sent.total(),
            output_tokens=sum(recorder.output_tokens for recorder in recorders),
        )

    def report(self, lanes: Sequence[_Lane], notes: tuple[str, ...]) -> ReplayReport:
        wall_s = self._ended_s - self._began_s
        tenants = tuple(
            tenant_report(
                lane.target.name,
                lane.recorder.samples,
                received=self._received[lane.target.name],
                not_sent=self._not_sent[lane.target.name],
                wall_s=wall_s,
            )
            for lane in lanes
        )
        samples = tuple(sample for lane in lanes for sample in lane.recorder.samples)
        total = tenant_report(
            "total", samples, received=self._received.total(), not_sent=self._not_sent.total(), wall_s=wall_s
        )
        return ReplayReport(
            total=total,
            tenants=tenants,
            notes=notes,
            speed=self._options.speed,
            wall_s=wall_s,
            lag_p99_ms=percentiles(sample.lag_s for sample in samples).p99_ms,
            interrupted=self._stop.is_set(),
            samples=samples,
        )
