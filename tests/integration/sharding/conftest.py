"""A fleet that serves: five replicas, one control plane, one router, real etcd; started once for a file's tests."""

from __future__ import annotations

import itertools
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from common.shard_map import ShardMap
from tests.integration.router.processes import Process, RouterProcess
from tests.integration.router.traffic import generated
from tests.integration.sharding.fleet import READY_S, Fleet, fleet
from tests.support.etcd import EtcdServer
from tests.support.waiting import eventually

REPLICAS = 5
_LOG_CHARACTERS = 3_000
_fleets: list[Fleet] = []


class Serving:
    """The fleet, the control plane that leads, and a router.

    Args:
        made: The fleet, nothing started yet.
    """

    def __init__(self, made: Fleet) -> None:
        # Nobody is named like one that is gone, whose snapshots and records may still be there.
        self._numbers = itertools.count(1)
        self.fleet = made
        made.start_quota()
        self.control = self.another_control()
        self.router = made.start_router(f"router-{next(self._numbers)}")

    def another_control(self) -> Process:
        """One more control plane, not waited for."""
        return self.fleet.start_control(f"control-{next(self._numbers)}")

    async def another_router(self) -> RouterProcess:
        """One more router that serves."""
        router = self.fleet.start_router(f"router-{next(self._numbers)}")
        await serves(router)
        return router

    async def recover(self) -> None:
        """Ends what a test has added, starts what it has ended, and waits until everybody holds one assignment."""
        controls, routers, agents = (self._running(kind) for kind in ("control", "router", "agent"))
        self.control = controls[0] if controls else self.another_control()
        for _ in range(REPLICAS - len(agents)):
            self.fleet.start_agent(f"agent-{next(self._numbers)}")
        await eventually(self._leads, READY_S, f"{self.control.name} leads")
        for process in [*(each for each in routers if each is not self.router), *agents[REPLICAS:]]:
            process.signal(signal.SIGTERM)
            await process.stopped()
        await serves(self.router)
        await eventually(self._assigned, READY_S, f"{REPLICAS} replicas, all in one assignment that everybody holds")

    def _running(self, kind: str) -> list[Process]:
        return [each for each in self.fleet.processes if each.name.startswith(kind) and each.running()]

    async def _leads(self) -> bool:
        return await self.fleet.sharder() == self.control.name

    async def _assigned(self) -> bool:
        records, stored = await self.fleet.replicas(), await self.fleet.stored()
        if stored is None or len(records) != REPLICAS or {*stored.replica_ids} != {each.replica_id for each in records}:
            return False
        generation = ShardMap(stored).generation
        for address in (self.router.grpc_address, *(each.address for each in records)):
            await self.fleet.wait_holding(address, generation)
        latest = await self.fleet.stored()
        return latest is not None and ShardMap(latest).generation == generation


async def serves(router: RouterProcess) -> None:
    """Waits until a router answers requests."""
    await router.wait_ready(READY_S)
    await eventually(lambda: generated(router), READY_S, f"an answer of {router.name}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    """The fleet of all tests of a file, as the last of them left it."""
    folder = tmp_path_factory.mktemp("fleet")
    etcd = EtcdServer(folder)
    etcd.start()
    try:
        async with fleet(etcd, folder) as made:
            _fleets.append(made)
            yield Serving(made)
            _fleets.remove(made)
    finally:
        etcd.kill()


@pytest_asyncio.fixture(loop_scope="module")
async def serving(shared: Serving) -> Serving:
    """All of it, once requests are answered and every replica is assigned and nothing else is there."""
    await shared.recover()
    return shared


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Adds the ends of the processes' logs to the report of a failed test."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]  # pluggy's result
    if not report.failed:
        return
    for process in (process for each in _fleets for process in each.processes):
        report.sections.append((f"log of {process.name}", process.log_path.read_text()[-_LOG_CHARACTERS:]))
