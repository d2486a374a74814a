"""A real replica agent in a process of its own, and a client to talk to it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc.aio

from common import keys
from common.rpc import channel
from common.store import Store
from fairlead.engine.v1 import engine_pb2, engine_pb2_grpc
from fairlead.inference.v1 import inference_pb2
from tests.support.etcd import PatientStore
from tests.support.nursery import ServiceProcess
from tests.support.waiting import PROCESS_START_S, eventually

MODEL = "sim-8b"
READY = engine_pb2.REPLICA_STATE_READY
_LOG_BYTES_MAX = 1 << 24

_numbers = itertools.count(1)


def request(
    prompt: str = "hello",
    *,
    max_tokens: int = 5,
    priority: inference_pb2.Priority.ValueType = inference_pb2.PRIORITY_UNSPECIFIED,
    model: str = MODEL,
) -> engine_pb2.EngineGenerateRequest:
    """A request that runs to max_tokens."""
    return engine_pb2.EngineGenerateRequest(
        request_id=f"r{next(_numbers)}",
        tenant_id="tenant",
        request=inference_pb2.GenerateRequest(
            model=model,
            prompt=prompt,
            sampling=inference_pb2.SamplingParameters(max_tokens=max_tokens, ignore_end_token=True),
        ),
        priority=priority,
        prefill_milli_mu=10,
        decode_milli_mu=20,
    )


@dataclass(frozen=True, slots=True)
class Stream:
    """A running request and its first message."""

    call: grpc.aio.UnaryStreamCall[engine_pb2.EngineGenerateRequest, engine_pb2.EngineGenerateResponse]
    messages: AsyncIterator[engine_pb2.EngineGenerateResponse]
    first: engine_pb2.EngineGenerateResponse

    async def rest(self) -> int:
        """Reads to the end; returns the tokens after the first message."""
        return sum([message.output_tokens async for message in self.messages])


class AgentProcess:
    """One running agent.

    Args:
        store: Where it registers.
        endpoint: The same store's address.
        arguments: Further command line arguments.
    """

    def __init__(self, store: Store, endpoint: str, *arguments: str) -> None:
        self._store = store
        flags = [f"--model-id={MODEL}", f"--etcd-endpoint={endpoint}", f"--supervisor-pid={os.getpid()}"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.process = ServiceProcess("engines", [*flags, *arguments], stderr=self._log)
        self._channel: grpc.aio.Channel | None = None
        self.replica = engine_pb2.Replica()

    async def record(self) -> engine_pb2.Replica | None:
        """This agent's record in the store."""
        listing = await self._store.list(keys.REPLICAS)
        replicas = [engine_pb2.Replica.FromString(entry.value) for entry in listing.entries]
        return next((replica for replica in replicas if replica.agent_pid == self.process.pid), None)

    async def wait_state(
        self, *states: engine_pb2.ReplicaState.ValueType, restarts: int = 0, timeout_s: float = PROCESS_START_S
    ) -> engine_pb2.Replica:
        """Waits until the record shows one of the states, after that many engine restarts."""

        async def reached() -> bool:
            assert self.process.poll() is None, "the agent ended"
            record = await self.record()
            if record is None or record.state not in states or record.engine_restarts < restarts:
                return False
            self.replica = record
            return True

        await eventually(reached, timeout_s, f"state {states} with {restarts} restarts")
        return self.replica

    @property
    def stub(self) -> engine_pb2_grpc.EngineServiceAsyncStub:
        """The agent's EngineService."""
        return engine_pb2_grpc.EngineServiceStub(self.channel)

    @property
    def channel(self) -> grpc.aio.Channel:
        """A channel to the agent; the record must have been seen."""
        if self._channel is None:
            self._channel = channel(self.replica.address)
        return self._channel

    async def set_faults(self, **faults: bool | int | float | str) -> None:
        """Breaks or heals the simulated engine."""
        stub: engine_pb2_grpc.FaultServiceAsyncStub = engine_pb2_grpc.FaultServiceStub(self.channel)
        wire = engine_pb2.Faults(**faults)  # type: ignore[arg-type]  # each test names fields that exist
        await stub.SetFaults(engine_pb2.SetFaultsRequest(faults=wire))

    async def load(self) -> engine_pb2.LoadReport:
        """One load report."""
        call = self.stub.WatchLoad(engine_pb2.WatchLoadRequest(router_id="test"))
        report = await call.read()
        call.cancel()
        assert isinstance(report, engine_pb2.LoadReport)
        return report

    async def first(self, what: engine_pb2.EngineGenerateRequest) -> Stream:
        """Starts a request and waits for its first message."""
        call = self.stub.Generate(what)
        messages = aiter(call)
        return Stream(call, messages, await anext(messages))

    async def generate(self, what: engine_pb2.EngineGenerateRequest) -> list[engine_pb2.EngineGenerateResponse]:
        """Runs a request to its end."""
        return [message async for message in self.stub.Generate(what)]

    def metrics(self) -> str:
        """The agent's /metrics."""
        with urllib.request.urlopen(f"http://{self.replica.ops_address}/metrics", timeout=5) as response:
            return str(response.read().decode())

    def ops_status(self, path: str) -> int:
        """HTTP status of /livez or /readyz."""
        try:
            with urllib.request.urlopen(f"http://{self.replica.ops_address}{path}", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    def log(self) -> str:
        """What it has written."""
        return os.pread(self._log.fileno(), _LOG_BYTES_MAX, 0).decode()

    async def stopped(self) -> int:
        """Waits for its end; returns the exit code."""
        return await asyncio.to_thread(self.process.wait, PROCESS_START_S)

    async def close(self) -> None:
        """Ends it, by force if it does not end by itself."""
        if self._channel is not None:
            await self._channel.close(None)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self.process.wait, 10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        sys.stderr.write(self.log())
        self._log.close()


@asynccontextmanager
async def agent(
    endpoint: str, *arguments: str, wait: bool = True, start_s: float = PROCESS_START_S
) -> AsyncIterator[AgentProcess]:
    """Starts an agent, waits until it is READY, and ends it after the test."""
    store = PatientStore(endpoint)
    process = AgentProcess(store, endpoint, *arguments)
    try:
        if wait:
            await process.wait_state(READY, timeout_s=start_s)
        yield process
    finally:
        await process.close()
        await store.close()
