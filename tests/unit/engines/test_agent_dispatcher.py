from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest

from common.clock import FakeClock
from engines.agent.core.load import Load
from engines.agent.core.queue import Priority
from engines.agent.dispatcher import Dispatcher
from engines.agent.job import Job, Refusal
from engines.agent.metrics import Displacement
from engines.agent.notices import Notices
from engines.agent.probe import probe
from engines.engine import EngineRequest, Prompt, Sampling, TokenBatch
from fairlead.errors import FairleadError, InvalidArgumentError, QuotaExceededError, Reason, UnavailableError
from model_units.cost import cost
from model_units.profiles import built_in_profiles
from model_units.units import MilliModelUnits, MilliModelUnitsPerMinute, to_replica_seconds
from tests.support.waiting import eventually
from tests.unit.engines.fake_engine import FakeEngine

GONE = Refusal("gone", Reason.REPLICA_LOST)
NOTHING = Load(0, MilliModelUnits(0), 0, MilliModelUnits(0), MilliModelUnits(0))


class Bench:
    """A dispatcher on a fake engine."""

    def __init__(
        self,
        *,
        sequences_max: int = 8,
        queued_max: int = 100,
        kv_capacity_tokens: int = 100_000,
        clock: FakeClock | None = None,
    ) -> None:
        self.engine = FakeEngine(sequences_max, kv_capacity_tokens)
        self.failures = 0
        self.dispatcher = Dispatcher(
            self.engine,
            model_id="m",
            queued_max=queued_max,
            capacity=MilliModelUnitsPerMinute(100_000),
            clock=clock or FakeClock(),
            changed=Notices(),
            engine_failed=self._failed,
        )

    def _failed(self) -> None:
        self.failures += 1

    async def open(self) -> Bench:
        self.dispatcher.resize(await self.engine.start())
        self.dispatcher.open()
        return self

    async def collect(self, name: str, *, max_tokens: int = 3, priority: int = 2) -> list[TokenBatch]:
        sampling = Sampling(max_tokens, ignore_end_token=True)
        job = Job(EngineRequest(name, Prompt("hi"), sampling, priority), "tenant", 10, 20)
        async with aclosing(self.dispatcher.run(job)) as stream:
            return [batch async for batch in stream]

    def start(self, name: str, *, max_tokens: int = 3, priority: int = 2) -> asyncio.Task[list[TokenBatch]]:
        return asyncio.create_task(self.collect(name, max_tokens=max_tokens, priority=priority))

    def inside(self) -> list[str]:
        return [name.partition("#")[0] for name in self.engine.inside]


async def test_a_request_goes_in_and_leaves_nothing() -> None:
    """Proves the way of a request: its load while inside, all its tokens, and exact zeros afterwards."""
    bench = await Bench().open()
    task = bench.start("a")
    await eventually(lambda: bench.inside() == ["a"])
    assert bench.dispatcher.load() == Load(0, MilliModelUnits(10), 1, MilliModelUnits(20), MilliModelUnits(0))
    assert bench.dispatcher.awaited == 1
    bench.engine.give(3)
    assert len(await task) == 3
    assert bench.dispatcher.load() == NOTHING
    assert (bench.dispatcher.in_flight, bench.dispatcher.awaited) == (0, 0)
    assert bench.dispatcher.utilization() > 0


async def test_closed_doors_refuse_all_but_the_probe() -> None:
    """Proves that nobody gets in before the engine was probed, and that a drain refuses with its own reason."""
    bench = Bench()
    bench.dispatcher.resize(await bench.engine.start())
    with pytest.raises(UnavailableError) as refused:
        await bench.collect("a")
    assert refused.value.reason is Reason.NOT_READY
    probing = asyncio.create_task(probe(bench.dispatcher))
    await eventually(lambda: bench.inside() == ["probe"])
    assert bench.dispatcher.awaited == 0
    bench.engine.give(2)
    await probing
    bench.dispatcher.close(Refusal("draining", Reason.SHUTTING_DOWN))
    with pytest.raises(UnavailableError, match="draining"):
        await bench.collect("a")


async def test_probe_enters_a_full_engine() -> None:
    """Proves that the kept slot lets a probe in while ordinary requests fill the engine and the queue."""
    bench = await Bench(sequences_max=3).open()
    tasks = [bench.start(f"r{index}") for index in range(5)]
    await eventually(lambda: bench.inside() == ["r0", "r1"])
    probing = asyncio.create_task(probe(bench.dispatcher))
    await eventually(lambda: bench.inside() == ["r0", "r1", "probe"])
    bench.engine.give(2)
    await probing
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert bench.dispatcher.load() == NOTHING


async def test_interrupting_ends_waiting_and_running_with_the_given_error() -> None:
    """Proves that losing the engine ends every request with a typed error, although the engine never answers."""
    bench = await Bench(sequences_max=2).open()
    tasks = [bench.start(name) for name in ("running", "waiting")]
    await eventually(lambda: bench.inside() == ["running"])
    bench.dispatcher.interrupt_all(GONE)
    for task in tasks:
        with pytest.raises(UnavailableError, match="gone"):
            await task
    assert bench.dispatcher.load() == NOTHING
    assert bench.engine.inside == {}


async def test_cancelling_is_not_swallowed() -> None:
    """Proves that a cancelled caller stays cancelled, also when the engine is lost in the same moment."""
    bench = await Bench().open()
    task = bench.start("a")
    await eventually(lambda: bench.inside() == ["a"])
    bench.dispatcher.interrupt_all(GONE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.dispatcher.load() == NOTHING


async def test_a_slow_reader_is_not_the_engines_fault() -> None:
    """Proves that the engine owes nothing while the only reader is away, not even to those that wait behind it."""
    bench = await Bench(sequences_max=2).open()
    job = Job(EngineRequest("lazy", Prompt("hi"), Sampling(9, ignore_end_token=True)), "tenant", 1, 1)
    async with aclosing(bench.dispatcher.run(job)) as stream:
        first = asyncio.ensure_future(anext(stream))
        await eventually(lambda: bench.inside() == ["lazy"])
        bench.engine.give()
        await first
        waiting = bench.start("waiting")
        await eventually(lambda: bench.dispatcher.load().queued_requests == 1)
        assert bench.dispatcher.awaited == 0
    await eventually(lambda: bench.inside() == ["waiting"])
    assert bench.dispatcher.awaited == 1
    bench.engine.give(3)
    await waiting


async def test_full_queue_refuses_and_displaces_typed() -> None:
    """Proves that both the refused newcomer and the displaced batch request learn QUEUE_FULL and when to come back."""
    bench = await Bench(sequences_max=2, queued_max=1).open()
    running = bench.start("running")
    batch = bench.start("batch", priority=1)
    await eventually(lambda: bench.dispatcher.load().queued_requests == 1)
    with pytest.raises(QuotaExceededError) as refused:
        await bench.collect("more", priority=1)
    interactive = bench.start("interactive")
    with pytest.raises(QuotaExceededError) as displaced:
        await batch
    for error in (refused.value, displaced.value):
        assert (error.reason, error.retry_after_s) == (Reason.QUEUE_FULL, 1.0)
    bench.engine.give(3)
    await running
    await eventually(lambda: bench.inside() == ["interactive"])
    bench.engine.give(3)
    await interactive


@pytest.mark.parametrize(
    ("failure", "counted"),
    [
        (UnavailableError("dead", reason=Reason.ENGINE_FAILED), 1),
        (RuntimeError("a defect of the adapter"), 1),
        (InvalidArgumentError("too long", reason=Reason.PROMPT_TOO_LONG), 0),
    ],
)
async def test_engine_failures_are_told_to_the_supervisor(failure: Exception, counted: int) -> None:
    """Proves that what the engine raises reaches the caller and counts against the engine, wrong requests aside."""
    bench = await Bench().open()
    bench.engine.failure = failure
    task = bench.start("a")
    await eventually(lambda: bench.inside() == ["a"])
    bench.engine.give()
    with pytest.raises(type(failure)):
        await task
    assert bench.failures == counted
    assert bench.dispatcher.load() == NOTHING


async def test_a_stream_without_a_finish_is_an_error() -> None:
    """Proves that an engine cannot end a stream silently: the caller gets a typed error instead of half an answer."""
    bench = await Bench().open()
    bench.engine.ends_unfinished = True
    task = bench.start("a")
    await eventually(lambda: bench.inside() == ["a"])
    bench.engine.give(3)
    with pytest.raises(UnavailableError, match="unfinished"):
        await task
    assert bench.failures == 1


async def test_cache_estimate_learns_the_true_output_length() -> None:
    """Proves that admission stops reserving max_tokens once it has seen how long answers are."""
    bench = await Bench(sequences_max=9, kv_capacity_tokens=1_000).open()

    def job(name: str) -> Job:
        return Job(EngineRequest(name, Prompt("hi"), Sampling(max_tokens=900)), "tenant", 1, 1)

    async def read(name: str) -> None:
        async with aclosing(bench.dispatcher.run(job(name))) as stream:
            async for _ in stream:
                pass

    tasks = [asyncio.create_task(read(f"r{index}")) for index in range(6)]
    await eventually(lambda: bench.dispatcher.load().running_requests == 3)
    assert bench.dispatcher.load().queued_requests == 3
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_random_ends_leave_exact_zeros() -> None:
    """Proves that whatever mix of ends 300 requests come to, the accounts are exactly zero and every slot is free."""
    random_source = random.Random(20)
    bench = await Bench(sequences_max=5, queued_max=4).open()
    tasks = []
    for number in range(300):
        tasks.append(
            bench.start(f"r{number}", max_tokens=random_source.randint(1, 4), priority=random_source.randint(1, 2))
        )
        choice = random_source.random()
        if choice < 0.2:
            random_source.choice(tasks).cancel()
        elif choice < 0.25:
            bench.dispatcher.interrupt_all(GONE)
        elif choice < 0.7:
            bench.engine.give()
        await asyncio.sleep(0)
    while not all(task.done() for task in tasks):
        bench.engine.give()
        await asyncio.sleep(0)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, list | FairleadError | asyncio.CancelledError) for end in ends)
    assert {type(end) for end in ends} == {list, UnavailableError, QuotaExceededError, asyncio.CancelledError}
    assert bench.dispatcher.load() == NOTHING
    assert bench.dispatcher.in_flight == bench.dispatcher.awaited == len(bench.engine.inside) == 0


async def test_the_meter_follows_tenants_and_not_probes() -> None:
    """Proves that what requests produce reaches the meter, settled by the engine's counts, and a probe leaves none."""
    clock = FakeClock()
    bench = await Bench(clock=clock).open()
    profile = built_in_profiles().default_for("h100")
    meter = bench.dispatcher.meter
    meter.price_with(profile, clock.monotonic_ns() / 1e9)
    probing = asyncio.create_task(probe(bench.dispatcher))
    await eventually(lambda: bench.inside() == ["probe"])
    clock.advance(0.1)
    bench.engine.give(2)
    await probing
    assert meter.take(clock.monotonic_ns() / 1e9).work_s == 0.0
    task = bench.start("a", max_tokens=4)
    await eventually(lambda: bench.inside() == ["a"])
    for number in range(4):
        clock.advance(0.01)
        before = bench.engine.progress_tokens
        bench.engine.give(1)
        await eventually(lambda before=before: bench.engine.progress_tokens > before)  # type: ignore[misc]
        if number < 3:
            await eventually(lambda: bench.dispatcher.awaited == 1)
    await task
    sums = meter.take(clock.monotonic_ns() / 1e9)
    assert sums.tokens == 3
    assert sums.decoding_s == pytest.approx(0.03)
    assert sums.busy_s == pytest.approx(0.04)
    exact = cost(profile, input_tokens=3, output_tokens=4)
    assert to_replica_seconds(exact.total_milli_mu) == pytest.approx(sums.work_s, abs=2 * 60 / 100_000)


async def test_tenants_take_turns_at_the_engine() -> None:
    """Proves that tenant, weight and price reach the queue: a second tenant's request goes in before the rest of a
    burst, prompts wait for first tokens and not for whole answers, and who is displaced is counted."""
    displaced: list[Displacement] = []
    engine = FakeEngine(20, 100_000)
    dispatcher = Dispatcher(
        engine,
        model_id="m",
        queued_max=3,
        capacity=MilliModelUnitsPerMinute(60_000),
        clock=FakeClock(),
        changed=Notices(),
        engine_failed=lambda: None,
        displaced=displaced.append,
    )
    dispatcher.resize(await engine.start())
    dispatcher.open()

    async def read(name: str, tenant: str) -> None:
        request = EngineRequest(name, Prompt("hi"), Sampling(3, ignore_end_token=True), 2)
        async with aclosing(dispatcher.run(Job(request, tenant, 300, 20, weight=30_000))) as stream:
            async for _ in stream:
                pass

    def inside() -> list[str]:
        return [name.partition("#")[0] for name in engine.inside]

    tasks = [asyncio.create_task(read(f"loud{number}", "loud")) for number in range(4)]
    await eventually(lambda: inside() == ["loud0"])
    assert dispatcher.waiting(Priority.INTERACTIVE) == 3
    tasks.append(asyncio.create_task(read("quiet", "quiet")))
    with pytest.raises(QuotaExceededError):
        await tasks[3]
    assert displaced == [Displacement.FAIR_SHARE]
    engine.give()
    await eventually(lambda: inside() == ["loud0", "quiet"])
    for _ in range(20):
        engine.give()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert dispatcher.load() == NOTHING
