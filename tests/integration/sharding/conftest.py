"""A fleet that serves: five replicas, one control plane, one router, real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.router.processes import Process, RouterProcess
from tests.integration.router.traffic import generated
from tests.integration.sharding.fleet import READY_S, Fleet, fleet
from tests.support.etcd import EtcdServer
from tests.support.waiting import eventually

REPLICAS = 5


@dataclass
class Serving:
    """The fleet, the control plane that leads, and a router."""

    fleet: Fleet
    control: Process
    router: RouterProcess

    async def another_router(self, name: str) -> RouterProcess:
        """One more router that serves."""
        router = self.fleet.start_router(name)
        await serves(router)
        return router


async def serves(router: RouterProcess) -> None:
    """Waits until a router answers requests."""
    await router.wait_ready(READY_S)
    await eventually(lambda: generated(router), READY_S, f"an answer of {router.name}")


@pytest.fixture
async def serving(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Serving]:
    """All of it, once requests are answered and every replica is assigned."""
    async with fleet(etcd, tmp_path) as made:
        made.start_quota()
        control = made.start_control("control-1")
        for number in range(REPLICAS):
            made.start_agent(f"agent-{number + 1}")
        router = made.start_router("router-1")
        assigned = await made.wait_assigned(REPLICAS)
        await serves(router)
        await made.wait_holding(router.grpc_address, assigned.generation)
        yield Serving(made, control, router)
