"""A real agent process with a real Triton, on a real etcd."""

from __future__ import annotations

import asyncio
import os
import signal

import grpc.aio
import pytest

from fairlead.errors import Reason, from_rpc_error
from tests.integration.engines.agent_process import READY, agent, request
from tests.support.etcd import EtcdServer
from tests.support.triton import TRITON_START_S, require_triton
from tests.support.waiting import eventually

pytestmark = pytest.mark.triton


async def test_a_killed_triton_is_replaced_and_cancelling_stops_it(shared_etcd: EtcdServer) -> None:
    """Proves that the agent does for a real engine what it does for the simulated one: stream, cancel, replace."""
    require_triton()
    async with agent(shared_etcd.endpoint, "--engine=triton", start_s=TRITON_START_S) as replica:
        killed_pid = replica.replica.engine_pid
        assert killed_pid not in (0, replica.process.pid)
        assert replica.replica.prefix_cache
        messages = await replica.generate(request("hello", max_tokens=8))
        assert sum(message.output_tokens for message in messages) == 8

        cancelled = await replica.first(request("hello", max_tokens=3_000))
        cancelled.call.cancel()

        async def idle() -> bool:
            load = await replica.load()
            return load.running_requests == 0 and load.kv_used_tokens == 0

        await eventually(idle)

        broken = await replica.first(request("hello", max_tokens=3_000))
        os.kill(killed_pid, signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await broken.rest()
        assert from_rpc_error(raised.value).reason in (Reason.ENGINE_FAILED, Reason.REPLICA_LOST)
        record = await replica.wait_state(READY, restarts=1, timeout_s=TRITON_START_S)
        assert record.engine_pid not in (0, killed_pid)
        assert sum(message.output_tokens for message in await replica.generate(request(max_tokens=4))) == 4
        metrics = await asyncio.to_thread(replica.metrics)
        assert 'fairlead_agent_engine_restarts_total{cause="process_gone"} 1.0' in metrics
