"""The wall clock jumps while work is admitted."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import checkers
from tests.faults.books import router_books, value
from tests.faults.lab import Lab
from tests.faults.load import REFUSED, History, Stream, load
from tests.faults.processes import Service
from tests.faults.tenants import GREEDY, QUOTAS, STEADY
from tests.faults.traffic import GREEDY_PER_S, STEADY_PER_S
from tests.faults.wallclock import WallClock, library
from tests.support.waiting import Stillness, eventually

pytestmark = pytest.mark.timeout(300)

HOUR_S = 3_600
MEASURED_S = 12.0
QUOTA = QUOTAS[GREEDY][1]
REQUEST_MILLI_MU = 10
LOOK_S, LOOK_S_MAX, LOOKING_S = 0.04, 0.3, 10.0
"""From a refusal, when the bucket is all but empty, to the end of a look at the books: an exact one, one that will do
after so many seconds without an exact one. What the bucket may hold by then, a request less a little and the refill of
this time, must be 0.8 % of what is measured."""
PART_UNKNOWN = 0.008
TRIES = 3
STILL_S_MAX = 0.5
"""A machine that stood still for longer, with the limiter and the router on it, may have cost the router its lease."""


@dataclass(frozen=True)
class Look:
    """What was admitted so far, read shortly after the quota was used up.

    Attributes:
        at_s: When, monotonic.
        milli_mu: Admitted so far.
        after_s: Time since the quota was used up.
    """

    at_s: float
    milli_mu: int
    after_s: float

    @property
    def unknown_milli_mu(self) -> float:
        """What the bucket may hold."""
        return REQUEST_MILLI_MU + QUOTA / 60 * self.after_s


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    """A wall clock for the processes of a test."""
    found = library()
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("CI must be able to set the wall clock: install libfaketime")
    if found is None:
        pytest.skip("cannot set the wall clock: install libfaketime")
    return WallClock(tmp_path / "wallclock", found)


@pytest.fixture
async def alone(lab: Lab) -> Lab:
    """The lab with one router, so that leases do not move while something is measured."""
    for name in lab.router_names[1:]:
        lab.services[name].stop()
    return lab


async def run_with(lab: Lab, name: str, module: str, clock: WallClock) -> Service:
    """Starts a service anew with another wall clock."""
    service = lab.services[name]
    service.end()
    service.runs(module, **clock.environment)
    service.start()
    return service


async def whole_quota(router: Service) -> None:
    """Waits until a router is leased the whole quota of the greedy tenant."""

    async def leased() -> bool:
        page = await asyncio.to_thread(router.metrics)
        return value(page, "fairlead_router_lease_milli_mu_per_minute", tenant=GREEDY) >= QUOTA

    await eventually(leased, 60.0, "the router has the whole quota")


async def admitted(router: Service, history: History) -> Look:
    """Waits until the quota is used up, then reads what was admitted so far."""
    looks: list[Look] = []

    async def looked() -> bool:
        latest = next((record for record in reversed(history.records) if record.tenant == GREEDY), None)
        if latest is not None and latest.outcome == REFUSED and time.monotonic() <= latest.sent_s + LOOK_S:
            text = await asyncio.to_thread(router.metrics)
            at_s = time.monotonic()
            looks.append(Look(at_s, router_books(text).admitted_milli_mu(GREEDY), at_s - latest.sent_s))
        good_s = LOOK_S if time.monotonic() < until_s else LOOK_S_MAX
        return bool(looks) and best().after_s <= good_s

    def best() -> Look:
        return min(looks, key=lambda look: look.after_s)

    until_s = time.monotonic() + LOOKING_S
    await eventually(looked, 60.0, "a look at a used-up quota")
    return best()


async def per_second(router: Service, history: History, steps: list[int], clock: WallClock) -> float:
    """What is admitted per second while the wall clock makes these steps, evenly spread."""
    first = await admitted(router, history)
    for step in steps:
        clock.step(step)
        await asyncio.sleep(MEASURED_S / len(steps))
    last = await admitted(router, history)
    while max(first.unknown_milli_mu, last.unknown_milli_mu) > PART_UNKNOWN * QUOTA / 60 * (last.at_s - first.at_s):
        last = await admitted(router, history)
    return (last.milli_mu - first.milli_mu) / (last.at_s - first.at_s)


async def undisturbed(router: Service, history: History, steps: list[int], clock: WallClock) -> float:
    """The same; where the machine stood still meanwhile, again, with its whole quota back."""
    for _ in range(TRIES):
        async with Stillness() as stillness:
            measured = await per_second(router, history, steps, clock)
        if stillness.longest_s <= STILL_S_MAX:
            break
        print(f"the machine stood still for {stillness.longest_s:.1f} s: {measured:.2f} mMU/s")
        await whole_quota(router)
    return measured


def streams(router: Service) -> list[Stream]:
    """Both tenants on one router."""
    return [
        Stream(GREEDY, router.name, router.grpc_address, GREEDY_PER_S),
        Stream(STEADY, router.name, router.grpc_address, STEADY_PER_S),
    ]


async def test_jumps_of_the_wall_clock_change_nothing(alone: Lab, clock: WallClock) -> None:
    """Steps of an hour forth and back at router and limiter change the admitted work by at most 1 %."""
    limiter = alone.leader("ratelimiter")
    await run_with(alone, limiter.name, "ratelimiter", clock)
    router = await run_with(alone, "router-1", "data_plane.router", clock)
    await eventually(lambda: asyncio.to_thread(router.ready), 60.0, "the router serves")
    await whole_quota(router)
    async with load(streams(router)) as history:
        calm = await undisturbed(router, history, [0], clock)
        jumping = await undisturbed(router, history, [HOUR_S, 0, -HOUR_S, HOUR_S, -HOUR_S], clock)
    checkers.same_admission(calm, jumping, part=0.01)
    checkers.same_admission(QUOTA / 60, jumping, part=0.01)
    checkers.never_refused(history.of(STEADY))


async def test_a_router_on_the_wall_clock_is_caught(alone: Lab, clock: WallClock) -> None:
    """A build that decides with the wall clock admits something else when it jumps."""
    router = await run_with(alone, "router-1", "tests.faults.mutants.wall_clock_router", clock)
    await eventually(lambda: asyncio.to_thread(router.ready), 60.0, "the router serves")
    await whole_quota(router)
    async with load(streams(router)) as history:
        before = await admitted(router, history)
        clock.step(HOUR_S)
        await asyncio.sleep(2.0)
        after = await admitted(router, history)
    with pytest.raises(AssertionError):
        checkers.same_admission(QUOTA / 60, (after.milli_mu - before.milli_mu) / (after.at_s - before.at_s), part=0.01)
