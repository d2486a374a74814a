"""The whole chain as real processes: etcd, two limiters, two allocators, a control plane, routers and replicas."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from common import keys
from common.etcd_store import EtcdStore
from fairlead.admin.v1 import admin_pb2
from fairlead.admin.v1.usage_pb2 import UsageTable
from tests.faults.books import RouterBooks, router_books, value
from tests.faults.load import ask, saved_milli_mu
from tests.faults.network import Loopback, Namespaces
from tests.faults.processes import LabProcess, Service
from tests.faults.tenants import KEYS, MODEL, QUOTAS, STEADY
from tests.support.etcd import PatientStore
from tests.support.ports import free_port
from tests.support.router_lab import PEPPER, api_key
from tests.support.waiting import eventually

LEASE_S = 3.0
ELECTION_TTL_S = 2
BURST_WINDOW_S = 5
REFRESH_S = 0.5
START_S = 150.0
"""Ten interpreters start at once, perhaps on a machine with other things to do."""
LOOK_S = 0.15
LEAST_SHARE = 0.4
"""Part of an equal share of the steady quota, of which a quarter is used: what each router has before a fault."""
SAVED_MIN_MILLI_MU, SAVE_S = 20, 2.0
"""Two requests' worth that each router's bucket holds before a fault, and how long it may fill: at the least share
it gets 13 mMU a second and holds 67."""

_GRPC_PORT, _OPS_PORT, _ETCD_PORT, _ETCD_PEER_PORT = 7000, 9000, 2379, 2380


class EtcdProcess(LabProcess):
    """The lab's etcd.

    Args:
        folder: Where its log and, unless said otherwise, its data go.
        enter: The beginning of the command.
        address: Its host's address.
        ports: For clients and for peers.
        options: Further options.
    """

    def __init__(
        self, folder: Path, *, enter: Sequence[str], address: str, ports: tuple[int, int], options: Sequence[str]
    ) -> None:
        self.endpoint = f"{address}:{ports[0]}"
        client, peer = f"http://{self.endpoint}", f"http://{address}:{ports[1]}"
        binary = shutil.which("etcd") or str(Path(sys.executable).with_name("etcd"))
        self.data_dir = folder / "etcd"
        command = [*enter, binary, "--data-dir", str(self.data_dir), "--log-level", "error", "--name", "lab"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client, "--unsafe-no-fsync"]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"lab={peer}", *options]
        super().__init__("etcd", command, folder)


class Lab:
    """One platform.

    Args:
        folder: Logs, secrets, snapshots and etcd's data.
        routers: How many.
        replicas: How many.
        namespaces: Whether every process gets a network namespace of its own, so that connections can be cut.
        etcd_options: Further options of etcd.
    """

    def __init__(
        self,
        folder: Path,
        *,
        routers: int = 3,
        replicas: int = 2,
        namespaces: bool = False,
        etcd_options: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        hosts = ["etcd", "ratelimiter-1", "ratelimiter-2", "capacity-1", "capacity-2", "control-plane-1"]
        self.router_names = [f"router-{number}" for number in range(1, routers + 1)]
        self.replica_names = [f"replica-{number}" for number in range(1, replicas + 1)]
        hosts += [*self.router_names, *self.replica_names]
        self.network: Loopback | Namespaces = Namespaces(hosts) if namespaces else Loopback()
        self._namespaces = namespaces
        (folder / "pepper").write_bytes(PEPPER)
        (folder / "admin-token").write_text(secrets.token_urlsafe(24))
        self.etcd = EtcdProcess(
            folder,
            enter=self.network.enter("etcd"),
            address=self.network.address("etcd"),
            ports=self._ports(_ETCD_PORT, _ETCD_PEER_PORT),
            options=etcd_options,
        )
        self.services = {service.name: service for service in map(self._service, hosts[1:])}

    def _ports(self, *known: int) -> tuple[int, int]:
        return (known[0], known[1]) if self._namespaces else (free_port(), free_port())

    def _service(self, name: str) -> Service:
        kind = name.rpartition("-")[0]
        pepper = {"key_pepper_file": self.folder / "pepper"}
        module, settings = {
            "ratelimiter": (
                "ratelimiter",
                {
                    "election_ttl_s": ELECTION_TTL_S,
                    "lease_s": LEASE_S,
                    "refresh_s": REFRESH_S,
                    "burst_window_s": BURST_WINDOW_S,
                    "burst_min_milli_mu": 0,
                    "debounce_ms": 50,
                    "demand_interval_s": 0.5,
                },
            ),
            "capacity": (
                "capacity",
                {"election_ttl_s": ELECTION_TTL_S, "round_interval_s": 1.0, "takeover_caution_s": 3.0},
            ),
            "control-plane": (
                "control_plane",
                {"election_ttl_s": ELECTION_TTL_S, "admin_token_file": self.folder / "admin-token", **pepper},
            ),
            "router": ("data_plane.router", {"state_dir": self.folder / f"{name}.state", **pepper}),
            "replica": ("engines", {"model_id": MODEL, "hardware": "h100", "slot": name}),
        }[kind]
        return Service(
            name,
            module,
            self.folder,
            enter=self.network.enter(name),
            address=self.network.address(name),
            ports=self._ports(_GRPC_PORT, _OPS_PORT),
            settings={"etcd_endpoint": self.etcd.endpoint, **settings},
        )

    @property
    def processes(self) -> list[LabProcess]:
        """All of them, etcd first."""
        return [self.etcd, *self.services.values()]

    @property
    def routers(self) -> list[Service]:
        """The routers."""
        return [self.services[name] for name in self.router_names]

    @asynccontextmanager
    async def store(self) -> AsyncIterator[EtcdStore]:
        """A client of the lab's etcd."""
        store = PatientStore(self.etcd.endpoint)
        try:
            yield store
        finally:
            await store.close()

    async def start(self) -> None:
        """Starts everything and returns when every router serves both tenants."""
        self.etcd.start()
        async with self.store() as store:

            async def configured() -> bool:
                await self._configure(store)
                return True

            await eventually(configured, START_S, "etcd takes writes")
        await self.recover()

    async def recover(self) -> None:
        """Undoes every fault: heals cuts, thaws, starts what is dead or a mutant again, waits until all is well."""
        self.network.heal()
        for process in self.processes:
            process.thaw()
        for service in self.services.values():
            if not service.as_shipped():
                service.end()
                service.runs(service.module)
        for process in self.processes:
            process.start()
        await self.wait_settled()

    async def wait_settled(self) -> None:
        """Returns when all is well and every router has a lease worth having, and something saved up by it.

        One that was just started has next to nothing as long as its predecessor's leases run, and until it is asked.
        """

        await self.wait_well()

        async def leased() -> bool:
            enough = LEAST_SHARE * QUOTAS[STEADY][0] / len(self.routers)
            for router in self.routers:
                page = await asyncio.to_thread(router.metrics)
                if value(page, "fairlead_router_lease_milli_mu_per_minute", tenant=STEADY) < enough:
                    await ask(STEADY, router.grpc_address)
                    return False
            for router in self.routers:
                if await saved_milli_mu(STEADY, router.grpc_address) < SAVED_MIN_MILLI_MU:
                    await asyncio.sleep(SAVE_S)
                    return False
            return True

        await eventually(leased, START_S, "every router has a lease")

    async def wait_well(self, timeout_s: float = START_S) -> None:
        """Returns when all is well; fails at once when a process that should run has ended by itself."""

        async def well_or_dead() -> bool:
            return bool(self._dead()) or await self.well()

        await eventually(well_or_dead, timeout_s, "the whole platform is well")
        assert not self._dead(), f"ended by themselves: {', '.join(self._dead())}"

    def _dead(self) -> list[str]:
        return [process.name for process in self.processes if process.died]

    async def well(self) -> bool:
        """Whether everybody is ready, one limiter leads, and all routers report to it."""
        # Looking is work too, and those that start need the processor.
        await asyncio.sleep(LOOK_S)
        ready = await asyncio.gather(*(asyncio.to_thread(service.ready) for service in self.services.values()))
        if not all(ready):
            missing = [name for name, good in zip(self.services, ready, strict=True) if not good]
            raise AssertionError(f"not ready: {', '.join(missing)}")
        leading = self.leader("ratelimiter").metrics()
        live = value(leading, "fairlead_ratelimiter_routers")
        if live != len(self.router_names):
            raise AssertionError(f"the limiter knows {live:g} routers")
        return True

    async def become(self, name: str, mutant: str, **environment: str) -> Service:
        """Puts a mutant in a service's place and returns when the platform is well with it.

        Args:
            name: The service.
            mutant: A module of tests/faults/mutants.
            environment: Beyond this process's own.
        """
        service = self.services[name]
        service.end()
        service.runs(f"tests.faults.mutants.{mutant}", **environment)
        service.start()
        await self.wait_settled()
        return service

    def leader(self, service: str) -> Service:
        """The instance of a service that leads.

        Raises:
            AssertionError: None does, or two say so.
        """
        leading = []
        for candidate in self.services.values():
            if candidate.name.startswith(service + "-") and candidate.running:
                try:
                    text = candidate.metrics()
                except OSError:
                    continue
                if value(text, f"fairlead_{service.replace('-', '_')}_leader"):
                    leading.append(candidate)
        names = ", ".join(each.name for each in leading) or "nobody"
        assert len(leading) == 1, f"{names} leads {service}"
        return leading[0]

    def books(self) -> dict[str, RouterBooks]:
        """The books of every router that runs."""
        return {router.name: router_books(router.metrics()) for router in self.routers if router.running}

    async def quiet(self, timeout_s: float = 20.0) -> dict[str, RouterBooks]:
        """Waits until no router has a request in flight; returns their books."""
        found: dict[str, RouterBooks] = {}

        async def none_in_flight() -> bool:
            found.update(await asyncio.to_thread(self.books))
            return not any(books.in_flight for books in found.values())

        await eventually(none_in_flight, timeout_s, "no request in flight")
        return found

    async def since(self, before: Mapping[str, RouterBooks]) -> dict[str, RouterBooks]:
        """The books of the routers that run since `before`, once nothing is in flight."""
        after = await self.quiet()
        return {name: books.since(before[name]) for name, books in after.items()}

    async def usage(self, router: str) -> Counter[str]:
        """What is stored of a router's usage, over all its processes, milli-MU by tenant."""
        used: Counter[str] = Counter()
        async with self.store() as store:
            tables = [UsageTable.FromString(entry.value) for entry in (await store.list(keys.USAGE)).entries]
        for row in (row for table in tables if table.router_id == router for row in table.rows):
            used[row.tenant_id] += row.prefill_milli_mu + row.decode_milli_mu
        return used

    async def add_tenant(self, name: str, *, display_name: str = "") -> str:
        """Writes a tenant with a key but without a reservation; returns the key."""
        key = f"fl-{name:x<16.16}-secret"
        async with self.store() as store:
            stored = api_key(key, name)
            tenant = admin_pb2.Tenant(tenant_id=name, display_name=display_name)
            await store.put(keys.tenant(name), tenant.SerializeToString())
            await store.put(keys.api_key(stored.key_id), stored.SerializeToString())
        return key

    async def _configure(self, store: EtcdStore) -> None:
        model = admin_pb2.Model(
            model_id=MODEL,
            engine=admin_pb2.EngineSpec(engine="simulated", hardware="h100"),
            context_tokens=8192,
            output_tokens_max=4096,
            output_tokens_default=64,
            bytes_per_token=4.0,
            target_utilization=0.8,
            replicas_max=8,
        )
        await store.put(keys.model(MODEL), model.SerializeToString())
        for tenant, (reserved, ceiling) in QUOTAS.items():
            stored = api_key(KEYS[tenant], tenant)
            held = admin_pb2.Reservation(
                tenant_id=tenant,
                model_id=MODEL,
                reserved_milli_mu_per_minute=reserved,
                burst_ceiling_milli_mu_per_minute=ceiling,
            )
            await store.put(keys.tenant(tenant), admin_pb2.Tenant(tenant_id=tenant).SerializeToString())
            await store.put(keys.api_key(stored.key_id), stored.SerializeToString())
            await store.put(keys.policy(MODEL, tenant), held.SerializeToString())

    def close(self) -> None:
        """Ends everything."""
        for process in reversed(self.processes):
            process.kill()
        self.network.close()
