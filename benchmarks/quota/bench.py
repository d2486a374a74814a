"""What every phase works with: the set-up, the clients, the report, and the load that most of them put on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.progress import Progress

from benchmarks.quota import bars
from benchmarks.quota.books import Snapshot
from benchmarks.quota.processes import machine_cpu
from benchmarks.quota.rates import Readings
from benchmarks.quota.remote import Client, Ended, Sample
from benchmarks.quota.site import Site
from benchmarks.report import Report

TENANTS: Final = tuple(f"tenant-{number}" for number in range(1, 9))
STREAMS: Final = 128
QUOTA: Final = 16_000
"""mMU per minute of each tenant: three to four requests a second, which two cores carry for eight tenants."""
_FIRST_QUOTA: Final = 500
_LEARNING_S: Final = 6.0
_DRAIN_S_MAX: Final = 30.0
SETTLING_S: Final = 10.0
"""From the moment the tenants have their quotas to the first reading, under every rule."""


@dataclass(slots=True)
class Bench:
    """One run.

    Attributes:
        site: The processes.
        client: The tenants.
        report: Where results go.
        console: Where definitions and remarks go.
        progress: Where the time goes.
        samples: Every admitted request since the routers were started.
        more_clients: Other client processes that run now; their CPU time counts as this benchmark's.
        steady: What was read in the steady phase, to be set beside other rules.
    """

    site: Site
    client: Client
    report: Report
    console: Console
    progress: Progress
    samples: list[Sample] = field(default_factory=list)
    more_clients: list[Client] = field(default_factory=list)
    steady: Readings = ()

    def add(self, metric: str, value: float) -> None:
        """Adds a measured value with its bar, where it has one."""
        bars.add(self.report, metric, value)

    async def wait(self, what: str, seconds: float) -> None:
        """Waits and shows it."""
        await self.readings(what, seconds, seconds)

    async def readings(self, what: str, seconds: float, every_s: float) -> list[Mapping[int, Snapshot]]:
        """Reads the routers' books again and again, and shows how long that goes on.

        Args:
            what: Shown.
            seconds: For how long.
            every_s: Time between readings.

        Returns:
            The readings, the first at once and the last at the end.
        """
        task = self.progress.add_task(what, total=seconds)
        start_s = time.monotonic()
        found: list[Mapping[int, Snapshot]] = [await self.site.snapshots()]
        while (gone_s := time.monotonic() - start_s) < seconds:
            await asyncio.sleep(min(1.0, every_s - gone_s % every_s, seconds - gone_s))
            gone_s = time.monotonic() - start_s
            self.progress.update(task, completed=gone_s)
            if gone_s >= len(found) * every_s or gone_s >= seconds:
                found.append(await self.site.snapshots())
        self.progress.remove_task(task)
        return found

    async def reserve(self, quotas: Mapping[str, int], ceiling: int = 0) -> None:
        """Sets reservations; see Site.reserve."""
        for tenant, quota in quotas.items():
            await self.site.reserve(tenant, quota, ceiling)

    async def load(self, settling_s: float = SETTLING_S) -> None:
        """Every tenant opens its streams against a tiny quota and is then given its own.

        So buckets start empty: the burst that a fresh one may spend is not part of a rate.

        Args:
            settling_s: How long to wait after that.
        """
        await self.reserve(dict.fromkeys(TENANTS, _FIRST_QUOTA))
        await self.client.routers([address.grpc for address in self.site.addresses])
        await self.client.streams(dict.fromkeys(TENANTS, STREAMS))
        await self.wait("streams open", _LEARNING_S)
        await self.reserve(dict.fromkeys(TENANTS, QUOTA))
        await self.wait("quotas in force", settling_s)
        await self.collect()

    async def collect(self) -> Ended:
        """What ended since the last call; admitted requests are kept in `samples`."""
        ended = await self.client.ended()
        self.samples += ended.samples
        return ended

    async def drain(self, tenants: Sequence[str] = TENANTS) -> None:
        """Closes the streams and waits until nothing is in flight, here and at the routers."""
        await self.client.streams(dict.fromkeys(tenants, 0))
        await self.client.arrivals(dict.fromkeys(tenants, 0.0))
        deadline_s = time.monotonic() + _DRAIN_S_MAX
        while time.monotonic() < deadline_s:
            await asyncio.sleep(0.25)
            ended, books = await self.collect(), await self.site.snapshots()
            if not ended.in_flight and not any(book.open_holds for book in books.values()):
                return

    async def recover(self, tenants: Sequence[str]) -> None:
        """After a phase that ended early: routers that are gone are started again, and nothing stays in flight."""
        for number, router in enumerate(self.site.routers):
            if not router.running:
                self.samples = [sample for sample in self.samples if sample.router != number]
                router.start()
                await self.site.until_router(number)
        await self.drain(tenants)

    def cpu_s(self) -> float:
        """CPU time of everything that runs for this benchmark, seconds; what has ended is not in it."""
        clients = sum(each.cpu_s() for each in (self.client, *self.more_clients))
        return clients + sum(process.cpu_s() for process in self.site.processes)


@dataclass(slots=True)
class Machine:
    """How busy the machine is from here on.

    Args:
        bench: The run.
    """

    bench: Bench
    _cpu_s: float = 0.0
    _machine: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self._cpu_s, self._machine = self.bench.cpu_s(), machine_cpu()

    def shares(self) -> tuple[float, float]:
        """(busy at all, busy with this benchmark), each of all cores."""
        busy_s, total_s = machine_cpu()
        total_s -= self._machine[1]
        return (busy_s - self._machine[0]) / total_s, (self.bench.cpu_s() - self._cpu_s) / total_s
