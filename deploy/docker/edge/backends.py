"""Which containers stand behind a service name, which of them are ready, and which one a connection should go to."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import aiohttp

from common.logs import get_logger

log = get_logger(__name__)

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 1.0


def connect_order(ready: Mapping[str, bool], connections: Mapping[str, int], turn: int) -> list[str]:
    """Decides which containers a new connection tries, and in what order.

    Args:
        ready: Every container's address, and whether it says it is ready.
        connections: Connections open to each.
        turn: A number that grows by one per connection, so that equals take turns.

    Returns:
        Addresses of the ready ones, fewest connections first; of all where none is ready.
    """
    addresses = sorted(address for address, is_ready in ready.items() if is_ready) or sorted(ready)
    shift = turn % len(addresses) if addresses else 0
    return sorted(addresses[shift:] + addresses[:shift], key=lambda address: connections.get(address, 0))


Resolve = Callable[[str], Awaitable[list[str]]]


async def resolve_all(name: str) -> list[str]:
    """Asks the resolver for every IPv4 address of a host name; none is what Docker says while no container runs."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(name, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return sorted({str(address[0]) for *_, address in found})


class Backends:
    """The containers behind one service name.

    Args:
        name: Host name that resolves to all of them.
        ops_port: Where each serves /readyz.
        resolve: Finds their addresses.
    """

    def __init__(self, name: str, ops_port: int, resolve: Resolve) -> None:
        self.name = name
        self.ready: dict[str, bool] = {}
        self.connections: Counter[str] = Counter()
        self._ops_port = ops_port
        self._resolve = resolve
        self._turns = itertools.count()

    def order(self) -> list[str]:
        """Returns the addresses a new connection should try, best first."""
        return connect_order(self.ready, self.connections, next(self._turns))

    def ready_count(self) -> int:
        """Counts the containers that are ready."""
        return sum(self.ready.values())

    async def run(self) -> None:
        """Keeps `ready` up to date until cancelled."""
        timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                addresses = await self._resolve(self.name)
                states = await asyncio.gather(*(self._is_ready(session, address) for address in addresses))
                ready = dict(zip(addresses, states, strict=True))
                if ready != self.ready:
                    log.info("backends changed", service=self.name, ready=sum(states), known=len(states))
                self.ready = ready
                await asyncio.sleep(PROBE_INTERVAL_S)

    async def _is_ready(self, session: aiohttp.ClientSession, address: str) -> bool:
        try:
            async with session.get(f"http://{address}:{self._ops_port}/readyz") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False
