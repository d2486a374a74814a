"""A real agent process with a simulated engine, on a real etcd: everything that can go wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest

from fairlead.engine.v1 import engine_pb2
from fairlead.errors import Reason, from_rpc_error
from tests.integration.engines.agent_process import READY, agent, request
from tests.support.etcd import EtcdServer
from tests.support.nursery import ServiceProcess
from tests.support.waiting import PROCESS_START_S, eventually

UNHEALTHY = engine_pb2.REPLICA_STATE_UNHEALTHY
# Short enough for a test, long enough for a busy two-core machine.
IMPATIENT = ("--stall-floor-s=1.5", "--longest-step-s=0.1", "--probe-interval-s=0.5", "--probe-timeout-s=0.7")


async def test_hang_under_load_is_found_and_healed(shared_etcd: EtcdServer) -> None:
    """Proves that a hang with work inside fails the stream typed, shows UNHEALTHY, and serves again after a restart."""
    async with agent(shared_etcd.endpoint, *IMPATIENT, "--cold-start=0.5") as replica:
        stream = await replica.first(request(max_tokens=10_000))
        await replica.set_faults(hang=True)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.rest()
        error = from_rpc_error(raised.value)
        assert error.reason is Reason.REPLICA_LOST
        await replica.wait_state(UNHEALTHY, restarts=1)
        await replica.wait_state(READY, restarts=1)
        assert sum(message.output_tokens for message in await replica.generate(request())) == 5
        metrics = await asyncio.to_thread(replica.metrics)
        assert 'fairlead_agent_engine_restarts_total{cause="stalled"} 1.0' in metrics
        assert 'fairlead_agent_requests_total{outcome="replica_lost",priority="interactive"} 1.0' in metrics


async def test_idle_hang_is_found_by_probes(shared_etcd: EtcdServer) -> None:
    """Proves that an engine which hangs while nobody asks is replaced too."""
    async with agent(shared_etcd.endpoint, *IMPATIENT) as replica:
        await replica.set_faults(hang=True)
        await replica.wait_state(READY, restarts=1)
        metrics = await asyncio.to_thread(replica.metrics)
        assert 'fairlead_agent_engine_restarts_total{cause="probes_failed"} 1.0' in metrics


async def test_frozen_streams_are_a_hang(shared_etcd: EtcdServer) -> None:
    """Proves that an engine which stops in mid-stream, its health still fine, is found by its progress."""
    async with agent(shared_etcd.endpoint, *IMPATIENT) as replica:
        await replica.set_faults(freeze_after_tokens=3)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await replica.generate(request(max_tokens=50))
        assert from_rpc_error(raised.value).reason is Reason.REPLICA_LOST
        await replica.wait_state(READY, restarts=1)
        assert sum(message.output_tokens for message in await replica.generate(request(max_tokens=50))) == 50


async def test_slow_engine_and_slow_reader_are_no_hang(shared_etcd: EtcdServer) -> None:
    """Proves that neither an engine ten times slower nor a client that stops reading gets the engine restarted."""
    async with agent(shared_etcd.endpoint, *IMPATIENT) as replica:
        await replica.set_faults(slow_factor=10.0)
        lazy = await replica.first(request(max_tokens=10_000))
        for _ in range(6):
            assert sum(message.output_tokens for message in await replica.generate(request(max_tokens=8))) == 8
        record = await replica.record()
        assert record is not None
        assert record.engine_restarts == 0
        lazy.call.cancel()


async def test_crash_marker_restarts_the_engine(shared_etcd: EtcdServer) -> None:
    """Proves that a prompt that kills the engine fails with its neighbours, and that the engine is back at once."""
    async with agent(shared_etcd.endpoint) as replica:
        await replica.set_faults(crash_marker="poison")
        neighbour = await replica.first(request(max_tokens=10_000))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await replica.generate(request("a poisoned prompt"))
        assert from_rpc_error(raised.value).reason in (Reason.ENGINE_FAILED, Reason.REPLICA_LOST)
        with pytest.raises(grpc.aio.AioRpcError):
            await neighbour.rest()
        await replica.wait_state(READY, restarts=1)
        assert sum(message.output_tokens for message in await replica.generate(request())) == 5


async def test_engine_that_fails_every_request_is_replaced(shared_etcd: EtcdServer) -> None:
    """Proves that an engine which lives, answers at once, and only ever with errors is replaced."""
    async with agent(shared_etcd.endpoint, *IMPATIENT) as replica:
        await replica.set_faults(out_of_memory=True)
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await replica.generate(request())
            assert from_rpc_error(raised.value).reason is Reason.ENGINE_FAILED
        await replica.wait_state(READY, restarts=1)
        assert sum(message.output_tokens for message in await replica.generate(request())) == 5


async def test_killed_agent_vanishes_with_its_lease(shared_etcd: EtcdServer) -> None:
    """Proves that the record of a killed agent is gone after the lease, with nobody to clean up."""
    async with agent(shared_etcd.endpoint) as replica:
        replica.process.kill()
        await replica.stopped()
        assert await replica.record() is not None

        async def gone() -> bool:
            return await replica.record() is None

        await eventually(gone, 15.0)


async def test_serves_without_etcd_and_registers_again(etcd: EtcdServer) -> None:
    """Proves that a store that dies disturbs no request, and that the record is back when the store is."""
    async with agent(etcd.endpoint) as replica:
        etcd.kill()
        assert sum(message.output_tokens for message in await replica.generate(request(max_tokens=200))) == 200
        etcd.start()
        assert (await replica.wait_state(READY)).replica_id


async def test_starts_before_its_store(etcd: EtcdServer) -> None:
    """Proves that an agent started without a store waits for it and registers then."""
    etcd.kill()
    async with agent(etcd.endpoint, wait=False) as replica:
        await asyncio.sleep(0.5)
        assert replica.process.poll() is None
        etcd.start()
        await replica.wait_state(READY)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "model_id is required"),
        (("--model-id=m", "--hardware=abacus"), "abacus"),
        (("--model-id=m", "--capacity-milli-mu-per-minute=0"), "capacity-milli-mu-per-minute"),
        (("--model-id=m", "--engine=steam"), "--engine"),
        (("--model-id=a/b",), "a/b"),
    ],
)
async def test_bad_settings_end_it_with_the_reason(arguments: tuple[str, ...], named: str, tmp_path: Path) -> None:
    """Proves that a wrong setting is refused by name with a non-zero exit code and nothing left running."""
    path = tmp_path / "log"
    with path.open("wb") as log:
        process = ServiceProcess("engines", list(arguments), stderr=log)
    assert await asyncio.to_thread(process.wait, PROCESS_START_S) in (1, 2)
    assert named in path.read_text()
    assert "Traceback" not in path.read_text()
