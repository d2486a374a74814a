"""A real agent process that is set aside and measured, on a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import grpc.aio
import pytest

from engines.simulated.hardware import hardware
from engines.simulated.rehearsal import rehearse
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import (
    FailedPreconditionError,
    FairleadError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    UnavailableError,
    from_rpc_error,
)
from model_units.calibration.load import LoadSpec
from model_units.loads import load_to_proto, measurement_from_proto
from tests.integration.engines.agent_process import READY, AgentProcess, agent, request
from tests.support.etcd import EtcdServer
from tests.support.triton import require_triton
from tests.support.waiting import eventually

EOF: Any = cast(Any, grpc.aio).EOF
CALIBRATING = engine_pb2.REPLICA_STATE_CALIBRATING
DRAINING = engine_pb2.REPLICA_STATE_DRAINING
LOAD = LoadSpec(((200, 20),), 4, 5.0, 60.0, 7)
IMPATIENT = ("--stall-floor-s=1.5", "--longest-step-s=0.1", "--probe-interval-s=0.5", "--probe-timeout-s=0.7")


class Conversation:
    """One Calibrate call."""

    def __init__(self, replica: AgentProcess) -> None:
        self._replica = replica
        # grpcio's stubs know neither a call without an iterator nor EOF.
        self._call: Any = cast(Any, replica.stub).Calibrate()

    async def send(self, message: engine_pb2.CalibrateRequest) -> engine_pb2.CalibrateResponse:
        try:
            await self._call.write(message)
            answer = await self._call.read()
            if answer == EOF:
                await self._call  # raises what ended it
        except grpc.aio.AioRpcError as failure:
            raise from_rpc_error(failure) from failure
        assert isinstance(answer, engine_pb2.CalibrateResponse)
        return answer

    async def reserve(self, replica_id: str = "") -> engine_pb2.CalibrateResponse:
        name = replica_id or self._replica.replica.replica_id
        return await self.send(engine_pb2.CalibrateRequest(replica_id=name, calibration_id="c"))

    async def put(self, load: LoadSpec = LOAD) -> engine_pb2.Measurement:
        return (await self.send(engine_pb2.CalibrateRequest(load=load_to_proto(load)))).measurement

    async def finish(self) -> None:
        await self._call.done_writing()
        assert await self._call.read() == EOF

    def cancel(self) -> None:
        self._call.cancel()


@asynccontextmanager
async def reserved(replica: AgentProcess) -> AsyncIterator[Conversation]:
    conversation = Conversation(replica)
    try:
        assert not (await conversation.reserve()).HasField("measurement")
        yield conversation
    finally:
        conversation.cancel()


async def refusal(replica: AgentProcess) -> FairleadError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await replica.generate(request())
    return from_rpc_error(raised.value)


async def test_a_replica_is_set_aside_measured_and_back(shared_etcd: EtcdServer) -> None:
    """Proves the whole conversation: CALIBRATING and closed meanwhile, the rehearsal's numbers, READY afterwards."""
    async with agent(shared_etcd.endpoint) as replica:
        async with reserved(replica) as conversation:
            await replica.wait_state(CALIBRATING)
            assert (await replica.load()).state == CALIBRATING
            refused = await refusal(replica)
            assert isinstance(refused, UnavailableError)
            assert refused.reason is Reason.NOT_READY, "routers try another replica and count no attempt"
            expected = rehearse(hardware("h100"), LOAD)
            assert measurement_from_proto(await conversation.put()) == expected
            other = replace(LOAD, concurrency=8)
            assert measurement_from_proto(await conversation.put(other)) != expected
            await conversation.finish()
        await replica.wait_state(READY)
        assert sum(message.output_tokens for message in await replica.generate(request())) == 5


async def test_requests_in_flight_end_first(shared_etcd: EtcdServer) -> None:
    """Proves that the reservation is answered after those in flight have ended, and that none of them fails."""
    async with agent(shared_etcd.endpoint) as replica:
        stream = await replica.first(request(max_tokens=120))
        conversation = Conversation(replica)
        answer = asyncio.create_task(conversation.reserve())
        await replica.wait_state(CALIBRATING)
        assert not answer.done()
        assert await stream.rest() == 119
        await answer
        assert (await replica.load()).running_requests == 0
        conversation.cancel()
        await replica.wait_state(READY)


async def test_who_may_calibrate(shared_etcd: EtcdServer) -> None:
    """Proves that another replica's id, a second calibration and a replica that drains are refused by class."""
    async with agent(shared_etcd.endpoint) as replica:
        with pytest.raises(NotFoundError, match="is 'sim-8b-"):
            await Conversation(replica).reserve("another")
        async with reserved(replica):
            with pytest.raises(FailedPreconditionError, match="calibrated already"):
                await Conversation(replica).reserve()
        await replica.wait_state(READY)
        stream = await replica.first(request(max_tokens=10_000))
        await replica.stub.Drain(engine_pb2.DrainRequest(replica_id=replica.replica.replica_id))
        with pytest.raises(FailedPreconditionError, match="DRAINING"):
            await Conversation(replica).reserve()
        stream.call.cancel()


@pytest.mark.parametrize(
    ("load", "field"),
    [
        (engine_pb2.Load(), "load.lengths"),
        (load_to_proto(replace(LOAD, concurrency=10_000)), "load.concurrency"),
        (load_to_proto(replace(LOAD, lengths=((131_072, 1),))), "load.lengths"),
        (load_to_proto(replace(LOAD, window_s=61.0)), "load.window"),
        (load_to_proto(replace(LOAD, time_max_s=100_000.0)), "load.time_max"),
    ],
)
async def test_loads_are_checked_by_field(shared_etcd: EtcdServer, load: engine_pb2.Load, field: str) -> None:
    """Proves that a load that cannot be put is refused by the field to blame, and that the replica is back."""
    async with agent(shared_etcd.endpoint) as replica:
        async with reserved(replica) as conversation:
            with pytest.raises(InvalidArgumentError) as raised:
                await conversation.send(engine_pb2.CalibrateRequest(load=load))
            assert raised.value.field == field
        await replica.wait_state(READY)


async def test_faults_show_in_what_is_measured(shared_etcd: EtcdServer) -> None:
    """Proves that a slow engine measures slow and that one that fails ends the calibration typed."""
    async with agent(shared_etcd.endpoint) as replica, reserved(replica) as conversation:
        healthy = measurement_from_proto(await conversation.put())
        await replica.set_faults(slow_factor=2.0)
        slow = measurement_from_proto(await conversation.put())
        assert slow.tpot_s == pytest.approx(2 * healthy.tpot_s, rel=0.05)
        await replica.set_faults(out_of_memory=True)
        with pytest.raises(UnavailableError) as raised:
            await conversation.put()
        assert raised.value.reason is Reason.ENGINE_FAILED


async def test_a_hang_is_noticed_and_the_replica_heals(shared_etcd: EtcdServer) -> None:
    """Proves that the watchdog replaces an engine that hangs while it is measured, and that the caller hears of it."""
    async with agent(shared_etcd.endpoint, *IMPATIENT) as replica:
        async with reserved(replica) as conversation:
            await conversation.put()
            await replica.set_faults(hang=True)
            with pytest.raises(UnavailableError) as raised:
                await conversation.put()
            assert raised.value.reason in (Reason.REPLICA_LOST, Reason.ENGINE_FAILED)
        await replica.wait_state(READY, restarts=1)
        assert sum(message.output_tokens for message in await replica.generate(request())) == 5


async def test_probes_do_not_disturb_and_are_not_disturbed(shared_etcd: EtcdServer) -> None:
    """Proves that a replica under calibration is probed like any idle one and not replaced."""
    async with agent(shared_etcd.endpoint, *IMPATIENT) as replica, reserved(replica) as conversation:
        before = await asyncio.to_thread(replica.metrics)

        async def probed() -> bool:
            await conversation.put()
            return await asyncio.to_thread(replica.metrics) != before

        await eventually(probed)
        record = await replica.wait_state(CALIBRATING)
        assert record.engine_restarts == 0


async def test_a_drain_ends_the_calibration(shared_etcd: EtcdServer) -> None:
    """Proves that a replica that is told to drain drains, and says so to whoever measures."""
    async with agent(shared_etcd.endpoint) as replica, reserved(replica) as conversation:
        await replica.set_faults(hang=True)
        measuring = asyncio.create_task(conversation.put())
        await replica.stub.Drain(engine_pb2.DrainRequest(replica_id=replica.replica.replica_id))
        with pytest.raises(UnavailableError) as raised:
            await measuring
        assert raised.value.reason is Reason.SHUTTING_DOWN
        await replica.wait_state(DRAINING)


@pytest.mark.triton
async def test_a_real_engine_is_measured(shared_etcd: EtcdServer) -> None:
    """Proves that loads on a real Triton come to plausible numbers, and that nothing of them is left inside."""
    require_triton()
    async with agent(shared_etcd.endpoint, "--engine=triton") as replica:
        async with reserved(replica) as conversation:
            alone = measurement_from_proto(await conversation.put(LoadSpec(((64, 32),), 1, 1.0, 30.0, 3)))
            crowd = measurement_from_proto(await conversation.put(LoadSpec(((64, 32), (128, 16)), 4, 2.0, 30.0, 5)))
            for result, prompt in ((alone, 64.0), (crowd, 96.0)):
                assert result.usable
                assert not result.cut_short
                assert result.input_tokens / result.first_tokens == pytest.approx(prompt, rel=0.35)
                assert 0.0 < result.ttft_s_p50 <= result.ttft_s_p95 < 30.0
            assert alone.decoding_mean <= 1.0 < crowd.decoding_mean <= 4.0
            assert alone.tpot_s <= crowd.tpot_s * 1.5, "four at a time are not faster each"
            print(f"triton: {alone}\n{crowd}")
            load = await replica.load()
            assert (load.running_requests, load.queued_requests) == (0, 0)
        await replica.wait_state(READY)
        assert sum(message.output_tokens for message in await replica.generate(request(max_tokens=4))) == 4
