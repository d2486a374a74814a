"""The live set-up: eight simulated engines behind real agents, two routers, two control planes, on real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.quota.processes import Process, service
from benchmarks.quota.site import http_get
from benchmarks.report import ROOT
from common import keys
from common.etcd_store import EtcdStore
from common.platform_token import platform_token
from common.rpc import channel
from common.shard_map import Generation
from deploy.local import secret_files
from deploy.local.demo import AdminApi
from deploy.local.etcd import etcd_program, find_etcd
from deploy.local.ports import HOST, free_ports
from fairlead.admin.v1 import admin_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc

REPLICAS: Final = 8
ROUTERS: Final = 2
TENANTS: Final = tuple(f"tenant-{number}" for number in range(1, 9))
RESERVED: Final = 40_000
"""mMU per minute of each tenant: eight of them reserve half of what the replicas may promise."""
MODEL: Final = admin_pb2.Model(
    model_id="llama-3.1-8b",
    engine=admin_pb2.EngineSpec(engine="simulated", hardware="h100"),
    context_tokens=131_072,
    output_tokens_max=16_384,
    output_tokens_default=256,
    bytes_per_token=4.0,
    target_utilization=0.8,
    replicas_min=REPLICAS,
    replicas_max=REPLICAS,
)
START_S_MAX: Final = 120.0
_POLL_S: Final = 0.05
_CALL_S: Final = 5.0
_MISROUTED: Final = "fairlead_agent_misrouted_requests"


class Site:
    """The processes of one run, and what is asked of them."""

    def __init__(self) -> None:
        self._run_dir = ROOT / "build" / "bench" / "run-routing"
        shutil.rmtree(self._run_dir, ignore_errors=True)
        self._log_dir = self._run_dir / "logs"
        self._log_dir.mkdir(parents=True)
        self._secrets = secret_files.prepare(self._run_dir / "secrets")
        client, peer, *ports = free_ports(2 + 2 + 2 * ROUTERS)
        self._etcd_endpoint = f"{HOST}:{client}"
        program = etcd_program(find_etcd(), self._run_dir / "etcd", client_port=client, peer_port=peer)
        self.etcd = Process("etcd", program.command, self._log_dir)
        self.control = [self._control(number, ports[number]) for number in range(2)]
        self.quota = [self._service(name, f"{name}-1") for name in ("capacity", "ratelimiter")]
        self.grpc = [f"{HOST}:{port}" for port in ports[2 : 2 + ROUTERS]]
        self._ops = [f"{HOST}:{port}" for port in ports[2 + ROUTERS :]]
        self.routers = [self._router(number) for number in range(ROUTERS)]
        self._started = 0
        self.replicas: dict[str, Process] = {}
        self.store = EtcdStore(self._etcd_endpoint)
        self._channels = [channel(address) for address in (f"{HOST}:{ports[0]}", *self.grpc)]
        self.admin = AdminApi(self._channels[0], self._secrets.admin_token.read_text().strip())
        self.platform = (("authorization", f"Platform {platform_token(self._secrets.pepper.read_bytes())}"),)
        self.keys: dict[str, str] = {}

    def router(self, number: int) -> grpc.aio.Channel:
        """The connection to a router."""
        return self._channels[1 + number]

    async def start(self) -> None:
        """Starts everything; returns when both routers route by an assignment of every replica."""
        self.etcd.start()
        for process in (*self.control, *self.quota):
            process.start()
        await self.until(self._admin_answers, "control plane")
        await self.admin.call("CreateModel", admin_pb2.CreateModelRequest(model=MODEL))
        for tenant in TENANTS:
            wanted = admin_pb2.Tenant(tenant_id=tenant)
            await self.admin.call("CreateTenant", admin_pb2.CreateTenantRequest(tenant=wanted))
            answer = await self.admin.call("CreateApiKey", admin_pb2.CreateApiKeyRequest(tenant_id=tenant))
            self.keys[tenant] = answer.secret_key
        for _ in range(REPLICAS):
            self.start_replica()
        for router in self.routers:
            router.start()
        await self.until_ready(REPLICAS)
        for tenant in TENANTS:
            reservation = admin_pb2.Reservation(
                tenant_id=tenant,
                model_id=MODEL.model_id,
                reserved_milli_mu_per_minute=RESERVED,
                burst_ceiling_milli_mu_per_minute=4 * RESERVED,
            )
            await self.admin.call("SetReservation", admin_pb2.SetReservationRequest(reservation=reservation))
        for number in range(ROUTERS):
            await self.until(lambda number=number: self._router_ready(number), f"router-{number + 1}")  # type: ignore[misc]

    def start_replica(self) -> Process:
        """One more replica."""
        self._started += 1
        name = f"replica-{self._started}"
        settings = {"model_id": MODEL.model_id, "engine": "simulated", "hardware": "h100"}
        self.replicas[name] = self._service("engines", name, **settings)
        self.replicas[name].start()
        return self.replicas[name]

    async def records(self) -> list[engine_pb2.Replica]:
        """The replicas that the store lists and that are ready."""
        listing = await self.store.list(keys.REPLICAS)
        found = [engine_pb2.Replica.FromString(entry.value) for entry in listing.entries]
        return [each for each in found if each.state == engine_pb2.REPLICA_STATE_READY]

    async def until_ready(self, count: int) -> None:
        """Waits until so many replicas are ready."""

        async def ready() -> bool:
            return len(await self.records()) == count

        await self.until(ready, f"{count} replicas that are ready")

    async def stored(self) -> sharding_pb2.Assignment:
        """The assignment in the store; an empty one where there is none."""
        entry = await self.store.get(keys.assignment(MODEL.model_id))
        return sharding_pb2.Assignment() if entry is None else sharding_pb2.Assignment.FromString(entry.value)

    async def until_without(self, replica_id: str, limit_s: float = START_S_MAX) -> float:
        """Waits until the assignment does not name a replica; returns how long that took, seconds."""
        began_s = time.monotonic()

        async def without() -> bool:
            stored = await self.stored()
            return bool(stored.slices) and replica_id not in stored.replica_ids

        await self.until(without, f"an assignment without {replica_id}", limit_s)
        return time.monotonic() - began_s

    async def held(self, router: int, known: Generation | None = None) -> sharding_pb2.Assignment | None:
        """The assignment a router routes by; None where it has none newer than what is known."""
        request = sharding_pb2.ExchangeAssignmentsRequest()
        if known is not None:
            request.held[MODEL.model_id].CopyFrom(known.message())
        answer = await sharding_pb2_grpc.AssignmentServiceStub(self.router(router)).ExchangeAssignments(
            request, metadata=self.platform, timeout=_CALL_S
        )
        return next((each for each in answer.assignments if each.model_id == MODEL.model_id), None)

    async def leader(self) -> str:
        """Instance id of the control plane whose sharder leads; empty where none does."""
        entry = await self.store.get(keys.leader("control-plane"))
        return "" if entry is None else admin_pb2.ServiceInstance.FromString(entry.value).instance_id

    async def misrouted(self) -> float:
        """Requests so far that the replicas there are do not serve by the assignment they hold."""
        pages = await asyncio.gather(*(http_get(each.ops_address, "/metrics") for each in await self.records()))
        return sum(
            sample.value
            for _, page in pages
            for family in text_string_to_metric_families(page)
            if family.name == _MISROUTED
            for sample in family.samples
            if sample.name == f"{_MISROUTED}_total"
        )

    async def until(self, there: Callable[[], Awaitable[object]], what: str, limit_s: float = START_S_MAX) -> None:
        """Waits until `there()` says so.

        Raises:
            RuntimeError: It did not in time.
        """
        deadline_s = time.monotonic() + limit_s
        while not await there():
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"no {what} within {limit_s:g} s; logs are in {self._log_dir}")
            await asyncio.sleep(_POLL_S)

    async def close(self) -> None:
        """Ends everything."""
        for tier in (self.routers, [*self.replicas.values(), *self.control, *self.quota], [self.etcd]):
            await asyncio.gather(*(process.stop() for process in tier))
        await asyncio.gather(*(each.close(None) for each in self._channels))
        await self.store.close()

    async def _admin_answers(self) -> bool:
        with contextlib.suppress(FairleadError):
            await self.admin.call("ListModels", admin_pb2.ListModelsRequest())
            return True
        return False

    async def _router_ready(self, number: int) -> bool:
        with contextlib.suppress(OSError, grpc.aio.AioRpcError):
            if (await http_get(self._ops[number], "/readyz"))[0] == HTTPStatus.OK:
                return await self.held(number) is not None
        return False

    def _service(self, module: str, name: str, **settings: object) -> Process:
        return Process(name, service(module, name, {"etcd_endpoint": self._etcd_endpoint} | settings), self._log_dir)

    def _control(self, number: int, port: int) -> Process:
        secrets = {"key_pepper_file": self._secrets.pepper, "admin_token_file": self._secrets.admin_token}
        return self._service("control_plane", f"control-plane-{number + 1}", grpc_port=port, **secrets)

    def _router(self, number: int) -> Process:
        settings = {
            "grpc_port": self.grpc[number].rpartition(":")[2],
            "ops_port": self._ops[number].rpartition(":")[2],
            "key_pepper_file": self._secrets.pepper,
        }
        return self._service("data_plane.router", f"router-{number + 1}", **settings)


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """Runs the set-up, and ends whatever runs of it afterwards."""
    running = Site()
    try:
        await running.start()
        yield running
    finally:
        await running.close()
