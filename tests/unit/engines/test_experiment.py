"""Loads driven over a real dispatcher into engines, in real time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from common.clock import SystemClock
from engines.agent.dispatcher import Dispatcher
from engines.agent.experiment import LiveExperiments
from engines.agent.job import Refusal
from engines.agent.notices import Notices
from engines.engine import Engine, EngineRequest, TokenBatch
from engines.simulated.engine import SimulatedEngine
from engines.simulated.faults import Faults
from engines.simulated.hardware import HARDWARE
from engines.simulated.rehearsal import rehearse
from fairlead.errors import FailedPreconditionError, Reason, UnavailableError
from model_units.calibration.load import LoadSpec
from model_units.units import MilliModelUnitsPerMinute
from tests.support.waiting import eventually
from tests.unit.engines.fake_engine import FakeEngine

LOAD = LoadSpec(((300, 40),), 8, 1.5, 20.0, 3)


class Bench:
    """Experiments on an engine whose agent takes no requests, as during a calibration."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failures = 0
        clock = SystemClock()
        self.dispatcher = Dispatcher(
            engine,
            model_id="m",
            queued_max=10,
            capacity=MilliModelUnitsPerMinute(100_000),
            clock=clock,
            changed=Notices(),
            engine_failed=self._failed,
        )
        self.experiments = LiveExperiments(self.dispatcher, clock, lambda: 4_096)

    def _failed(self) -> None:
        self.failures += 1

    async def start(self) -> Bench:
        self.dispatcher.resize(await self.engine.start())
        return self


async def test_real_time_comes_to_what_virtual_time_says() -> None:
    """Proves that a load in real time and its rehearsal measure the same replica, and that nothing stays behind."""
    bench = await Bench(SimulatedEngine(HARDWARE["h100"])).start()
    bench.dispatcher.accounts.cache.fill((1, 2), 10)
    real = await bench.experiments.run(LOAD)
    assert not bench.dispatcher.accounts.cache.tokens, "whoever followed the cache would rely on what is gone"
    virtual = rehearse(HARDWARE["h100"], LOAD)
    assert bench.dispatcher.in_flight == 0
    assert not real.cut_short
    assert real.input_tokens / real.first_tokens == pytest.approx(300, rel=0.1)
    assert real.window_s >= LOAD.window_s
    # Wide: the machine that runs this has other things to do.
    assert real.tpot_s == pytest.approx(virtual.tpot_s, rel=0.4)
    assert real.decoding_mean == pytest.approx(virtual.decoding_mean, rel=0.25)
    await bench.engine.stop()


async def test_a_load_ends_at_its_limit() -> None:
    """Proves that a load whose window never fills is cut short in time and leaves the engine empty."""
    engine = SimulatedEngine(HARDWARE["h100"])
    bench = await Bench(engine).start()
    learnt = await bench.experiments.run(LoadSpec(((20, 2),), 1, 0.05, 20.0))
    assert learnt.usable
    engine.set_faults(Faults(hang=True))
    cut = await bench.experiments.run(LoadSpec(((20, 2),), 2, 0.1, 0.4))
    assert cut.cut_short
    assert cut.first_tokens == 0
    assert bench.dispatcher.in_flight == 0
    await engine.stop()


async def test_a_failing_engine_fails_the_load() -> None:
    """Proves that an engine's failure and the watchdog's interruption end a load typed, and with nothing inside."""
    engine = FakeEngine()
    bench = await Bench(engine).start()
    engine.failure = UnavailableError("dead", reason=Reason.ENGINE_FAILED)
    running = asyncio.create_task(bench.experiments.run(LOAD))
    await eventually(lambda: engine.inside)
    engine.give(1)
    with pytest.raises(UnavailableError, match="dead"):
        await running
    assert bench.dispatcher.in_flight == 0
    assert bench.failures == 1

    simulated = SimulatedEngine(HARDWARE["h100"])
    bench = await Bench(simulated).start()
    running = asyncio.create_task(bench.experiments.run(LOAD))
    await eventually(lambda: bench.dispatcher.in_flight == LOAD.concurrency)
    bench.dispatcher.interrupt_all(Refusal("replaced", Reason.REPLICA_LOST))
    with pytest.raises(UnavailableError, match="replaced"):
        await running
    assert bench.dispatcher.in_flight == 0
    await simulated.stop()


async def test_cancelling_takes_everything_out() -> None:
    """Proves that a calibration whose caller goes away leaves no request in the engine."""
    engine = SimulatedEngine(HARDWARE["h100"])
    bench = await Bench(engine).start()
    running = asyncio.create_task(bench.experiments.run(LoadSpec(((300, 2_000),), 8, 10.0, 20.0)))
    await eventually(lambda: bench.dispatcher.in_flight == 8)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert bench.dispatcher.in_flight == 0
    await eventually(lambda: engine.kv_used_tokens == 0)
    await engine.stop()


class ShortEngine(SimulatedEngine):
    """An engine that ends answers when it likes, whatever it is told."""

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenBatch]:
        sampling = replace(request.sampling, max_tokens=max(1, request.sampling.max_tokens // 2))
        async for batch in super().generate(replace(request, sampling=sampling)):
            yield batch


async def test_an_engine_that_ends_answers_early_is_refused() -> None:
    """Proves that an engine that ignores ignore_end_token is not measured as if it had made all those tokens."""
    bench = await Bench(ShortEngine(HARDWARE["h100"])).start()
    with pytest.raises(FailedPreconditionError, match="it cannot be calibrated"):
        await bench.experiments.run(LoadSpec(((50, 40),), 1, 1.0, 20.0))
    await bench.engine.stop()
