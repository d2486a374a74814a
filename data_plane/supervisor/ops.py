"""What the supervisor serves for those who look after it: whether it is ready, and the metrics of all its workers."""

from __future__ import annotations

import asyncio

import aiohttp
from prometheus_client import CollectorRegistry, generate_latest

from common.config import CommonConfig
from common.logs import get_logger
from common.ops import OpsServer
from data_plane.supervisor.core.crew import Crew
from data_plane.supervisor.metrics import merged
from data_plane.supervisor.naming import worker_name

_TIMEOUT_S = 2.0

log = get_logger(__name__)


class SupervisorOps:
    """`/livez`, `/readyz` and `/metrics` of a supervisor.

    Args:
        config: Where to listen.
        registry: Its own metrics.
        crew: Its workers.

    Attributes:
        addresses: Where the workers serve their own metrics, by number.
    """

    def __init__(self, config: CommonConfig, registry: CollectorRegistry, crew: Crew) -> None:
        self.addresses: dict[int, str] = {}
        self._registry = registry
        self._crew = crew
        self._complete_once = False
        self._server = OpsServer(config, registry, self._not_ready, page=self._page)

    async def start(self) -> str:
        """Listens; returns host:port."""
        return await self._server.start()

    async def stop(self) -> None:
        """Stops listening."""
        await self._server.stop()

    def _not_ready(self) -> str | None:
        """Why nobody should connect here.

        Every worker has to be ready once. From then on one is enough: the others' connections come to it meanwhile, and
        to turn all traffic away because one worker of many is being replaced would hurt more than it helps.
        """
        if self._crew.stopping:
            return "draining"
        missing = self._crew.uncovered()
        self._complete_once = self._complete_once or not missing
        if not missing or (self._complete_once and len(missing) < len(self._crew.slots)):
            return None
        return f"{len(missing)} of {len(self._crew.slots)} workers are not ready"

    async def _page(self) -> bytes:
        """The metrics of the supervisor, and of every worker that gives its own."""
        asked = {
            worker_name(worker.slot, worker.turn): address
            for worker in self._crew.workers()
            if (address := self.addresses.get(worker.number)) is not None
        }
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S)) as session:
            given = await asyncio.gather(*(_fetch(session, address) for address in asked.values()))
        pages = {name: page for name, page in zip(asked, given, strict=True) if page is not None}
        return merged({"": generate_latest(self._registry).decode(), **pages}).encode()


async def _fetch(session: aiohttp.ClientSession, address: str) -> str | None:
    try:
        async with session.get(f"http://{address}/metrics") as response:
            return await response.text() if response.status == 200 else None
    except (aiohttp.ClientError, TimeoutError) as error:
        log.debug("a worker does not give its metrics", address=address, error=str(error))
        return None
