"""The simulated engine on an event loop whose clock jumps: when things happen, to the microsecond."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.engine import EngineRequest, Finish, Prompt, Sampling, TokenBatch
from engines.simulated.engine import PIECE_TOKENS, SimulatedEngine
from engines.simulated.faults import Faults
from engines.simulated.hardware import Hardware
from engines.simulated.host import FINISH_S, INGEST_S, TOKEN_S
from engines.simulated.pace import Pace
from engines.simulated.prefix import prefix_ids
from engines.simulated.work import SchedulerLimits
from fairlead.errors import Reason, UnavailableError
from tests.support.virtual_loop import run_virtually, virtual_loop

# 10 ms a step and 1 ms per prompt token, whatever else happens.
PLAIN = Hardware("plain", "toy", 0, 0, 0, 1.0, 0, 0, 0, 10.0, 10_000)
STEP_S, DECODE_S = 0.010, 0.011  # a step that decodes one token computes one


def request(name: str, tokens_in: int = 10, tokens_out: int = 3) -> EngineRequest:
    text = "".join(f"{name}{number:7}" for number in range(tokens_in))[: 4 * tokens_in]
    return EngineRequest(name, Prompt(text), Sampling(tokens_out, ignore_end_token=True))


async def started() -> SimulatedEngine:
    engine = SimulatedEngine(PLAIN)
    await engine.start()
    return engine


async def timed(engine: SimulatedEngine, what: EngineRequest) -> list[tuple[float, TokenBatch]]:
    loop = asyncio.get_running_loop()
    return [(loop.time(), batch) async for batch in engine.generate(what)]


def test_a_request_alone_to_the_microsecond() -> None:
    """Proves the host's latencies and the steps: ingest, one step of 10 + 10 ms, a token per 11 ms, and the end."""

    async def scenario() -> None:
        loop = virtual_loop()
        engine = await started()
        await asyncio.sleep(5.0)  # an idle engine's clock goes on
        told = await timed(engine, request("a"))
        first_s = 5.0 + INGEST_S + STEP_S + 10e-3
        ends_s = [first_s, first_s + DECODE_S, first_s + 2 * DECODE_S]
        wanted_s = [*(end_s + TOKEN_S for end_s in ends_s), ends_s[-1] + FINISH_S]
        assert [time_s for time_s, _ in told] == pytest.approx(wanted_s, abs=1e-6)
        assert [batch.output_tokens for _, batch in told] == [1, 1, 1, 0]
        assert [batch.finish for _, batch in told] == [None, None, None, Finish.LENGTH]
        assert loop.time() == pytest.approx(wanted_s[-1], abs=1e-6)

    run_virtually(scenario())


def test_leaving_while_the_prompt_is_ingested_leaves_no_trace() -> None:
    """Proves that a request cancelled before it joined takes neither a slot nor time from the one beside it."""

    async def scenario() -> None:
        engine = await started()
        leaving = asyncio.create_task(timed(engine, request("a", tokens_in=5_000)))
        await asyncio.sleep(INGEST_S / 2)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        began_s = virtual_loop().time()
        told = await timed(engine, request("a"))  # the id is free again
        assert told[0][0] - began_s == pytest.approx(INGEST_S + STEP_S + 10e-3 + TOKEN_S, abs=1e-6)
        assert engine.kv_used_tokens == 0
        assert engine.progress_tokens == 3

    run_virtually(scenario())


def test_a_late_event_loop_delays_what_is_seen_and_nothing_else() -> None:
    """Proves that 300 ms in which the process was not scheduled do not shift the steps after them, and that what was
    due meanwhile is told at once.
    """

    async def scenario() -> list[float]:
        engine = await started()
        told: list[tuple[float, TokenBatch]] = []
        async for batch in engine.generate(request("a", tokens_out=100)):
            told.append((virtual_loop().time(), batch))
            if len(told) == 10:
                virtual_loop().stall(0.3)
        assert max(batch.output_tokens for _, batch in told) == 27  # 0.3 s of steps, in one piece
        assert sum(batch.output_tokens for _, batch in told) == 100
        return [time_s for time_s, _ in told]

    async def undisturbed() -> float:
        return (await timed(await started(), request("a", tokens_out=100)))[-1][0]

    assert run_virtually(scenario())[-1] == pytest.approx(run_virtually(undisturbed()), abs=1e-6)


def test_a_process_that_stood_still_does_not_catch_up() -> None:
    """Proves that after a stall of 3 s the engine goes on where it was, later by it, and so does who came meanwhile."""

    async def scenario() -> tuple[float, float]:
        engine = await started()
        told = []
        async for _ in engine.generate(request("a", tokens_out=100)):
            told.append(virtual_loop().time())
            if len(told) == 10:
                virtual_loop().stall(3.0)
                late = asyncio.create_task(timed(engine, request("b", tokens_out=1)))
        stalled_s = told[9] + 3.0
        return told[-1], (await late)[0][0] - stalled_s

    async def undisturbed() -> float:
        return (await timed(await started(), request("a", tokens_out=100)))[-1][0]

    end_s, ttft_s = run_virtually(scenario())
    # The step that ran when it stood still is over when it goes on. Then b's prompt of 10 tokens shares a step with a.
    assert end_s == pytest.approx(run_virtually(undisturbed()) + 3.0 - DECODE_S + 10e-3, abs=1e-6)
    assert INGEST_S < ttft_s < INGEST_S + 3 * (STEP_S + 11e-3)


def test_a_hang_stops_time_and_slowness_stretches_it() -> None:
    """Proves that a hang of 20 s delays by 20 s whoever is inside or came meanwhile, and that a factor of 3 triples
    every step.
    """

    async def scenario() -> None:
        loop, engine = virtual_loop(), await started()
        inside = asyncio.create_task(timed(engine, request("a", tokens_out=100)))
        await asyncio.sleep(0.5)
        engine.set_faults(Faults(hang=True))
        await asyncio.sleep(10.0)
        meanwhile = asyncio.create_task(timed(engine, request("b", tokens_out=1)))
        await asyncio.sleep(10.0)
        assert not meanwhile.done()
        engine.set_faults(Faults())
        healed_s = loop.time()
        assert (await meanwhile)[0][0] - healed_s < INGEST_S + 3 * (STEP_S + 11e-3)
        told = await inside
        alone_s = INGEST_S + STEP_S + 10e-3 + 99 * DECODE_S + FINISH_S
        assert told[-1][0] == pytest.approx(20.0 + alone_s + 10e-3, abs=1e-6)
        engine.set_faults(Faults(slow_factor=3.0))
        began_s = loop.time()
        slow = await timed(engine, request("c"))
        assert slow[2][0] - began_s == pytest.approx(INGEST_S + 3 * (STEP_S + 10e-3 + 2 * DECODE_S) + TOKEN_S, abs=1e-6)

    run_virtually(scenario())


def test_a_prompt_that_begins_like_another_is_faster_and_says_so() -> None:
    """Proves the prefix cache by the text: 3 of 4 pieces are shared, their 192 ms are saved, and usage tells."""

    async def scenario() -> None:
        engine = await started()
        shared, loop = "s" * 4 * 3 * PIECE_TOKENS, virtual_loop()
        for number, (tail, cached) in enumerate((("a", 0), ("b", 3 * PIECE_TOKENS), ("b", 3 * PIECE_TOKENS))):
            began_s = loop.time()
            what = EngineRequest(f"r{number}", Prompt(shared + tail * 256), Sampling(1, ignore_end_token=True))
            told = await timed(engine, what)
            computed_s = (4 * PIECE_TOKENS - cached) * 1e-3
            assert told[0][0] - began_s == pytest.approx(INGEST_S + STEP_S + computed_s + TOKEN_S, abs=1e-6)
            assert (told[-1][1].input_tokens, told[-1][1].cached_input_tokens) == (4 * PIECE_TOKENS, cached)
        await engine.start()
        assert (await timed(engine, what))[-1][1].cached_input_tokens == 0  # a restart forgets

    run_virtually(scenario())


def test_a_cold_start_takes_its_time() -> None:
    """Proves that an engine that loads for 90 s takes nothing before."""

    async def scenario() -> None:
        engine = SimulatedEngine(PLAIN, cold_start_s=90.0)
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(89.0)
        assert not engine.alive()
        assert (await starting).version == "2"
        assert engine.alive()
        assert virtual_loop().time() == pytest.approx(90.0)

    run_virtually(scenario())


def test_a_defect_inside_ends_the_engine_and_its_streams() -> None:
    """Proves that an exception in the machine fails what is in flight by type and leaves a dead engine, not a silent
    one.
    """

    class Broken(Hardware):
        def step_s(self, **_: int) -> float:
            raise RuntimeError("no such step")

    async def scenario() -> None:
        engine = SimulatedEngine(Broken("broken", "toy", 0, 0, 0, 0, 0, 0, 0, 1.0, 1_000))
        await engine.start()
        with pytest.raises(UnavailableError) as failure:
            await timed(engine, request("a"))
        assert failure.value.reason is Reason.ENGINE_FAILED
        assert not engine.alive()

    run_virtually(scenario())


def test_a_cache_that_is_no_whole_number_of_blocks() -> None:
    """Proves that the longest request an engine takes fits the whole blocks of its cache, so that nothing can break
    on it later.
    """

    async def scenario() -> None:
        made_of = Hardware("odd", "toy", 1.0, 0, 0, 0, 0, 0, 0, 0, 1_015)
        engine = SimulatedEngine(made_of, SchedulerLimits())
        await engine.start()
        async with aclosing(engine.generate(request("a", tokens_in=900, tokens_out=10_000))) as stream:
            assert sum([batch.output_tokens async for batch in stream]) == 1_008 - 900

    run_virtually(scenario())


@given(st.binary(max_size=400), st.binary(max_size=100), st.binary(max_size=100), st.sampled_from([1, 7, 64]))
def test_equal_ids_mean_an_equal_beginning(head: bytes, one: bytes, other: bytes, piece_bytes: int) -> None:
    """Proves that two prompts share exactly the ids of the whole pieces up to their first difference."""
    first, second = head + one, head + other
    same: Callable[[int], bool] = lambda end: first[:end] == second[:end]  # noqa: E731
    pairs = list(zip(prefix_ids(first, piece_bytes), prefix_ids(second, piece_bytes), strict=False))
    assert [a == b for a, b in pairs] == [same((index + 1) * piece_bytes) for index in range(len(pairs))]
    assert len(prefix_ids(first, piece_bytes)) == len(first) // piece_bytes


def test_a_clock_that_can_be_stopped() -> None:
    """Proves the docstring's example, that stopping twice changes nothing, and that setting back takes time away."""
    real = [100.0]
    pace = Pace(lambda: real[0])
    real[0] += 3
    pace.stop()
    real[0] += 5
    pace.stop()
    assert not pace.running
    real[0] += 5
    assert pace.now_s == 3.0
    pace.go()
    real[0] += 1
    assert (pace.now_s, pace.running, pace.real_at(4.0)) == (4.0, True, real[0])
    pace.set_back(1.5)
    assert pace.now_s == 1.5
