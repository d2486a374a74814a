"""How fast quotas follow: capacity that is lost, and a reservation whose owner comes back."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from benchmarks.quota.bench import STREAMS, TENANTS, Bench
from benchmarks.quota.books import Snapshot, lease_sums
from benchmarks.quota.site import MODEL, REPLICAS, Site
from common import keys
from fairlead.engine.v1 import engine_pb2
from model_units.units import REPLICA_CAPACITY

REPETITIONS: Final = 10
OWNERS: Final = tuple(f"owner-{number}" for number in range(1, REPETITIONS + 1))
_HAVE: Final = int(REPLICAS * REPLICA_CAPACITY * MODEL.target_utilization)
_CLOSE: Final = 0.99  # leases are whole numbers: a router's part is rounded down
_LIMIT_S: Final = 20.0
_POLL_S: Final = 0.02

# The owners' phase: small quotas, so that what the borrower runs does not fill the machine.
_UTILIZATION: Final = 0.2
_RESERVED: Final = 6_000
_BORROWER_RESERVED: Final = 19_000
_CEILING: Final = 80_000
_OWNER_STREAMS: Final = 64
_PAUSE_S: Final = 1.0
_NOTHING: Final = 1  # the smallest reservation there is

CAPACITY: Final = f"""\
[bold]Capacity lost[/]: {REPETITIONS} times one of {REPLICAS} replicas is ended (SIGTERM and SIGKILL in turn) and
brought back; every tenant's quota depends on it. From the moment the store shows it gone until every router applies
leases of the new quotas; the largest of {REPETITIONS}; bar <= 2 s. Beside it, without a bar, the time from the signal
itself: after a SIGKILL nobody says goodbye, and the replica counts until its entry in the store expires."""

OWNERS_BACK: Final = f"""\
[bold]An owner comes back[/]: {REPETITIONS} owners are idle, half of their reservations is lent to a tenant that wants
it all. One after the other opens {_OWNER_STREAMS} streams; from there until its leases at all routers add up to its
reservation; bar <= 2 s. Beside it what it was admitted in its first two seconds, over what two seconds are worth."""


async def capacity(bench: Bench) -> None:
    """Loses replicas and brings them back, before there was any load: what tenants wanted lately moves quotas too."""
    bench.console.print(CAPACITY)
    await bench.reserve(dict.fromkeys(TENANTS, 10_000), _HAVE)
    await _until_leased(bench.site, lambda sums: _near(sums, _HAVE // len(TENANTS)))
    task = bench.progress.add_task("replicas lost", total=REPETITIONS)
    losses: list[_Loss] = []
    for number in range(REPETITIONS):
        losses.append(await _lose_one(bench.site, number))
        bench.progress.advance(task)
    bench.progress.remove_task(task)
    lost = sorted(loss.noticed_s for loss in losses)
    bench.add("capacity_lost_to_new_quotas_max_s", lost[-1])
    bench.add("capacity_lost_to_new_quotas_median_s", lost[len(lost) // 2])
    bench.add("capacity_sigterm_to_new_quotas_max_s", max(loss.signalled_s for loss in losses[::2]))
    bench.add("capacity_sigkill_to_new_quotas_max_s", max(loss.signalled_s for loss in losses[1::2]))
    bench.add("capacity_back_to_new_quotas_max_s", max(loss.back_s for loss in losses))


class _Loss(NamedTuple):
    """A replica that was lost: seconds until the new quotas were in force, since the signal that ended it (detection
    included), since the store showed it gone, and when it was back since the store showed that."""

    signalled_s: float
    noticed_s: float
    back_s: float


async def _lose_one(site: Site, number: int) -> _Loss:
    """Ends a replica and starts it again."""
    replica = site.replicas[number % REPLICAS]
    smaller, whole = _HAVE * (REPLICAS - 1) // REPLICAS // len(TENANTS), _HAVE // len(TENANTS)
    signalled_s = time.monotonic()
    replica.signal(signal.SIGKILL if number % 2 else signal.SIGTERM)
    seen_s = await _until_ready(site, REPLICAS - 1)
    new_s = await _until_leased(site, lambda sums: _near(sums, smaller))
    signalled_s, noticed_s = new_s - signalled_s, new_s - seen_s
    await replica.stop()
    replica.start()
    seen_s = await _until_ready(site, REPLICAS)
    back_s = await _until_leased(site, lambda sums: _near(sums, whole)) - seen_s
    return _Loss(signalled_s, noticed_s, back_s)


def _near(sums: Mapping[str, int], quota: int) -> bool:
    """Whether the routers' leases of every tenant add up to this quota and not to more."""
    return all(_CLOSE * quota <= sums.get(tenant, 0) <= quota for tenant in TENANTS)


async def owners(bench: Bench) -> None:
    """Brings back one owner after the other."""
    bench.console.print(OWNERS_BACK)
    try:
        await _one_after_the_other(bench)
    finally:
        await bench.drain((TENANTS[0], *OWNERS))
        await bench.reserve(dict.fromkeys(OWNERS, _NOTHING))
        await bench.site.set_utilization(MODEL.target_utilization)


async def _one_after_the_other(bench: Bench) -> None:
    site, borrower = bench.site, TENANTS[0]
    await bench.reserve(dict.fromkeys(TENANTS, _NOTHING))
    await site.set_utilization(_UTILIZATION)
    await bench.reserve(dict.fromkeys(OWNERS, _RESERVED))
    await bench.reserve({borrower: _BORROWER_RESERVED}, _CEILING)
    await bench.client.routers([address.grpc for address in site.addresses])
    await bench.client.streams({borrower: STREAMS})
    lent = _RESERVED * 3 // 4
    task = bench.progress.add_task("owners come back", total=REPETITIONS)
    await _until_leased(site, lambda sums: all(0 < sums.get(owner, 0) < lent for owner in OWNERS))
    times, admitted = [], []
    for owner in OWNERS:
        await asyncio.sleep(_PAUSE_S)
        before = await site.snapshots()
        start_s = time.monotonic()
        await bench.client.streams({owner: _OWNER_STREAMS})
        after_2s = asyncio.create_task(_admitted_after(site, owner, before, start_s + 2.0))
        times.append(await _until_leased(site, _whole_of(owner)) - start_s)
        admitted.append(await after_2s / (_RESERVED / 30))
        await bench.client.streams({owner: 0})
        bench.progress.advance(task)
    bench.progress.remove_task(task)
    bench.add("owner_back_max_s", max(times))
    bench.add("owner_back_median_s", sorted(times)[len(times) // 2])
    bench.add("owner_admitted_in_2s_over_reservation_min", min(admitted))


def _whole_of(owner: str) -> Callable[[Mapping[str, int]], bool]:
    return lambda sums: sums.get(owner, 0) >= _CLOSE * _RESERVED


async def _admitted_after(site: Site, tenant: str, before: Mapping[int, Snapshot], at_s: float) -> int:
    """What a tenant was admitted from `before` until a moment, mMU."""
    await asyncio.sleep(max(0.0, at_s - time.monotonic()))
    after = await site.snapshots()
    return sum(book.admitted(tenant) - before[number].admitted(tenant) for number, book in after.items())


async def _until_leased(site: Site, reached: Callable[[Mapping[str, int]], bool]) -> float:
    """Reads what every router applies until it is so; returns when, monotonic seconds.

    Raises:
        RuntimeError: It was not within twenty seconds; the message shows the leases.
    """
    found: dict[int, Snapshot] = {}

    async def there() -> bool:
        nonlocal found
        found = await site.snapshots()
        return len(found) == len(site.routers) and reached(lease_sums(found.values()))

    await _until(there, lambda: f"the leases did not follow: {dict(lease_sums(found.values()))}")
    return max(book.at_s for book in found.values())


async def _until_ready(site: Site, count: int) -> float:
    """Waits until the store shows this many ready replicas; returns when, monotonic seconds."""

    async def there() -> bool:
        listing = await site.store.list(keys.REPLICAS)
        records = [engine_pb2.Replica.FromString(entry.value) for entry in listing.entries]
        return sum(record.state == engine_pb2.REPLICA_STATE_READY for record in records) == count

    await _until(there, lambda: f"the store never showed {count} ready replicas")
    return time.monotonic()


async def _until(there: Callable[[], Awaitable[bool]], words: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + _LIMIT_S
    while not await there():
        if time.monotonic() > deadline_s:
            raise RuntimeError(words())
        await asyncio.sleep(_POLL_S)
