"""The allocator's round for thousands of tenants: what it costs, how it grows, and how much it writes under noise.

python -m benchmarks.quota.allocator
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Mapping
from random import Random
from typing import Final

from capacity.core.live import LiveLedgers
from capacity.core.values import Demand, Headroom, Model, Replica, Reservation
from capacity.quota_book import QuotaBook
from common import keys
from common.clock import FakeClock
from common.memory_store import MemoryStore
from common.store import Epoch, Expect
from model_units.units import REPLICA_CAPACITY
from model_units.units import MilliModelUnitsPerMinute as Rate

TENANTS: Final = 5_000
MODELS: Final = 20
REPLICAS: Final = 512
_SMALLER: Final = (TENANTS // 4, TENANTS // 2)
_HOSTS_PER_RACK: Final = 8
_REPLICAS_PER_HOST: Final = 8
_REPEATS: Final = 3
_SEED: Final = 4

_LEADER: Final = keys.leader("capacity")


class Fleet:
    """A fleet whose every tenant has a reservation on every model and wants something of it.

    Args:
        tenants: How many.
        models: How many.
        replicas: Over all models, 8 per host, 64 per rack.
    """

    def __init__(self, tenants: int, models: int = MODELS, replicas: int = REPLICAS) -> None:
        self.random = Random(_SEED)
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.book = QuotaBook(self.store, self.clock)
        self.live = LiveLedgers()
        self.replicas = {f"r{n}": _replica(n, models) for n in range(replicas)}
        self.models = [Model(f"model-{m}", 800_000, Headroom.HOST) for m in range(models)]
        share = replicas * REPLICA_CAPACITY * 8 // 10 // models // tenants
        self.reservations = [
            Reservation(
                f"tenant-{t}",
                model.model_id,
                Rate(self.random.randrange(share)),
                Rate(share * 4),
                self.random.choice((1, 5, 9)),
                self.random.randint(1, 10),
            )
            for t in range(tenants)
            for model in self.models
        ]
        self.demand = {
            model.model_id: {
                f"tenant-{t}": Demand(Rate(self.random.randrange(2 * share)), Rate(share // 2)) for t in range(tenants)
            }
            for model in self.models
        }
        self.epoch, self.fence = Epoch(0), Expect(_LEADER)

    async def lead(self) -> None:
        """Wins the election and feeds everything in, as the mirrors of the store do at a start."""
        self.epoch = Epoch(await self.store.put(_LEADER, b"bench"))
        self.fence = Expect(_LEADER, create_revision=self.epoch)
        for key, replica in self.replicas.items():
            self.live.set_replica(key, replica)
        for model in self.models:
            self.live.set_model(model.model_id, model)
        for reservation in self.reservations:
            self.live.set_reservation(reservation.model_id, reservation.tenant_id, reservation)
        self.live.set_demand(self.demand)

    async def round(self) -> int:
        """One round as the service does it; returns the number of keys written."""
        now = self.clock.monotonic_ns()
        for model_id in self.live.changed(now):
            self.live.compute(model_id, now)
        return await self.book.write(self.live.ledgers, (), self.epoch, self.fence)

    def want(self, model_id: str, tenant_id: str, factor: float) -> None:
        """One tenant's demand changes."""
        old = self.demand[model_id][tenant_id]
        mine = {**self.demand[model_id], tenant_id: Demand(Rate(round(old.wants * factor) + 1), old.used)}
        self.demand = {**self.demand, model_id: mine}
        self.live.set_demand(self.demand)


def _replica(number: int, models: int) -> Replica:
    host = number // _REPLICAS_PER_HOST
    rack = host // _HOSTS_PER_RACK
    model_id = f"model-{number % models}"
    return Replica(f"r{number}", model_id, REPLICA_CAPACITY, True, f"h{host}", f"k{rack}")


async def first_round_s(tenants: int) -> float:
    """CPU time of a round in which everything is new and everything is written; the best of a few."""
    best = float("inf")
    for _ in range(_REPEATS):
        fleet = Fleet(tenants)
        await fleet.lead()
        gc.collect()
        began = time.process_time()
        written = await fleet.round()
        best = min(best, time.process_time() - began)
        assert written >= MODELS, "nothing was written"
    return best


async def later_rounds_s() -> Mapping[str, float]:
    """CPU time of rounds in which little is new, at full size."""
    fleet = Fleet(TENANTS)
    await fleet.lead()
    await fleet.round()
    gc.collect()

    async def cost() -> float:
        began = time.process_time()
        await fleet.round()
        return time.process_time() - began

    quiet = await cost()
    lost = []
    for number in range(5):
        fleet.live.set_replica(f"r{number}", None)
        lost.append(await cost())
    wanted = []
    for number in range(5):
        began = time.process_time()
        fleet.want("model-3", f"tenant-{number}", 2.0)
        taken = time.process_time() - began
        wanted.append(taken + await cost())
    began = time.process_time()
    for number in range(5):
        fleet.live.set_replica(f"r{number}", fleet.replicas[f"r{number}"])
    for model in fleet.models:
        fleet.live.set_replica(f"extra-{model.model_id}", Replica("x", model.model_id, REPLICA_CAPACITY, True))
    every = time.process_time() - began + await cost()
    return {
        "quiet_round_s": quiet,
        "round_after_replica_loss_s": sorted(lost)[len(lost) // 2],
        "round_after_one_tenants_demand_s": sorted(wanted)[len(wanted) // 2],
        "round_after_change_of_every_model_s": every,
    }


async def writes_per_minute(noise: float, *, load: float, tenants: int = 8, seconds: int = 120) -> float:
    """Keys written per minute for one model whose tenants' wants are noisy, reported once a second.

    Args:
        noise: Relative spread of wants, uniform to both sides.
        load: What is wanted over what there is, on average.
        tenants: How many.
        seconds: How long, after a minute to settle.
    """
    fleet = Fleet(tenants, models=1, replicas=8)
    await fleet.lead()
    have = 8 * REPLICA_CAPACITY * 8 // 10
    mean = have * load / tenants
    means = [mean * (0.5 + t / (tenants - 1)) for t in range(tenants)]
    written = 0
    for second in range(60 + seconds):
        wants = [Rate(round(m * fleet.random.uniform(1 - noise, 1 + noise))) for m in means]
        fleet.live.set_demand({"model-0": {f"tenant-{t}": Demand(w, w) for t, w in enumerate(wants)}})
        keys_written = await fleet.round()
        written += keys_written if second >= 60 else 0
        fleet.clock.advance(1.0)
    return written * 60 / seconds


async def _measure() -> dict[str, float]:
    sizes = {tenants: await first_round_s(tenants) for tenants in (*_SMALLER, TENANTS)}
    metrics = {f"allocator_round_{tenants}_s": seconds for tenants, seconds in sizes.items() if tenants != TENANTS}
    metrics["allocator_round_s"] = sizes[TENANTS]
    metrics["allocator_cost_per_tenant_ratio"] = sizes[TENANTS] / TENANTS / (sizes[_SMALLER[0]] / _SMALLER[0])
    metrics |= await later_rounds_s()
    metrics["writes_per_minute_5_percent_noise_idle"] = await writes_per_minute(0.05, load=0.5)
    metrics["writes_per_minute_5_percent_noise_scarce"] = await writes_per_minute(0.05, load=1.3)
    return metrics


def measure() -> dict[str, float]:
    """All figures of the allocator.

    Returns:
        By name: CPU seconds of rounds (`allocator_round_s` is 5,000 tenants on 20 models with 512 replicas, everything
        new, everything written to a store in memory), the cost per tenant at 5,000 over that at 1,250, and keys written
        per minute under 5 % noise in wants.
    """
    return asyncio.run(_measure())


if __name__ == "__main__":
    print(json.dumps({name: round(value, 4) for name, value in measure().items()}, indent=2))
