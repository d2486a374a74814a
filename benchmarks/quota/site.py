"""The live set-up: real etcd, limiter, allocator, control plane and routers, simulated engines behind real agents."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from benchmarks.quota.books import Snapshot, parse
from benchmarks.quota.processes import Process, service
from benchmarks.report import ROOT
from common.etcd_store import EtcdStore
from common.rpc import channel
from deploy.local import secret_files
from deploy.local.demo import AdminApi
from deploy.local.etcd import etcd_program, find_etcd
from deploy.local.ports import HOST, free_ports
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError

ROUTERS: Final = 3
REPLICAS: Final = 4
MODEL: Final = admin_pb2.Model(
    model_id="llama-3.1-70b",
    engine=admin_pb2.EngineSpec(engine="simulated", hardware="a100-tp4"),
    context_tokens=131_072,
    output_tokens_max=16_384,
    output_tokens_default=256,
    bytes_per_token=4.0,
    target_utilization=0.8,
    replicas_min=REPLICAS,
    replicas_max=REPLICAS,
)
"""The dearest tokens of all simulated hardware: the most units per token that two cores have to relay."""

ROUTER: Final = "data_plane.router"
START_S_MAX: Final = 90.0
_POLL_S: Final = 0.1
_PAGE_S_MAX: Final = 15.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a router serves.

    Attributes:
        grpc: host:port of its API.
        ops: host:port of its metrics.
    """

    grpc: str
    ops: str


class Site:
    """The processes of one run, and what is asked of them.

    Args:
        tenants: Who there will be.
    """

    def __init__(self, tenants: Sequence[str]) -> None:
        self._run_dir = ROOT / "build" / "bench" / "run-quota"
        # From nothing: quotas and books of an earlier run would be measured with it.
        shutil.rmtree(self._run_dir, ignore_errors=True)
        self.log_dir = self._run_dir / "logs"
        self.log_dir.mkdir(parents=True)
        self._secrets = secret_files.prepare(self._run_dir / "secrets")
        self.tenants = tuple(tenants)
        self.keys: dict[str, str] = {}
        etcd, peer, self._admin_port, *ports = free_ports(3 + 2 * ROUTERS)
        self._etcd_endpoint = f"{HOST}:{etcd}"
        program = etcd_program(find_etcd(), self._run_dir / "etcd", client_port=etcd, peer_port=peer)
        self._etcd = Process("etcd", program.command, self.log_dir)
        self.addresses = tuple(
            Address(f"{HOST}:{grpc_port}", f"{HOST}:{ops_port}")
            for grpc_port, ops_port in zip(ports[:ROUTERS], ports[ROUTERS:], strict=True)
        )
        self._control = [self._service("control_plane", **self._admin_settings())]
        self._control += [self._service(name) for name in ("capacity", "ratelimiter")]
        self.routers: list[Process] = []
        self.replicas = [self._replica(number) for number in range(REPLICAS)]
        self.store = EtcdStore(self._etcd_endpoint)
        self._admin_channel = channel(f"{HOST}:{self._admin_port}")
        self.admin = AdminApi(self._admin_channel, self._secrets.admin_token.read_text().strip())

    @property
    def processes(self) -> list[Process]:
        """All of them."""
        return [self._etcd, *self._control, *self.routers, *self.replicas]

    async def start(self) -> None:
        """Starts everything but the routers and makes the model, the tenants and their keys."""
        self._etcd.start()
        for process in (*self._control, *self.replicas):
            process.start()
        await self._until_admin_answers()
        await self.admin.call("CreateModel", admin_pb2.CreateModelRequest(model=MODEL))
        for tenant in self.tenants:
            wanted = admin_pb2.Tenant(tenant_id=tenant)
            await self.admin.call("CreateTenant", admin_pb2.CreateTenantRequest(tenant=wanted))
            answer = await self.admin.call("CreateApiKey", admin_pb2.CreateApiKeyRequest(tenant_id=tenant))
            self.keys[tenant] = answer.secret_key
        await self.until(self._replicas_ready, "replicas that are ready")

    async def start_routers(self, module: str = ROUTER) -> None:
        """Ends the routers there are and starts three others, with empty books.

        Args:
            module: What runs them, as in `python -m`, with its first arguments.
        """
        await asyncio.gather(*(router.stop() for router in self.routers))
        self.routers = [self._router(number, module) for number in range(ROUTERS)]
        for router in self.routers:
            router.start()
        for number in range(ROUTERS):
            await self.until_router(number)

    async def until_router(self, number: int) -> None:
        """Waits until a router takes requests.

        Raises:
            RuntimeError: It does not; the message ends with its log.
        """
        address = self.addresses[number]

        async def ready() -> bool:
            with contextlib.suppress(OSError):
                return (await http_get(address.ops, "/readyz"))[0] == HTTPStatus.OK
            return False

        await self.until(ready, f"router-{number + 1}", self.routers[number])

    async def reserve(self, tenant: str, reserved: int, ceiling: int = 0) -> None:
        """Sets a tenant's reservation and burst ceiling, mMU per minute; without a ceiling there is no burst."""
        reservation = admin_pb2.Reservation(
            tenant_id=tenant,
            model_id=MODEL.model_id,
            reserved_milli_mu_per_minute=reserved,
            burst_ceiling_milli_mu_per_minute=max(reserved, ceiling),
        )
        await self.admin.call("SetReservation", admin_pb2.SetReservationRequest(reservation=reservation))

    async def set_utilization(self, share: float) -> None:
        """Sets the share of live capacity that may be promised."""
        model = await self.admin.call("GetModel", admin_pb2.GetModelRequest(model_id=MODEL.model_id))
        model.target_utilization = share
        await self.admin.call("UpdateModel", admin_pb2.UpdateModelRequest(model=model))

    async def snapshots(self) -> dict[int, Snapshot]:
        """The books of every router that runs, by its number, read at about the same time.

        Raises:
            OSError: One does not answer.
        """
        numbers = [number for number, router in enumerate(self.routers) if router.running]
        return dict(zip(numbers, await asyncio.gather(*map(self._snapshot, numbers)), strict=True))

    async def _snapshot(self, number: int) -> Snapshot:
        before_s = time.monotonic()
        status, text = await http_get(self.addresses[number].ops, "/metrics")
        if status != HTTPStatus.OK:
            raise ConnectionError(f"router-{number + 1} answers {status} instead of its metrics:\n{text[-500:]}")
        return parse(text, (before_s + time.monotonic()) / 2)

    async def until(self, there: Any, what: str, process: Process | None = None, limit_s: float = START_S_MAX) -> None:
        """Waits until `there()` says so.

        Raises:
            RuntimeError: It never did, or the process it waits for has ended.
        """
        deadline_s = time.monotonic() + limit_s
        while not await there():
            ended = process is not None and not process.running
            if ended or time.monotonic() > deadline_s:
                words = "\n".join(each.last_words() for each in ([process] if process else self.processes))
                raise RuntimeError(f"no {what}: {'it ended' if ended else f'not within {limit_s:g} s'}\n{words}")
            await asyncio.sleep(_POLL_S)

    async def close(self) -> None:
        """Ends everything."""
        await asyncio.gather(*(router.stop() for router in self.routers))
        await asyncio.gather(*(process.stop() for process in (*self.replicas, *self._control)))
        await self._admin_channel.close(None)
        await self.store.close()
        await self._etcd.stop()

    async def _replicas_ready(self) -> bool:
        answer = await self.admin.call("ListReplicas", admin_pb2.ListReplicasRequest())
        ready = [replica for replica in answer.replicas if replica.state == engine_pb2.REPLICA_STATE_READY]
        return len(ready) >= REPLICAS

    async def _until_admin_answers(self) -> None:
        async def answers() -> bool:
            with contextlib.suppress(FairleadError):
                await self.admin.call("ListModels", admin_pb2.ListModelsRequest())
                return True
            return False

        await self.until(answers, "control plane", self._control[0])

    def _admin_settings(self) -> dict[str, object]:
        return {
            "grpc_port": self._admin_port,
            "key_pepper_file": self._secrets.pepper,
            "admin_token_file": self._secrets.admin_token,
        }

    def _service(self, module: str, **settings: object) -> Process:
        command = service(module, f"{module}-1", {"etcd_endpoint": self._etcd_endpoint} | settings)
        return Process(f"{module}-1", command, self.log_dir)

    def _router(self, number: int, module: str) -> Process:
        name = f"router-{number + 1}"
        settings = {
            "etcd_endpoint": self._etcd_endpoint,
            "grpc_port": self.addresses[number].grpc.rpartition(":")[2],
            "ops_port": self.addresses[number].ops.rpartition(":")[2],
            "key_pepper_file": self._secrets.pepper,
            # Refusals are the point here: a line for each of them would be the load.
            "log_level": "warning",
        }
        return Process(name, service(module, name, settings), self.log_dir)

    def _replica(self, number: int) -> Process:
        settings: Mapping[str, object] = {
            "etcd_endpoint": self._etcd_endpoint,
            "model_id": MODEL.model_id,
            "engine": MODEL.engine.engine,
            "hardware": MODEL.engine.hardware,
        }
        name = f"replica-{number + 1}"
        return Process(name, service("engines", name, settings), self.log_dir)


@asynccontextmanager
async def site(tenants: Sequence[str]) -> AsyncIterator[Site]:
    """Runs the set-up without routers, and ends whatever runs of it afterwards.

    Args:
        tenants: Who there will be.

    Raises:
        RuntimeError: It did not come up.
    """
    running = Site(tenants)
    try:
        await running.start()
        yield running
    finally:
        await running.close()


async def http_get(address: str, path: str) -> tuple[int, str]:
    """Reads one page: no threads, no session, a few hundred microseconds.

    Args:
        address: host:port.
        path: Of the page.

    Returns:
        Status and body.

    Raises:
        OSError: Nobody answers.
    """
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(_PAGE_S_MAX):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
            await writer.drain()
            answer = await reader.read()
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2:
        raise ConnectionResetError(f"{address} closed the connection without an answer")
    return int(words[1]), body.decode()
