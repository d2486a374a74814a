"""One real Triton per dialect: what streams out of it, counted, cut, batched and cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from engines.engine import EngineRequest, Finish, Prompt, Sampling
from engines.triton.adapter import TritonEngine
from engines.triton.tensors import Dialect
from fairlead.errors import InvalidArgumentError, Reason, UnavailableError
from tests.support.triton import collect, counters, request, running_engine, text_of, tokens_of
from tests.support.waiting import eventually

pytestmark = [pytest.mark.triton, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[Dialect, TritonEngine]]:
    """One running engine per dialect."""
    async with AsyncExitStack() as stack:
        found = {}
        for dialect in Dialect:
            folder = tmp_path_factory.mktemp(dialect.value)
            found[dialect] = await stack.enter_async_context(running_engine(folder, dialect=dialect))
        yield found


@pytest.fixture(params=list(Dialect), ids=lambda dialect: dialect.value)
def engine(engines: dict[Dialect, TritonEngine], request: pytest.FixtureRequest) -> TritonEngine:
    return engines[request.param]


async def test_streams_with_exact_usage(engine: TritonEngine) -> None:
    """Proves that tokens come as a stream and that both counts are the engine's own, to the token."""
    before = engine.progress_tokens
    batches = await collect(engine, request("hello world", 60, frequency_penalty=1.0, ignore_end_token=True))
    assert len(batches) > 1
    assert tokens_of(batches) == 60
    assert engine.progress_tokens - before == 60
    assert [batch.finish for batch in batches[:-1]] == [None] * (len(batches) - 1)
    assert batches[-1].finish is Finish.LENGTH
    assert batches[-1].input_tokens == 3  # "h" "ello" " world" in the tiny model's vocabulary


async def test_usage_grows_with_the_prompt_byte_by_byte(engine: TritonEngine) -> None:
    """Shows that the input count is the tokenizer's: a character outside the merges is one token per byte."""
    for prompt, tokens in (("é", 2), ("😀", 4), ("😀é", 6)):
        batches = await collect(engine, request(prompt, 1))
        assert batches[-1].input_tokens == tokens


async def test_both_dialects_give_the_same_text(engines: dict[Dialect, TritonEngine]) -> None:
    """Proves that the dialect is a matter of names: greedy, penalised and seeded text are equal in both."""
    for sampling in (
        {},
        {"temperature": 0.0, "frequency_penalty": 1.5},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 2**64 - 1, "repetition_penalty": 1.2},
    ):
        texts = [
            text_of(await collect(engine, request("Hello tiny model", 80, ignore_end_token=True, **sampling)))
            for engine in engines.values()
        ]
        assert texts[0] == texts[1], sampling
        assert texts[0], sampling


async def test_text_is_the_same_however_busy_the_engine_is(engine: TritonEngine) -> None:
    """Proves that a request's text does not depend on what runs beside it: another replica can go on with it."""
    alone = text_of(await collect(engine, request("steady", 40, temperature=1.0, seed=3)))
    beside = [collect(engine, request(f"noise {number}", 40, temperature=1.0)) for number in range(7)]
    crowded, *_ = await asyncio.gather(collect(engine, request("steady", 40, temperature=1.0, seed=3)), *beside)
    assert text_of(crowded) == alone


async def test_requests_without_a_seed_differ(engine: TritonEngine) -> None:
    """Shows that sampling is random where nobody asked for the same numbers."""
    texts = {text_of(await collect(engine, request("dice", 20, temperature=1.0))) for _ in range(3)}
    assert len(texts) == 3


async def test_every_batch_is_text_and_nothing_is_lost(engine: TritonEngine) -> None:
    """Proves that no batch ends within a character: the parts are the whole, and each is valid UTF-8 by itself."""
    batches = await collect(engine, request("x", 120, temperature=1.5, seed=11, ignore_end_token=True))
    for batch in batches:
        assert batch.text.encode().decode() == batch.text
    assert len(text_of(batches)) > 60


async def test_stop_sequences_end_the_text_before_them(engine: TritonEngine) -> None:
    """Proves that text ends right before the stop sequence, the reason is stop, and further tokens are not made."""
    full = text_of(await collect(engine, request("hello", 80, temperature=1.0, seed=5, ignore_end_token=True)))
    stop = full[20:23]
    batches = await collect(
        engine, request("hello", 80, temperature=1.0, seed=5, ignore_end_token=True, stop=(stop, "\x00never"))
    )
    assert text_of(batches) == full[: full.index(stop)]
    assert batches[-1].finish is Finish.STOP
    assert tokens_of(batches) < 80


async def test_conversations_are_rendered_with_the_models_template(engine: TritonEngine) -> None:
    """Shows that messages and the text they render to are the same request."""
    sampling = Sampling(20, frequency_penalty=1.0)
    chat = EngineRequest("chat", Prompt(messages=(("user", "hello"),)), sampling)
    plain = EngineRequest("plain", Prompt(text="user: hello\nassistant:"), sampling)
    assert text_of(await collect(engine, chat)) == text_of(await collect(engine, plain))


async def test_a_prompt_over_the_context_is_refused(engine: TritonEngine) -> None:
    """Shows the error for a prompt that cannot fit, with both numbers in it; the engine goes on."""
    with pytest.raises(InvalidArgumentError, match=r"5000.*4095") as caught:
        await collect(engine, request("😀" * 1250, 1))
    assert caught.value.reason is Reason.PROMPT_TOO_LONG
    assert tokens_of(await collect(engine, request("fine", 2))) == 2


async def test_output_ends_with_the_context(engine: TritonEngine) -> None:
    """Shows that a sequence which fills the context ends with reason length, not with an error."""
    batches = await collect(engine, request("😀" * 1020, 500, ignore_end_token=True))
    assert batches[-1].input_tokens == 4080
    assert tokens_of(batches) == 16
    assert batches[-1].finish is Finish.LENGTH


@pytest.mark.parametrize(
    "what",
    [request("", 5), request("x", 0), request("x", -1), request("x", 5, temperature=-1.0), request("x", 5, top_p=7.0)],
    ids=["empty prompt", "no tokens", "negative tokens", "temperature", "top_p"],
)
async def test_wrong_requests_are_refused_as_such(engine: TritonEngine, what: EngineRequest) -> None:
    """Shows that what the request is to blame for is never taken for a failing engine."""
    with pytest.raises(InvalidArgumentError):
        await collect(engine, what)


async def test_concurrent_requests_share_steps(engine: TritonEngine) -> None:
    """Proves continuous batching by the engine's own counters: far fewer steps than tokens."""
    before = await counters(engine)
    requests = [request(f"number {index}", 100, ignore_end_token=True) for index in range(12)]
    results = await asyncio.gather(*(collect(engine, what) for what in requests))
    assert [tokens_of(batches) for batches in results] == [100] * 12

    async def counted() -> bool:
        return (await counters(engine))["tokens_total"] - before["tokens_total"] == 1200

    await eventually(counted, 10)
    steps = (await counters(engine))["steps_total"] - before["steps_total"]
    assert 100 <= steps < 400


async def test_leaving_a_stream_stops_the_engines_work(engine: TritonEngine) -> None:
    """Proves by the engine's own counters that a request whose reader left is not computed to its end."""
    before = await counters(engine)
    stream = engine.generate(request("going on and on", 3000, ignore_end_token=True))
    first = await anext(stream)
    assert first.output_tokens
    assert engine.kv_used_tokens > 0
    await stream.aclose()  # type: ignore[attr-defined]
    assert engine.kv_used_tokens == 0

    async def idle() -> bool:
        return (await counters(engine))["requests"] == 0

    await eventually(idle, 10)
    made = (await counters(engine))["tokens_total"] - before["tokens_total"]
    assert made < 1500


async def test_cancelling_the_task_stops_the_engines_work(engine: TritonEngine) -> None:
    """Proves that cancelling a task inside generate is the same as leaving, and leaves the other requests alone."""
    tasks = [asyncio.create_task(collect(engine, request("work", 3000, ignore_end_token=True))) for _ in range(4)]
    other = asyncio.create_task(collect(engine, request("other", 200, ignore_end_token=True)))

    async def running() -> bool:
        return (await counters(engine))["requests"] == 5

    await eventually(running, 10)
    for task in tasks:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True))
    assert tokens_of(await other) == 200

    async def idle() -> bool:
        return (await counters(engine))["requests"] == 0

    await eventually(idle, 10)
    still = (await counters(engine))["tokens_total"]
    assert tokens_of(await collect(engine, request("x", 1))) == 1
    await eventually(idle, 10)
    assert (await counters(engine))["tokens_total"] == still + 1


async def test_the_llm_apis_stop_request_cancels_by_id(engines: dict[Dialect, TritonEngine]) -> None:
    """Proves that the backend also knows NVIDIA's own way to cancel: a second request with the same id and stop set."""
    engine = engines[Dialect.LLMAPI]
    long = request("on and on", 3000, ignore_end_token=True)
    running = engine.generate(long)
    await anext(running)
    stop = service_pb2.ModelInferRequest(model_name="tensorrt_llm", id=long.request_id)
    stop.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    stop.inputs.add(name="stop", datatype="BOOL", shape=[1])
    stop.raw_input_contents.extend([b"\0\0\0\0", b"\1"])
    async with grpc.aio.insecure_channel(engine.address) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([stop]))
        answers = [answer async for answer in call]
    assert "cancelled" in answers[0].error_message
    with pytest.raises(UnavailableError, match="cancelled"):
        async for _ in running:
            pass


async def test_another_adapter_can_share_the_server(engine: TritonEngine, tmp_path: Path) -> None:
    """Shows the external endpoint: dialect read, text the same, no template assumed, and stopping it ends nothing."""
    async with running_engine(tmp_path, endpoint=engine.address) as external:
        assert external.process_id == 0
        assert external.alive()
        batches = await collect(external, request("hello", 30, temperature=1.0, seed=1))
        own = await collect(engine, request("hello", 30, temperature=1.0, seed=1))
        assert text_of(batches) == text_of(own)
        with pytest.raises(InvalidArgumentError, match="no chat template"):
            await collect(external, EngineRequest("chat", Prompt(messages=(("user", "hi"),)), Sampling(5)))
    assert not external.alive()
    with pytest.raises(UnavailableError):
        await collect(external, request())
    assert engine.alive()
    assert tokens_of(await collect(engine, request("x", 3))) == 3
