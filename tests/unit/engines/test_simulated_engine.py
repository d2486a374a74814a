from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio

from engines.engine import EngineRequest, Finish, Prompt, Sampling, TokenBatch
from engines.simulated.engine import SimulatedEngine
from engines.simulated.faults import Faults
from engines.simulated.hardware import Hardware
from fairlead.errors import FairleadError, InvalidArgumentError, Reason, UnavailableError
from tests.support.waiting import eventually

# Steps of 2 ms whatever they do: tests wait for events, not for durations.
FAST = Hardware("fast", "toy", 2.0, 0, 0, 0, 0, 0, 0, 0, 10_000)


def request(name: str, text: str = "hello", *, max_tokens: int = 5, ignore_end_token: bool = True) -> EngineRequest:
    return EngineRequest(name, Prompt(text), Sampling(max_tokens, ignore_end_token=ignore_end_token))


async def collect(engine: SimulatedEngine, what: EngineRequest) -> list[TokenBatch]:
    return [batch async for batch in engine.generate(what)]


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[SimulatedEngine]:
    engine = SimulatedEngine(FAST)
    await engine.start()
    yield engine
    await engine.stop()


async def test_answers_with_text_counts_and_finish(engine: SimulatedEngine) -> None:
    """Proves a whole request: token counts add up, the last batch says why it ended and how long the prompt was."""
    batches = await collect(engine, request("a", "x" * 40, max_tokens=7))
    assert sum(batch.output_tokens for batch in batches) == 7
    assert [batch.finish for batch in batches[:-1]] == [None] * (len(batches) - 1)
    assert (batches[-1].finish, batches[-1].input_tokens) == (Finish.LENGTH, 10)
    assert len("".join(batch.text for batch in batches).split()) == 7
    assert engine.progress_tokens == 7
    assert engine.kv_used_tokens == 0


async def test_many_at_once_each_get_their_own_text(engine: SimulatedEngine) -> None:
    """Proves that concurrent streams do not mix: each equals the same request served alone."""
    together = await asyncio.gather(*(collect(engine, request(f"r{i}", f"prompt {i}")) for i in range(50)))
    for index, batches in enumerate(together):
        alone = await collect(engine, request("alone", f"prompt {index}"))
        assert "".join(batch.text for batch in batches) == "".join(batch.text for batch in alone)


async def test_closing_the_stream_stops_the_work(engine: SimulatedEngine) -> None:
    """Proves that a consumer that leaves frees the cache at once and no further token is made for it."""
    async with aclosing(engine.generate(request("a", max_tokens=9_000))) as stream:
        await anext(stream)
        assert engine.kv_used_tokens > 0
    progress = engine.progress_tokens
    assert engine.kv_used_tokens == 0
    await collect(engine, request("b", max_tokens=3))
    assert engine.progress_tokens == progress + 3


async def test_cancelled_task_stops_the_work(engine: SimulatedEngine) -> None:
    """Proves that cancelling the task that reads is as good as closing the stream."""
    task = asyncio.create_task(collect(engine, request("a", max_tokens=9_000)))
    await eventually(lambda: engine.progress_tokens > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.kv_used_tokens == 0


async def test_hang_accepts_and_never_answers_until_healed(engine: SimulatedEngine) -> None:
    """Proves that a hanging engine still looks alive, makes no progress, and goes on where it stood when healed."""
    task = asyncio.create_task(collect(engine, request("a", max_tokens=200)))
    await eventually(lambda: engine.progress_tokens > 2)
    engine.set_faults(Faults(hang=True))
    progress = engine.progress_tokens
    late = asyncio.create_task(collect(engine, request("b")))
    done, _ = await asyncio.wait({task, late}, timeout=0.1)
    assert not done
    assert engine.alive()
    assert engine.progress_tokens == progress
    engine.set_faults(Faults())
    assert sum(batch.output_tokens for batch in await task) == 200
    assert sum(batch.output_tokens for batch in await late) == 5


async def test_freeze_stops_every_stream_after_so_many_tokens(engine: SimulatedEngine) -> None:
    """Proves that a frozen stream delivers exactly its allowance and the progress counter stands still with it."""
    engine.set_faults(Faults(freeze_after_tokens=3))
    batches: list[TokenBatch] = []

    async def read() -> None:
        async for batch in engine.generate(request("a", max_tokens=10)):
            batches.append(batch)

    task = asyncio.create_task(read())
    await eventually(lambda: engine.kv_used_tokens == 0 and engine.progress_tokens == 3, what="computed, not told")
    assert sum(batch.output_tokens for batch in batches) == 3
    assert not task.done()
    engine.set_faults(Faults())
    await task
    assert sum(batch.output_tokens for batch in batches) == 10


async def test_crash_marker_kills_the_engine_and_everything_in_flight(engine: SimulatedEngine) -> None:
    """Proves that a poisoned prompt takes the engine down with every stream, and again after a restart."""
    engine.set_faults(Faults(crash_marker="poison"))
    victim = asyncio.create_task(collect(engine, request("a", max_tokens=9_000)))
    await eventually(lambda: engine.progress_tokens > 0)
    for _ in range(2):
        with pytest.raises(UnavailableError) as failure:
            await collect(engine, request("b", "a poisoned prompt"))
        assert failure.value.reason is Reason.ENGINE_FAILED
        assert not engine.alive()
        await engine.start()
        assert engine.alive()
    with pytest.raises(UnavailableError):
        await victim
    assert engine.progress_tokens == 0
    assert len(await collect(engine, request("c"))) > 0


async def test_restart_heals_all_but_the_poison(engine: SimulatedEngine) -> None:
    """Proves that a restart ends hang, freeze, slowness, garbage and memory faults, as on a real engine."""
    engine.set_faults(Faults(True, 1, 9.0, "poison", True, True))
    await engine.start()
    assert engine.faults == Faults(crash_marker="poison")


async def test_garbage_and_out_of_memory(engine: SimulatedEngine) -> None:
    """Proves the two remaining faults: text that is no text, and refusals with a typed reason."""
    engine.set_faults(Faults(garbage=True))
    assert set("".join(batch.text for batch in await collect(engine, request("a")))) == {"\ufffd", "\x00"}
    engine.set_faults(Faults(out_of_memory=True))
    with pytest.raises(UnavailableError, match="out of memory"):
        await collect(engine, request("b"))


@pytest.mark.parametrize(
    ("text", "reason"), [("x" * 40_000, Reason.PROMPT_TOO_LONG), ("y" * 80_000, Reason.PROMPT_TOO_LONG)]
)
async def test_too_long_prompts_are_refused(engine: SimulatedEngine, text: str, reason: Reason) -> None:
    """Proves that a prompt at or over the context is refused as the request's fault and leaves nothing behind."""
    with pytest.raises(InvalidArgumentError) as failure:
        await collect(engine, request("a", text))
    assert failure.value.reason is reason
    assert engine.kv_used_tokens == 0


async def test_output_is_cut_to_the_context(engine: SimulatedEngine) -> None:
    """Proves that max_tokens beyond the context ends with the context and says LENGTH."""
    batches = await collect(engine, request("a", "x" * 39_980, max_tokens=1_000_000))
    assert sum(batch.output_tokens for batch in batches) == 5
    assert batches[-1].finish is Finish.LENGTH


async def test_nothing_is_served_when_stopped() -> None:
    """Proves that an engine that was never started, or was stopped, refuses instead of waiting forever."""
    engine = SimulatedEngine(FAST)
    with pytest.raises(FairleadError, match="not running"):
        await collect(engine, request("a"))
    await engine.start()
    await engine.stop()
    await engine.stop()
    with pytest.raises(FairleadError, match="not running"):
        await collect(engine, request("a"))
