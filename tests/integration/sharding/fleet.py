"""A sharded fleet of real processes: control planes, agents, routers, and steady traffic through them."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from common import keys
from common.platform_token import platform_token
from common.shard_map import Generation, ShardMap, shard_key
from fairlead.admin.v1 import admin_pb2
from fairlead.inference.v1 import decision_pb2, decision_pb2_grpc
from fairlead.inference.v1 import inference_pb2 as pb
from fairlead.sharding.v1 import sharding_pb2, sharding_pb2_grpc
from tests.integration.router.processes import AUTH, MODEL, Platform, Process, RouterProcess
from tests.support.etcd import EtcdServer
from tests.support.router_lab import OTHER_KEY, OTHER_TENANT, PEPPER, TENANT, api_key
from tests.support.waiting import eventually

PLATFORM_AUTH = (("authorization", f"Platform {platform_token(PEPPER)}"),)
OTHER_AUTH = (("authorization", f"Bearer {OTHER_KEY}"),)
READY_S = 100.0
SESSIONS = 200
QUIET_TENANTS = 8


def subsets(assignment: sharding_pb2.Assignment) -> dict[int, tuple[str, ...]]:
    """Who serves what: replica ids by the first key of their slice."""
    read = ShardMap(assignment)
    return {each.first_key: read.subset(each.first_key) for each in assignment.slices}


class Fleet(Platform):
    """A platform that is sharded.

    Args:
        etcd: The store.
        folder: Logs and secrets.
    """

    def __init__(self, etcd: EtcdServer, folder: Path) -> None:
        super().__init__(etcd, folder)
        (folder / "token").write_text("a-token-for-tests-only\n")

    def start_control(self, name: str) -> Process:
        """Starts a control plane, which competes for leadership of the sharder."""
        secrets = ("--key-pepper-file", str(self.folder / "pepper"), "--admin-token-file", str(self.folder / "token"))
        return self.start(name, "control_plane", "--instance-id", name, *secrets)

    async def configure(self, *, reserved: int = 100_000, ceiling: int = 300_000) -> None:
        """Two tenants with keys, and reservations of theirs and of quiet ones."""
        await super().configure(reserved=reserved, ceiling=ceiling)
        stored = api_key(OTHER_KEY, OTHER_TENANT)
        reservation = admin_pb2.Reservation(
            tenant_id=OTHER_TENANT,
            model_id=MODEL,
            reserved_milli_mu_per_minute=50_000,
            burst_ceiling_milli_mu_per_minute=ceiling,
        )
        tenant = admin_pb2.Tenant(tenant_id=OTHER_TENANT)
        await self.store.put(keys.tenant(OTHER_TENANT), tenant.SerializeToString())
        await self.store.put(keys.api_key(stored.key_id), stored.SerializeToString())
        await self.store.put(keys.policy(MODEL, OTHER_TENANT), reservation.SerializeToString())
        # Enough other slices for every replica to be named by one.
        for number in range(QUIET_TENANTS):
            quiet = admin_pb2.Reservation(
                tenant_id=f"quiet-{number}", model_id=MODEL, reserved_milli_mu_per_minute=10_000
            )
            await self.store.put(keys.policy(MODEL, quiet.tenant_id), quiet.SerializeToString())

    async def stored(self) -> sharding_pb2.Assignment | None:
        """The assignment in the store."""
        entry = await self.store.get(keys.assignment(MODEL))
        return None if entry is None else sharding_pb2.Assignment.FromString(entry.value)

    async def sharder(self) -> str:
        """Instance id of the control plane that leads; empty where none does."""
        entry = await self.store.get(keys.leader("control-plane"))
        return "" if entry is None else admin_pb2.ServiceInstance.FromString(entry.value).instance_id

    async def wait_assigned(self, names: int, without: Sequence[str] = (), timeout_s: float = READY_S) -> ShardMap:
        """Waits for an assignment over so many replicas.

        Args:
            names: How many it names.
            without: Replicas that it must not name.
            timeout_s: For how long.
        """
        found: list[ShardMap] = []

        async def assigned() -> bool:
            stored = await self.stored()
            found[:] = [] if stored is None else [ShardMap(stored)]
            return bool(found) and len(found[0].replica_ids) == names and not {*found[0].replica_ids} & {*without}

        await eventually(assigned, timeout_s, f"an assignment over {names} replicas without {without}")
        return found[0]

    async def wait_holding(self, address: str, generation: Generation, timeout_s: float = READY_S) -> None:
        """Waits until an agent or a router holds an assignment of at least this generation."""

        async def holding() -> bool:
            return any(Generation.of(each.generation) >= generation for each in await held(address))

        await eventually(holding, timeout_s, f"{address} holds {generation}")

    def process_of(self, pid: int) -> Process:
        """The process with this id."""
        return next(process for process in self.processes if process.pid == pid)

    async def misrouted(self) -> float:
        """Requests so far that the replicas that are there now do not serve by the assignment they hold."""
        found = 0.0
        for replica in await self.replicas():
            page = await asyncio.to_thread(_page, f"http://{replica.ops_address}/metrics")
            for family in text_string_to_metric_families(page):
                if family.name == "fairlead_agent_misrouted_requests":
                    found += sum(sample.value for sample in family.samples if sample.name.endswith("_total"))
        return found


def _page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as response:
        return str(response.read().decode())


async def held(address: str) -> list[sharding_pb2.Assignment]:
    """The assignments that an agent or a router hands over."""
    async with grpc.aio.insecure_channel(address) as channel:
        answer = await sharding_pb2_grpc.AssignmentServiceStub(channel).ExchangeAssignments(
            sharding_pb2.ExchangeAssignmentsRequest(), metadata=PLATFORM_AUTH, timeout=5
        )
    assignments: list[sharding_pb2.Assignment] = list(answer.assignments)
    return assignments


async def decision(router: RouterProcess, request_id: str) -> decision_pb2.Decision:
    """What a router decided about a request of the first tenant."""
    answer = await decision_pb2_grpc.DecisionServiceStub(router.channel).GetDecision(
        decision_pb2.GetDecisionRequest(request_id=request_id), metadata=AUTH, timeout=5
    )
    found: decision_pb2.Decision = answer.decisions[0]
    return found


def session(number: int) -> str:
    """One of the sessions that traffic belongs to."""
    return f"session-{number % SESSIONS}"


@dataclass(frozen=True, slots=True)
class Sent:
    """One request and its end.

    Attributes:
        number: Names its session.
        tenant_id: Whose.
        router: Where it was sent.
        sent_s: When, monotonic.
        replica_id: Who answered; empty where nobody did.
        request_id: As the router answered.
        error: Why it failed, or empty.
    """

    number: int
    tenant_id: str
    router: RouterProcess
    sent_s: float
    replica_id: str
    request_id: str
    error: str = ""

    @property
    def key(self) -> int:
        """Where it lies in the key space."""
        return shard_key(self.tenant_id, session(self.number))


class Traffic:
    """Small requests of both tenants at a steady rate, each router in turn, none of them retried by the client.

    Args:
        routers: Where they go.
        per_s: How many a second.
    """

    def __init__(self, routers: Sequence[RouterProcess], per_s: float = 20.0) -> None:
        self._routers = routers
        self._pause_s = 1 / per_s
        self._sending: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.sent: list[Sent] = []

    async def __aenter__(self) -> Traffic:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task, *self._sending], timeout=30)

    @property
    def errors(self) -> list[str]:
        """Why requests failed."""
        return [each.error for each in self.sent if each.error]

    async def flows(self, count: int = 20, timeout_s: float = READY_S) -> None:
        """Waits until so many more requests have been answered."""
        enough = len(self.sent) + count
        await eventually(lambda: len(self.sent) >= enough, timeout_s, f"{count} more answers")

    async def _run(self) -> None:
        number, due_s = 0, time.monotonic()
        while True:
            due_s = max(due_s + self._pause_s, time.monotonic() - 1.0)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            task = asyncio.create_task(self._send(number))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
            number += 1

    async def _send(self, number: int) -> None:
        tenant_id, auth = ((TENANT, AUTH), (OTHER_TENANT, OTHER_AUTH))[number // len(self._routers) % 2]
        router, sent_s = self._routers[number % len(self._routers)], time.monotonic()
        sampling = pb.SamplingParameters(max_tokens=4, ignore_end_token=True, temperature=0.0)
        request = pb.GenerateRequest(
            model=MODEL, prompt=f"{session(number)}: go on", sampling=sampling, session_id=session(number)
        )
        try:
            answer = await router.stub.Generate(request, metadata=auth, timeout=20)
        except grpc.aio.AioRpcError as error:
            self.sent.append(Sent(number, tenant_id, router, sent_s, "", "", f"{error.code()}: {error.details()}"))
        else:
            self.sent.append(Sent(number, tenant_id, router, sent_s, answer.replica_id, answer.request_id))


def strays(sent: Sequence[Sent], assignment: sharding_pb2.Assignment) -> list[Sent]:
    """Answered requests whose replica is not in their subset."""
    read = ShardMap(assignment)
    return [each for each in sent if each.replica_id and each.replica_id not in read.subset(each.key)]


def by_key(sent: Sequence[Sent]) -> Mapping[int, set[str]]:
    """The replicas that answered, by key."""
    found: dict[int, set[str]] = {}
    for each in sent:
        if each.replica_id:
            found.setdefault(each.key, set()).add(each.replica_id)
    return found


@asynccontextmanager
async def fleet(etcd: EtcdServer, folder: Path) -> AsyncIterator[Fleet]:
    """A configured fleet; what a test starts is ended with it."""
    made = Fleet(etcd, folder)
    await made.configure()
    try:
        yield made
    finally:
        await made.close()
