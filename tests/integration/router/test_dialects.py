"""Past the agent for real: a router streams from another Fairlead's HTTP door, and from a Triton that runs a model."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from common import keys
from common.clock import SystemClock
from data_plane.relay.grpc.pool import Pool
from data_plane.router.dialects.triton import TritonUpstream
from engines.engine import EngineDescription, EngineRequest, Prompt, Sampling
from engines.triton.tensors import Dialect
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.errors import InvalidArgumentError, Reason, from_rpc_error
from fairlead.inference.v1 import inference_pb2 as pb
from tests.integration.router.processes import AUTH, MODEL, Platform, Process, RouterProcess, platform
from tests.integration.router.traffic import books, first, generated
from tests.support.etcd import EtcdServer
from tests.support.router_lab import KEY, TENANT
from tests.support.triton import collect, running_engine, text_of
from tests.support.waiting import eventually
from tests.unit.router.dialect_lab import Noted, request_of, start

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

FAR = "far-8b"


class World:
    """Router `near` sends what is asked of FAR to router `far`, whose replica serves MODEL."""

    def __init__(self, made: Platform, near: RouterProcess, agent: Process) -> None:
        self.platform = made
        self.near = near
        self.agent = agent

    async def replica(self, model_id: str) -> engine_pb2.Replica:
        return next(each for each in await self.platform.replicas() if each.model_id == model_id)


async def add_far_model(made: Platform) -> None:
    """The same model again, under the name that the near router's clients use, and with a longer context."""
    stored = await made.store.get(keys.model(MODEL))
    assert stored is not None
    model = admin_pb2.Model.FromString(stored.value)
    model.model_id, model.context_tokens = FAR, 10 * model.context_tokens
    reservation = admin_pb2.Reservation(
        tenant_id=TENANT,
        model_id=FAR,
        reserved_milli_mu_per_minute=100_000,
        burst_ceiling_milli_mu_per_minute=200_000,
    )
    await made.store.put(keys.model(FAR), model.SerializeToString())
    await made.store.put(keys.policy(FAR, TENANT), reservation.SerializeToString())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("dialects")
    etcd = EtcdServer(folder)
    etcd.start()
    try:
        async with platform(etcd, folder) as made:
            await add_far_model(made)
            made.start_quota()
            made.start_agent("agent-1")
            await made.wait_replicas(1)
            far = made.start_router("far")
            await far.wait_ready()
            await eventually(lambda: generated(far), 15.0, "the far router's first answer")
            (folder / "key").write_text(KEY)
            (folder / "credentials.toml").write_text(
                f'[far]\norigin = "{far.http_url}"\nkey_file = "{folder / "key"}"\n'
            )
            agent = made.start(
                "agent-far",
                "engines",
                *("--model-id", FAR, "--engine", "openai", "--hardware", "h100"),
                *("--endpoint", f"{far.http_url}/v1", "--endpoint-key-file", str(folder / "key")),
                *("--model-name", MODEL, "--direct", "true", "--direct-credentials", "far"),
            )
            await made.wait_replicas(2)
            near = made.start_router("near", "--engine-credentials-file", str(folder / "credentials.toml"))
            await near.wait_ready()
            ready = World(made, near, agent)
            await eventually(lambda: answered(ready), 30.0, "the near router's first answer")
            yield ready
    finally:
        etcd.kill()


def asked(tokens: int = 16, text: str = "Tell me a story") -> pb.GenerateRequest:
    sampling = pb.SamplingParameters(max_tokens=tokens, ignore_end_token=True, temperature=0.0)
    return pb.GenerateRequest(model=FAR, prompt=text, sampling=sampling)


async def answered(world: World) -> bool:
    return bool((await world.near.stub.Generate(asked(4), metadata=AUTH, timeout=10)).text)


async def test_a_stream_comes_from_the_other_platform_without_the_agent(world: World) -> None:
    """Proves with the agent frozen that text and exact usage come past it, over another Fairlead's HTTP door."""
    record = await world.replica(FAR)
    assert record.dialect == engine_pb2.DIALECT_OPENAI
    assert (record.engine_model, record.engine_credentials) == (MODEL, "far")
    world.agent.signal(signal.SIGSTOP)
    try:
        call = world.near.stub.StreamGenerate(asked(20), metadata=AUTH, timeout=20)
        messages = [message async for message in call]
    finally:
        world.agent.signal(signal.SIGCONT)
    last = messages[-1]
    assert len(messages) > 5
    assert sum(message.output_tokens for message in messages) == 20 == last.usage.output_tokens
    assert last.usage.input_tokens > 0
    assert last.finish_reason == pb.FINISH_REASON_LENGTH
    assert last.replica_id == record.replica_id
    assert last.cost.settled_milli_mu > 0
    received, finished = await books(world.near)
    assert received == finished


async def test_what_the_far_side_refuses_is_the_clients_mistake(world: World) -> None:
    """Shows a prompt that only the far side finds too long, told as the near side would tell it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.near.stub.Generate(asked(4, "word " * 10_000), metadata=AUTH, timeout=20)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidArgumentError)
    assert error.reason is Reason.PROMPT_TOO_LONG


async def test_a_client_that_cancels_stops_the_far_engine(world: World) -> None:
    """Proves that a cancelled stream is closed through both platforms down to the replica."""
    call = world.near.stub.StreamGenerate(asked(4_000), metadata=AUTH, timeout=60)
    await first(call)
    replica = await world.replica(MODEL)
    async with grpc.aio.insecure_channel(replica.address) as channel:
        reports = engine_pb2_grpc.EngineServiceStub(channel).WatchLoad(engine_pb2.WatchLoadRequest(router_id="test"))

        async def running() -> int:
            report = await reports.read()
            assert isinstance(report, engine_pb2.LoadReport)
            return report.running_requests

        assert await running() >= 1
        call.cancel()
        await eventually(lambda: _none(running), 10.0, "the far replica to run nothing")
        reports.cancel()
    received, finished = await books(world.near)
    assert received == finished


async def _none(running: Callable[[], Awaitable[int]]) -> bool:
    return await running() == 0


@pytest.mark.triton
async def test_a_real_triton_says_the_same_past_the_agent(tmp_path: Path) -> None:
    """Proves on a running model that text, counts and finish are those of the agent's way, for both kinds of prompt,
    that a cancelled stream frees the engine, and that a mistake is the client's."""
    async with running_engine(tmp_path, dialect=Dialect.ENSEMBLE) as engine:
        pool = Pool()
        upstream = TritonUpstream(pool, SystemClock())
        record = _record(await engine.start())
        for chat in ((), (("user", "Hello tiny model"),)):
            noted = start(
                upstream, record, request_of("Hello", chat=chat, max_tokens=60, temperature=0.0, ignore_end_token=True)
            )
            await noted.ended(60.0)
            prompt = Prompt(messages=chat) if chat else Prompt("Hello")
            same = EngineRequest("same", prompt, Sampling(60, temperature=0.0, ignore_end_token=True))
            batches = await collect(engine, same)
            assert noted.text == text_of(batches)
            assert noted.tokens == noted.last.usage.output_tokens == 60
            assert noted.last.usage.input_tokens == batches[-1].input_tokens
            assert noted.last.finish_reason == pb.FINISH_REASON_LENGTH
            assert len(noted.texts) > 1
        left = start(
            upstream, record, request_of("Hello", max_tokens=3_000, ignore_end_token=True), noted=Noted(cancel_at=2)
        )
        await eventually(lambda: left.cancelled, 30.0)
        wrong = start(upstream, record, request_of("", max_tokens=5))
        await wrong.ended(30.0)
        assert wrong.failure.reason is Reason.INVALID_ARGUMENT
        after = start(upstream, record, request_of("Hello", max_tokens=10, ignore_end_token=True))
        await after.ended(30.0)
        assert after.tokens == 10
        await pool.close()


def _record(description: EngineDescription) -> engine_pb2.Replica:
    way = description.direct
    assert way is not None
    return engine_pb2.Replica(
        replica_id="tiny-1",
        dialect=way.dialect,
        engine_address=way.address,
        engine_model=way.model,
        context_tokens=description.context_tokens,
        triton=way.triton,
    )
