"""The set-up: real etcd, rate limiter and allocator, one mock engine that stands for all replicas, our router."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.quota.processes import Process, service
from benchmarks.quota.site import http_get
from benchmarks.relay import messages
from benchmarks.relay.machine import LOAD_CORE, ROUTER_CORE
from benchmarks.relay.ports import quiet_ports
from benchmarks.report import ROOT
from common import keys
from common.etcd_store import EtcdStore
from deploy.local import secret_files
from deploy.local.etcd import etcd_program, find_etcd
from deploy.local.ports import HOST
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2

TENANT: Final = "bench"
KEY: Final = "fl-abcdefghijklmnop-bench"
"""Its API key; its HMAC is in the store, as the control plane would have written it."""
AUTHORIZATION: Final = f"authorization: Bearer {KEY}"
START_S_MAX: Final = 90.0

_QUOTA: Final = 500_000_000_000
"""mMU per minute: quota is counted at every request and never short."""
_LEASE: Final = "fairlead_router_lease_milli_mu_per_minute"
_NATIVE: Final = re.compile(r" native=(.*)")
_TOKENS_MAX: Final = 4_000_000
_POLL_S: Final = 0.1
_SETTLING_S: Final = 2.0


class Site:
    """The processes around what is measured, and our router.

    Args:
        folder: Logs, store and secrets; emptied.
        programs: The mock engine and the load generator.
        replicas: How many of each dialect.
    """

    def __init__(self, folder: Path, programs: dict[str, Path], replicas: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.folder = folder
        self.log_dir = folder / "logs"
        self.log_dir.mkdir(parents=True)
        self.programs = programs
        self._secrets = secret_files.prepare(folder / "secrets")
        self.processes: list[Process] = []
        count = 3 * replicas
        etcd, peer, self.grpc_port, self.http_port, self.ops_port, *self._ports = quiet_ports(5 + count)
        self.replica_ports = self._ports[:replicas]
        """Where the mock engine answers as agents do, and as OpenAI's API and Triton do."""
        self._endpoint = f"{HOST}:{etcd}"
        self._etcd = etcd_program(find_etcd(), folder / "etcd", client_port=etcd, peer_port=peer).command
        self.store = EtcdStore(self._endpoint)
        models = (messages.MODEL, messages.TRITON_MODEL, messages.OPENAI_MODEL)
        self._records = [
            self._record(model, number, port)
            for model, ports in zip(models, _parts(self._ports, replicas), strict=True)
            for number, port in enumerate(ports, 1)
        ]
        self.router: Process | None = None
        self.native = ""
        """What the router says of its native build: "on: 60 modules ..." or "off: ..."."""

    async def start(self) -> None:
        """Starts everything but the router."""
        messages.write_templates(self.folder / "templates")
        self.run("etcd", self._etcd)
        listeners = [f"-l{record.address.rpartition(':')[2]}:{record.replica_id}" for record in self._records]
        self.run("mock", [str(self.programs["mock_engine"]), "-t", str(self.folder / "templates"), *listeners])
        await self.until(self._configured, "etcd")
        for name in ("ratelimiter", "capacity"):
            self.run(name, service(name, f"{name}-1", {"etcd_endpoint": self._endpoint}))

    async def start_router(self) -> Process:
        """Starts our router alone on its core and waits until it has its leases and answers."""
        settings = {
            "etcd_endpoint": self._endpoint,
            "grpc_port": self.grpc_port,
            "http_port": self.http_port,
            "ops_port": self.ops_port,
            "key_pepper_file": self._secrets.pepper,
            "state_dir": self.folder / "router-state",
        }
        command = service("data_plane.router", "router-1", settings)
        self.router = self.run("router", command, core=ROUTER_CORE)
        await self.until(self._router_answers, "router")
        await self.until(self._router_granted, "quota at the router")
        self.native = _NATIVE.findall(self.router.log_path.read_text())[-1]
        await asyncio.sleep(_SETTLING_S)
        return self.router

    def native_modules(self) -> float:
        """How many of the router's modules were compiled; 0 where it was interpreted."""
        return float(self.native.split()[1]) if self.native.startswith("on: ") else 0.0

    def run(self, name: str, command: Sequence[str], *, core: int = LOAD_CORE) -> Process:
        """Starts a process on one core; it ends with the site."""
        process = Process(name, ["taskset", "-c", str(core), *command], self.log_dir)
        process.start()
        self.processes.append(process)
        return process

    async def until(self, there: Callable[[], Awaitable[bool]], what: str, limit_s: float = START_S_MAX) -> None:
        """Waits until `there()` says so.

        Raises:
            RuntimeError: It did not, or a process has ended; the message has the ends of their logs.
        """
        deadline_s = time.monotonic() + limit_s
        while not await there():
            ended = [process.name for process in self.processes if not process.running]
            if ended or time.monotonic() > deadline_s:
                words = "\n".join(process.last_words() for process in self.processes)
                raise RuntimeError(f"no {what} (ended: {', '.join(ended) or 'none'})\n{words}")
            await asyncio.sleep(_POLL_S)

    async def metrics(self) -> str:
        """The router's metrics page."""
        return (await http_get(f"{HOST}:{self.ops_port}", "/metrics"))[1]

    async def mock_stats(self) -> str:
        """What the mock engine did since it was last asked, JSON."""
        return (await http_get(f"{HOST}:{self.replica_ports[0]}", "/stats"))[1]

    async def close(self) -> None:
        """Ends everything, what is measured first."""
        for process in reversed(self.processes):
            await process.stop()
        await self.store.close()

    async def _configured(self) -> bool:
        """Writes what the control plane and agents write; False while etcd starts."""
        try:
            async with asyncio.timeout(1.0):
                await self._put(keys.tenant(TENANT), admin_pb2.Tenant(tenant_id=TENANT).SerializeToString())
        except Exception:  # noqa: BLE001  # whatever a store says that is not there yet
            return False
        digest = hmac.digest(self._secrets.pepper.read_bytes(), KEY.encode(), hashlib.sha256)
        key = admin_pb2.ApiKey(key_id=KEY.split("-")[1], tenant_id=TENANT, key_hmac=digest)
        await self._put(keys.api_key(key.key_id), key.SerializeToString())
        for model_id in sorted({record.model_id for record in self._records}):
            await self._put(keys.model(model_id), _model(model_id).SerializeToString())
            reservation = admin_pb2.Reservation(
                tenant_id=TENANT,
                model_id=model_id,
                reserved_milli_mu_per_minute=_QUOTA,
                burst_ceiling_milli_mu_per_minute=2 * _QUOTA,
            )
            await self._put(keys.policy(model_id, TENANT), reservation.SerializeToString())
        for record in self._records:
            await self._put(keys.replica(record.replica_id), record.SerializeToString())
        return True

    async def _put(self, key: str, value: bytes) -> None:
        await self.store.put(key, value)

    async def _router_answers(self) -> bool:
        with contextlib.suppress(OSError):
            return (await http_get(f"{HOST}:{self.ops_port}", "/readyz"))[0] == HTTPStatus.OK
        return False

    async def _router_granted(self) -> bool:
        """Whether it has a lease on every model: it opens without, where the limiter takes its time."""
        rates = [
            sample.value
            for family in text_string_to_metric_families(await self.metrics())
            for sample in family.samples
            if sample.name == _LEASE
        ]
        return len(rates) == len({record.model_id for record in self._records}) and all(rates)

    def _record(self, model_id: str, number: int, port: int) -> engine_pb2.Replica:
        record = engine_pb2.Replica(
            replica_id=f"{model_id}-{number}",
            address=f"{HOST}:{port}",
            model_id=model_id,
            hardware="h100",
            engine="mock",
            engine_version="1",
            capacity_milli_mu_per_minute=4 * _QUOTA,
            state=engine_pb2.REPLICA_STATE_READY,
            sequences_max=100_000,
            kv_capacity_tokens=10_000_000,
            context_tokens=_TOKENS_MAX,
            host=f"host-{number}",
            prefix_cache=True,
        )
        if model_id == messages.MODEL:
            record.ticket_address = record.address
        elif model_id == messages.TRITON_MODEL:
            record.dialect = engine_pb2.DIALECT_TRITON
            record.engine_address, record.engine_model = record.address, "ensemble"
            for name, datatype in (("text_input", "BYTES"), ("max_tokens", "INT32"), ("stream", "BOOL")):
                record.triton.inputs.add(name=name, datatype=datatype, rank=2)
            for name in ("temperature", "top_p"):
                record.triton.inputs.add(name=name, datatype="FP32", rank=2)
            record.triton.outputs.append("text_output")
        elif model_id == messages.OPENAI_MODEL:
            record.dialect = engine_pb2.DIALECT_OPENAI
            record.engine_address, record.engine_model = f"http://{record.address}/v1", messages.MODEL
        return record


def _parts(ports: list[int], size: int) -> list[list[int]]:
    return [ports[begin : begin + size] for begin in range(0, len(ports), size)]


def _model(model_id: str) -> admin_pb2.Model:
    return admin_pb2.Model(
        model_id=model_id,
        engine=admin_pb2.EngineSpec(engine="simulated", hardware="h100"),
        context_tokens=_TOKENS_MAX,
        output_tokens_max=_TOKENS_MAX // 2,
        output_tokens_default=256,
        bytes_per_token=4.0,
        target_utilization=1.0,
    )


@asynccontextmanager
async def site(programs: dict[str, Path], replicas: int) -> AsyncIterator[Site]:
    """Runs the set-up, and ends whatever runs of it afterwards.

    Args:
        programs: The C programs.
        replicas: How many of each dialect.
    """
    running = Site(ROOT / "build" / "bench" / "run-relay", programs, replicas)
    try:
        await running.start()
        yield running
    finally:
        await running.close()
