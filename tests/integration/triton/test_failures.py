"""Real Tritons that die, lose their model's process, are missing, or are left behind by a killed agent."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from engines.triton.adapter import TINY_MODEL, TritonEngine, TritonSettings
from engines.triton.environment import CHECKOUT
from engines.triton.guard import remove_shared_memory
from engines.triton.repository import ModelSpec, write_repository
from engines.triton.server import ServerSettings, TritonServer
from engines.triton.tensors import Dialect
from fairlead.errors import Reason, UnavailableError
from tests.support.ports import free_port
from tests.support.triton import (
    children_of,
    collect,
    kill,
    process_exists,
    request,
    require_triton,
    running_engine,
    shared_memory_of,
    text_of,
    tokens_of,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.triton


async def test_a_killed_model_process_fails_requests_and_ends_the_server(tmp_path: Path) -> None:
    """Proves that requests inside a killed stub get an answer, though Triton itself would say ready for ever."""
    async with running_engine(tmp_path) as engine:
        inside = engine.generate(request("x", 3000, ignore_end_token=True))
        await anext(inside)
        (stub,) = children_of(engine.process_id)
        kill(stub)
        with pytest.raises(UnavailableError) as caught:
            async with asyncio.timeout(20):
                async for _ in inside:
                    pass
        assert caught.value.reason is Reason.ENGINE_FAILED
        with pytest.raises(UnavailableError):
            async with asyncio.timeout(20):
                await collect(engine, request())
        await eventually(lambda: not engine.alive(), 10)
        await engine.start()
        assert tokens_of(await collect(engine, request("x", 5))) == 5


async def test_without_the_guard_a_killed_model_process_shows_in_results_only(tmp_path: Path) -> None:
    """Shows the trap on a Triton that is not ours to watch: still ready, and every new request is UnavailableError."""
    others = set(children_of(os.getpid()))
    async with (
        running_engine(tmp_path / "own") as own,
        running_engine(tmp_path / "other", endpoint=own.address) as external,
    ):
        (guard,) = set(children_of(os.getpid())) - others
        os.kill(guard, signal.SIGSTOP)
        try:
            kill(*children_of(own.process_id))
            for _ in range(3):
                with pytest.raises(UnavailableError) as caught:
                    async with asyncio.timeout(20):
                        await collect(external, request())
                assert caught.value.reason is Reason.ENGINE_FAILED
            assert external.alive()
        finally:
            os.kill(guard, signal.SIGCONT)


async def test_a_killed_server_is_seen_and_started_again(tmp_path: Path) -> None:
    """Proves that a death ends streams with UnavailableError, shows in alive, and leaves nothing for the next start."""
    async with running_engine(tmp_path) as engine:
        first = engine.process_id
        (stub,) = children_of(first)
        inside = engine.generate(request("x", 3000, ignore_end_token=True))
        await anext(inside)
        kill(first)
        with pytest.raises(UnavailableError):
            async for _ in inside:
                pass
        await eventually(lambda: not engine.alive(), 10)
        assert engine.process_id == 0
        await eventually(lambda: not process_exists(stub) and not shared_memory_of(os.getpid()), 10)
        description = await engine.start()
        assert description.engine == "triton"
        assert description.context_tokens == 4096
        assert engine.process_id not in (0, first)
        assert tokens_of(await collect(engine, request("x", 5))) == 5


async def test_stop_ends_requests_and_leaves_nothing(tmp_path: Path) -> None:
    """Proves that stop ends what is under way with an error of ours, and every process and shared memory region."""
    async with running_engine(tmp_path) as engine:
        server = engine.process_id
        processes = [server, *children_of(server)]
        assert len(processes) == 2
        assert shared_memory_of(os.getpid())
        # Far more work than a server may finish in the time it is given: one request alone sometimes made it.
        streams = [engine.generate(request(f"x{index}", 3900, ignore_end_token=True)) for index in range(16)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        readers = [asyncio.create_task(anext_all(stream)) for stream in streams]
        await engine.stop()
        ends = await asyncio.gather(*readers, return_exceptions=True)
        assert all(isinstance(end, UnavailableError) for end in ends), ends
        assert not engine.alive()
        assert not any(process_exists(pid) for pid in processes)
        assert not shared_memory_of(os.getpid())
        await engine.stop()


async def anext_all(stream: object) -> None:
    async for _ in stream:  # type: ignore[attr-defined]
        pass


async def test_a_frozen_server_is_stopped_by_force(tmp_path: Path) -> None:
    """Proves that a server which no longer reacts is replaced all the same."""
    async with running_engine(tmp_path) as engine:
        server = engine.process_id
        stubs = children_of(server)
        for pid in (*stubs, server):
            os.kill(pid, signal.SIGSTOP)
        await engine.stop()
        assert not any(process_exists(pid) for pid in (server, *stubs))
        assert not shared_memory_of(os.getpid())


_AGENT = """
import asyncio, sys
from pathlib import Path
from engines.triton.adapter import TritonEngine, TritonSettings
async def main():
    engine = TritonEngine(TritonSettings(Path(sys.argv[1])))
    await engine.start()
    print(engine.process_id, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("victim", ["agent", "guard"])
async def test_nothing_outlives_a_killed_agent_or_guard(tmp_path: Path, victim: str) -> None:
    """Proves that SIGKILL of the agent, or of the guard, takes tritonserver and its stub along."""
    require_triton()
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _AGENT, str(tmp_path), cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert agent.stdout is not None
        async with asyncio.timeout(60):
            server = int(await agent.stdout.readline())
        (guard,) = children_of(agent.pid)
        processes = [guard, server, *children_of(server)]
        assert len(processes) == 3
        kill(agent.pid if victim == "agent" else guard)
        await eventually(lambda: not any(process_exists(pid) for pid in processes), 20)
        if victim == "agent":
            assert not shared_memory_of(agent.pid)
    finally:
        if agent.returncode is None:
            agent.kill()
        await agent.wait()
        remove_shared_memory(f"fairlead-{agent.pid}-")


async def test_a_missing_environment_says_what_to_run(tmp_path: Path) -> None:
    """Shows the error where the Triton environment was never made."""
    engine = TritonEngine(TritonSettings(tmp_path, environment=tmp_path / "nowhere"))
    with pytest.raises(UnavailableError, match=r"engines\.triton\.environment --install") as caught:
        await engine.start()
    assert caught.value.reason is Reason.ENGINE_MISSING
    assert not engine.alive()


async def test_a_model_that_does_not_load_says_why(tmp_path: Path) -> None:
    """Shows that a broken model ends the start with the log's own words, at once and not at the deadline."""
    require_triton()
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text('{"max_position_embeddings": 64}')
    engine = TritonEngine(TritonSettings(tmp_path / "work", model_directory=broken))
    async with asyncio.timeout(30):
        with pytest.raises(UnavailableError, match="ended while starting") as caught:
            await engine.start()
    assert "failed to load" in caught.value.message or "model" in caught.value.message
    assert not engine.alive()


async def test_an_endpoint_that_nobody_serves_is_told_so(tmp_path: Path) -> None:
    """Shows the error where an external Triton is not there, by the deadline."""
    endpoint = f"127.0.0.1:{free_port()}"
    engine = TritonEngine(TritonSettings(tmp_path, endpoint=endpoint, start_timeout_s=0.5))
    with pytest.raises(UnavailableError, match=endpoint):
        await engine.start()
    assert not engine.alive()


async def test_generate_before_start_is_refused(tmp_path: Path) -> None:
    """Shows that an engine which is not running says so."""
    with pytest.raises(UnavailableError, match="not running"):
        await collect(TritonEngine(TritonSettings(tmp_path)), request())


@pytest.mark.parametrize("dialect", list(Dialect))
async def test_a_model_with_a_batch_dimension(tmp_path: Path, dialect: Dialect) -> None:
    """Proves that tensors follow the shapes a server declares: NVIDIA's templates have a leading batch dimension."""
    require_triton()
    repository = tmp_path / "repository"
    name = write_repository(ModelSpec(dialect, TINY_MODEL, batch_size_max=8), repository)
    server = TritonServer(
        ServerSettings(TritonSettings(tmp_path).environment, repository, log_file=tmp_path / "triton.log")
    )
    await server.start()
    try:
        settings = {"endpoint": server.address, "model_name": name}
        async with running_engine(tmp_path, **settings) as engine:
            batches = await collect(engine, request("hello world", 40, ignore_end_token=True, stop=("\x00never",)))
            assert tokens_of(batches) == 40
            assert batches[-1].input_tokens == 3
            assert text_of(batches)
    finally:
        await server.stop()
