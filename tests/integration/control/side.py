"""The control side of the platform as real processes on a real etcd, with routers and replicas played by the test."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from common import keys
from common.etcd_store import EtcdStore
from common.rpc import channel
from fairlead.admin.v1 import admin_pb2, admin_pb2_grpc
from fairlead.capacity.v1 import capacity_pb2
from fairlead.engine.v1 import engine_pb2
from fairlead.errors import FairleadError, from_rpc_error
from fairlead.quota.v1 import quota_pb2, quota_pb2_grpc
from tests.support.etcd import EtcdServer, PatientStore
from tests.support.nursery import ServiceProcess
from tests.support.waiting import PROCESS_START_S, eventually

TOKEN = "a-token-for-tests-only"
AUTH = (("authorization", f"Bearer {TOKEN}"),)
MODEL = "tiny"


class Process:
    """A service process; its log goes to a file."""

    def __init__(self, package: str, name: str, log: Path, arguments: list[str]) -> None:
        self.name = name
        self.service = package.replace("_", "-")
        self.log_path = log
        flags = ["--instance-id", name, "--supervisor-pid", str(os.getpid()), *arguments]
        with log.open("ab") as output:
            self._process = ServiceProcess(package, flags, stderr=output)

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def running(self) -> bool:
        return self._process.poll() is None

    async def ended(self, timeout_s: float = 20.0) -> int:
        return await asyncio.to_thread(self._process.wait, timeout_s)

    def kill(self) -> None:
        if self.running():
            self._process.kill()
            self._process.send_signal(signal.SIGCONT)
        self._process.wait()

    def log(self) -> str:
        return self.log_path.read_text()


class Side:
    """Starts and ends service processes, and plays what is around them."""

    def __init__(self, etcd: EtcdServer, folder: Path) -> None:
        self.etcd = etcd
        self.store = PatientStore(etcd.endpoint)
        self.routers_store = EtcdStore(etcd.endpoint)
        self._folder = folder
        self._processes: list[Process] = []
        self._channels: dict[str, grpc.aio.Channel] = {}
        (folder / "pepper").write_bytes(bytes(range(32)))
        (folder / "token").write_text(TOKEN + "\n")

    def start(self, package: str, name: str, *arguments: str, election_ttl_s: int = 2) -> Process:
        """Starts a service process and does not wait for it."""
        flags = ["--etcd-endpoint", self.etcd.endpoint, "--election-ttl-s", str(election_ttl_s), *arguments]
        if package == "control_plane":
            flags += ["--key-pepper-file", str(self._folder / "pepper")]
            flags += ["--admin-token-file", str(self._folder / "token")]
        process = Process(package, name, self._folder / f"{name}.log", flags)
        self._processes.append(process)
        return process

    async def instance(self, service: str, name: str) -> admin_pb2.ServiceInstance:
        """What a process registered, once it has."""
        entry = None

        async def registered() -> bool:
            nonlocal entry
            entry = await self.store.get(keys.service(service, name))
            return entry is not None

        await eventually(registered, PROCESS_START_S, f"{name} registered")
        assert entry is not None
        return admin_pb2.ServiceInstance.FromString(entry.value)

    async def leader(self, service: str, *, other_than: str = "", timeout_s: float = 20.0) -> admin_pb2.ServiceInstance:
        """Who leads, once somebody (else) does; its epoch filled in."""
        found: list[admin_pb2.ServiceInstance] = []

        async def led() -> bool:
            entry = await self.store.get(keys.leader(service))
            if entry is None:
                return False
            instance = admin_pb2.ServiceInstance.FromString(entry.value)
            instance.epoch = entry.create_revision
            found[:] = [instance]
            return instance.instance_id != other_than

        await eventually(led, timeout_s, f"a leader of {service} other than {other_than!r}")
        return found[0]

    async def leader_process(self, service: str) -> Process:
        """The process that leads."""
        leader = await self.leader(service)
        return next(process for process in self._processes if process.pid == leader.pid)

    def channel(self, address: str) -> grpc.aio.Channel:
        """A channel that is closed at the end."""
        if address not in self._channels:
            self._channels[address] = channel(address)
        return self._channels[address]

    async def admin(self, name: str = "cp-1") -> Admin:
        """The admin API of one instance."""
        instance = await self.instance("control-plane", name)
        return Admin(admin_pb2_grpc.AdminServiceStub(self.channel(instance.address)))

    async def put_model(self, model_id: str = MODEL, target_utilization: float = 1.0) -> None:
        model = admin_pb2.Model(model_id=model_id, target_utilization=target_utilization)
        await self.store.put(keys.model(model_id), model.SerializeToString())

    async def put_reservation(self, tenant_id: str, reserved: int, ceiling: int = 0, model_id: str = MODEL) -> None:
        reservation = admin_pb2.Reservation(
            tenant_id=tenant_id,
            model_id=model_id,
            reserved_milli_mu_per_minute=reserved,
            burst_ceiling_milli_mu_per_minute=ceiling,
        )
        await self.store.put(keys.policy(model_id, tenant_id), reservation.SerializeToString())

    async def put_replica(self, replica_id: str, model_id: str = MODEL, **fields: Any) -> None:
        replica = engine_pb2.Replica(
            replica_id=replica_id,
            model_id=model_id,
            capacity_milli_mu_per_minute=100_000,
            state=engine_pb2.REPLICA_STATE_READY,
        )
        replica.MergeFrom(engine_pb2.Replica(**fields))
        await self.store.put(keys.replica(replica_id), replica.SerializeToString())

    async def granted(self, tenant_id: str, model_id: str = MODEL) -> int:
        """A tenant's quota as stored; -1 where there is none."""
        for entry in (await self.store.list(f"{keys.QUOTAS}{model_id}/")).entries:
            for quota in capacity_pb2.QuotaTable.FromString(entry.value).quotas:
                if quota.tenant_id == tenant_id:
                    return quota.granted_milli_mu_per_minute
        return -1

    async def close(self) -> None:
        for process in self._processes:
            process.kill()
        for opened in self._channels.values():
            await opened.close(None)
        await self.routers_store.close()
        await self.store.close()


class Admin:
    """Calls the admin API with the token; failures come as Fairlead's errors."""

    def __init__(self, stub: admin_pb2_grpc.AdminServiceAsyncStub) -> None:
        self._stub = stub

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._stub, method)

        async def ask(request: Any, metadata: Any = AUTH) -> Any:
            try:
                return await call(request, metadata=metadata, timeout=10.0)
            except grpc.aio.AioRpcError as failure:
                raise from_rpc_error(failure) from failure

        return ask


class Router:
    """A router that only reports and applies lease tables, as the protocol says."""

    def __init__(self, side: Side, router_id: str, incarnation_id: str = "first") -> None:
        self._side = side
        self.router_id = router_id
        self.incarnation_id = incarnation_id
        self.reports = 0
        self.tables: dict[int, quota_pb2.LeaseTable] = {}
        self.refusals: list[FairleadError] = []

    async def report(self, wants: dict[str, int], *, leaving: bool = False) -> bool:
        """Sends one report to the leader; False when it was refused or not answered."""
        self.reports += 1
        request = quota_pb2.ReportWantsRequest(
            router_id=self.router_id,
            incarnation_id=self.incarnation_id,
            report_number=self.reports,
            applied=[
                quota_pb2.TableVersion(shard=table.shard, epoch=table.epoch, table_number=table.table_number)
                for table in self.tables.values()
            ],
            leaving=leaving,
            wants=[
                quota_pb2.Want(tenant_id=tenant, model_id=MODEL, wants_milli_mu_per_minute=rate)
                for tenant, rate in wants.items()
            ],
        )
        try:
            entry = await self._side.routers_store.get(keys.leader("ratelimiter"))
            if entry is None:
                return False
            address = admin_pb2.ServiceInstance.FromString(entry.value).address
            stub = quota_pb2_grpc.RateLimiterServiceStub(self._side.channel(address))
            answer = await stub.ReportWants(request, timeout=1.0)
        except grpc.aio.AioRpcError as failure:
            self.refusals.append(from_rpc_error(failure))
            return False
        except FairleadError as error:
            self.refusals.append(error)
            return False
        for table in answer.tables:
            self.take(table)
        return True

    def take(self, table: quota_pb2.LeaseTable) -> None:
        """Applies a table if it is newer."""
        known = self.tables.get(table.shard)
        if known is None or (table.epoch, table.table_number) > (known.epoch, known.table_number):
            self.tables[table.shard] = table

    async def watch(self) -> None:
        """Applies what was pushed through the store."""
        for entry in (await self._side.store.list(keys.leases_of(self.router_id))).entries:
            table = quota_pb2.LeaseTable.FromString(entry.value)
            if table.incarnation_id == self.incarnation_id:
                self.take(table)

    def lease(self, tenant_id: str) -> quota_pb2.Lease:
        """The applied lease of a tenant; an empty one where there is none."""
        leases = (lease for table in self.tables.values() for lease in table.leases)
        return next((lease for lease in leases if lease.tenant_id == tenant_id), quota_pb2.Lease())

    @property
    def epoch(self) -> int:
        """Of the newest leader it has heard."""
        return max((table.epoch for table in self.tables.values()), default=0)

    def rate(self, tenant_id: str) -> int:
        """The applied rate of a tenant."""
        return self.lease(tenant_id).rate_milli_mu_per_minute
