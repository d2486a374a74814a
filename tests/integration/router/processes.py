"""Real processes for the router's tests: routers, agents, limiter, allocator, on one real etcd."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from common import keys
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.inference.v1 import inference_pb2_grpc
from tests.support.etcd import EtcdServer, PatientStore
from tests.support.nursery import ServiceProcess
from tests.support.ports import free_port
from tests.support.router_lab import KEY, PEPPER, TENANT, api_key
from tests.support.waiting import PROCESS_START_S, eventually

CHECKOUT = Path(__file__).resolve().parents[3]
MODEL = "sim-8b"
AUTH = (("authorization", f"Bearer {KEY}"),)


class Process:
    """A service process whose log goes to a file.

    Args:
        name: For the log file.
        module: What to run.
        folder: Where the log goes.
        arguments: Command line.
    """

    def __init__(self, name: str, module: str, folder: Path, *arguments: str) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        flags = ["--supervisor-pid", str(os.getpid()), *arguments]
        with self.log_path.open("ab") as log:
            self._process = ServiceProcess(module, flags, stderr=log)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    async def stopped(self, timeout_s: float = PROCESS_START_S) -> int:
        """Waits for its end; returns the exit code."""
        return await asyncio.to_thread(self._process.wait, timeout_s)

    def kill(self) -> None:
        """Ends it at once."""
        if self.running():
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
        self._process.wait()


class Platform:
    """What the router needs around it, each part in a process of its own.

    Args:
        etcd: The store.
        folder: Logs, pepper and snapshots.
    """

    def __init__(self, etcd: EtcdServer, folder: Path) -> None:
        self.etcd = etcd
        self.folder = folder
        self.store = PatientStore(etcd.endpoint)
        self.processes: list[Process] = []
        self._common = ["--etcd-endpoint", etcd.endpoint]
        (folder / "pepper").write_bytes(PEPPER)

    async def configure(self, *, reserved: int = 100_000, ceiling: int = 200_000) -> None:
        """Writes a tenant with a key and a reservation on one simulated model."""
        model = admin_pb2.Model(
            model_id=MODEL,
            engine=admin_pb2.EngineSpec(engine="simulated", hardware="h100"),
            context_tokens=8192,
            output_tokens_max=4096,
            output_tokens_default=64,
            bytes_per_token=4.0,
            target_utilization=1.0,
        )
        reservation = admin_pb2.Reservation(
            tenant_id=TENANT,
            model_id=MODEL,
            reserved_milli_mu_per_minute=reserved,
            burst_ceiling_milli_mu_per_minute=ceiling,
        )
        stored = api_key(KEY, TENANT)
        await self.store.put(keys.tenant(TENANT), admin_pb2.Tenant(tenant_id=TENANT).SerializeToString())
        await self.store.put(keys.api_key(stored.key_id), stored.SerializeToString())
        await self.store.put(keys.model(MODEL), model.SerializeToString())
        await self.store.put(keys.policy(MODEL, TENANT), reservation.SerializeToString())

    def start(self, name: str, module: str, *arguments: str) -> Process:
        """Starts any service."""
        process = Process(name, module, self.folder, *self._common, *arguments)
        self.processes.append(process)
        return process

    def start_quota(self) -> tuple[Process, Process]:
        """Starts the rate limiter and the capacity allocator."""
        return self.start("ratelimiter", "ratelimiter"), self.start("capacity", "capacity")

    def start_agent(self, name: str, *arguments: str) -> Process:
        """Starts a replica with a simulated engine."""
        return self.start(name, "engines", "--model-id", MODEL, "--hardware", "h100", *arguments)

    def start_router(self, name: str, *arguments: str, grpc_port: int = 0, http_port: int = 0) -> RouterProcess:
        """Starts a router with its own snapshot folder."""
        ports = (grpc_port or free_port(), http_port or free_port(), free_port())
        process = RouterProcess(name, self.folder, *ports, *self._common, *arguments)
        self.processes.append(process)
        return process

    async def replicas(self) -> list[engine_pb2.Replica]:
        """Replica records in the store."""
        listing = await self.store.list(keys.REPLICAS)
        return [engine_pb2.Replica.FromString(entry.value) for entry in listing.entries]

    async def wait_replicas(self, count: int) -> list[engine_pb2.Replica]:
        """Waits until so many replicas are ready."""

        async def ready() -> bool:
            states = [replica.state for replica in await self.replicas()]
            return states.count(engine_pb2.REPLICA_STATE_READY) == count

        await eventually(ready, PROCESS_START_S, f"{count} replicas")
        return await self.replicas()

    async def close(self) -> None:
        """Ends everything."""
        for process in self.processes:
            process.kill()
        await self.store.close()
        for process in self.processes:
            sys.stderr.write(f"--- {process.name}\n{process.log_path.read_text()[-3000:]}\n")


class RouterProcess(Process):
    """One router and a client to it."""

    def __init__(self, name: str, folder: Path, grpc_port: int, http_port: int, ops_port: int, *arguments: str) -> None:
        self.grpc_address = f"127.0.0.1:{grpc_port}"
        self.http_url = f"http://127.0.0.1:{http_port}"
        self.ops_url = f"http://127.0.0.1:{ops_port}"
        super().__init__(
            name,
            "data_plane.router",
            folder,
            "--instance-id",
            name,
            "--key-pepper-file",
            str(folder / "pepper"),
            "--state-dir",
            str(folder / f"{name}.state"),
            "--grpc-port",
            str(grpc_port),
            "--http-port",
            str(http_port),
            "--ops-port",
            str(ops_port),
            *arguments,
        )
        self.channel = grpc.aio.insecure_channel(self.grpc_address)
        self.stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    def ready(self) -> bool:
        """Whether /readyz says so."""
        try:
            with urllib.request.urlopen(self.ops_url + "/readyz", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    async def wait_ready(self, timeout_s: float = PROCESS_START_S) -> None:
        """Waits for /readyz."""
        await eventually(lambda: asyncio.to_thread(self.ready), timeout_s, f"{self.name} ready")

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""

        def read() -> str:
            with urllib.request.urlopen(self.ops_url + "/metrics", timeout=5) as response:
                return str(response.read().decode())

        total = 0.0
        for line in (await asyncio.to_thread(read)).splitlines():
            if line.startswith((name + " ", name + "{")):
                wanted = all(f"{key}={json.dumps(value)}" in line for key, value in labels.items())
                total += float(line.rsplit(" ", 1)[1]) if wanted else 0.0
        return total


@asynccontextmanager
async def platform(etcd: EtcdServer, folder: Path) -> AsyncIterator[Platform]:
    """A configured platform; what a test starts is ended with it."""
    made = Platform(etcd, folder)
    await made.configure()
    try:
        yield made
    finally:
        await made.close()
