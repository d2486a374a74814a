"""A fleet and its tenants for tests of the sharder: true load, what replicas report of it, and what goes wrong."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from common.shard_map import tenant_keys
from control_plane.core.sharding.demand import HALF_LIFE_S
from control_plane.core.sharding.values import KeyLoad, Life, Placement, Server, Slice, View
from model_units.units import MilliModelUnitsPerMinute as Rate

_Item = TypeVar("_Item")

PART_BITS: Final = 28
"""Agents count keys together that agree in all but these bits: engine.proto, KeyLoad.first_key."""
PARTS: Final = 16
"""Parts of one tenant: 2^(32 - PART_BITS)."""
CAPACITY: Final = 100_000
_CAPACITIES: Final = (50_000, 100_000, 100_000, 200_000)
_ABSURD_RATES: Final = (-1, 0, 10**12, 10**18)
_ABSURD_CAPACITIES: Final = (-5, 0, 1, 10**15)


@dataclass
class Seat:
    """A place where one replica at a time runs."""

    name: str
    capacity: int
    starts: int = 1
    up: bool = True
    leaving: bool = False

    @property
    def replica_id(self) -> str:
        """Of the replica that runs there, or ran there last."""
        return f"{self.name}.{self.starts}"


@dataclass
class Demand:
    """One tenant: its true load, mMU per minute, and how it lies over the tenant's parts."""

    rate: int
    weights: list[float] = field(default_factory=lambda: [1.0] * PARTS)


def slice_at(placement: Placement, key: int) -> Slice:
    """The slice that holds a key."""
    return placement.slices[bisect_right(placement.slices, key, key=lambda each: each.first_key) - 1]


class World:
    """Seats, tenants and time.

    Args:
        seed: Of everything that happens.
        replicas: Seats at first.
        unequal: Seats have different capacities.
        tenants: How many there are at first.
        load: Their load over the fleet's capacity, Zipf over the tenants.
    """

    def __init__(
        self, seed: int, replicas: int, *, unequal: bool = False, tenants: int = 24, load: float = 0.6
    ) -> None:
        self.random = random.Random(seed)
        self.now_ms = 1_700_000_000_000
        self.seats: list[Seat] = []
        self._averages: dict[tuple[str, int], tuple[float, str]] = {}
        self._averages_ms = self.now_ms
        self.unequal = unequal
        for _ in range(replicas):
            self.add_seat()
        capacity = sum(seat.capacity for seat in self.seats)
        shares = [1 / (rank + 1) for rank in range(tenants)]
        self.tenants = {
            f"tenant-{rank}": Demand(round(load * capacity * share / sum(shares)), self.spread())
            for rank, share in enumerate(shares)
        }

    def add_seat(self) -> Seat:
        """One more seat, and a replica in it."""
        capacity = self.random.choice(_CAPACITIES) if self.unequal else CAPACITY
        self.seats.append(Seat(f"seat-{len(self.seats):03}", capacity))
        return self.seats[-1]

    def spread(self) -> list[float]:
        """How a usual tenant's load lies over its parts."""
        return [self.random.lognormvariate(0.0, 0.3) for _ in range(PARTS)]

    def servers(self) -> list[Server]:
        """The replicas that can serve."""
        return [
            Server(seat.replica_id, seat.name, Rate(seat.capacity), Life.LEAVING if seat.leaving else Life.OPEN)
            for seat in self.seats
            if seat.up
        ]

    def loads(self, placement: Placement | None, noise: float = 0.0) -> dict[tuple[str, int], tuple[float, str]]:
        """True load, mMU per minute, and its tenant, by replica and part, when routers spread parts by capacity.

        Args:
            placement: What the routers go by.
            noise: Standard deviation of every part's logarithm at this moment.
        """
        loads: dict[tuple[str, int], tuple[float, str]] = {}
        if placement is None:
            return loads
        capacity = {seat.replica_id: seat.capacity for seat in self.seats if seat.up}
        for tenant_id, demand in self.tenants.items():
            first, total = tenant_keys(tenant_id)[0], sum(demand.weights)
            for part, weight in enumerate(demand.weights):
                key = first + (part << PART_BITS)
                alive = [each for each in slice_at(placement, key).replica_ids if each in capacity]
                there = sum(capacity[each] for each in alive)
                rate = demand.rate * weight / total * (self.random.lognormvariate(0.0, noise) if noise else 1.0)
                for each in alive:
                    loads[each, key] = (rate * capacity[each] / there, tenant_id)
        return loads

    def reports(self, placement: Placement | None, noise: float = 0.0) -> dict[str, list[KeyLoad]]:
        """What the replicas that are up report: averages that have followed the true load since the last call."""
        old, new = self._averages, self.loads(placement, noise)
        left = 0.5 ** (max(0, self.now_ms - self._averages_ms) / 1_000 / HALF_LIFE_S)
        self._averages, self._averages_ms = {}, self.now_ms
        up = {seat.replica_id for seat in self.seats if seat.up}
        reports: dict[str, list[KeyLoad]] = {}
        for at in {**old, **new}:
            before, now = old.get(at), new.get(at)
            rate = (before[0] if before else 0.0) * left + (now[0] if now else 0.0) * (1 - left)
            replica_id, key = at
            if rate < 1.0 or replica_id not in up:
                continue
            tenant_id = (now or before or (0.0, ""))[1]
            self._averages[at] = (rate, tenant_id)
            told = KeyLoad(key, round(rate), round(rate) // 2, 1 if now else 0, tenant_id)
            reports.setdefault(replica_id, []).append(told)
        return reports

    def view(self, placement: Placement | None, noise: float = 0.0) -> View:
        """What the sharder sees when nothing is wrong; half of the tenants' load is reserved."""
        reserved = {tenant_id: Rate(demand.rate // 2) for tenant_id, demand in self.tenants.items()}
        return View(self.servers(), reserved, self.reports(placement, noise))

    def utilisation(self, placement: Placement) -> dict[str, float]:
        """True load over capacity of every replica that is open."""
        carried: dict[str, float] = {server.replica_id: 0.0 for server in self.servers() if server.life is Life.OPEN}
        capacity = {seat.replica_id: seat.capacity for seat in self.seats}
        for (replica_id, _), (rate, _) in self.loads(placement).items():
            if replica_id in carried:
                carried[replica_id] += rate
        return {replica_id: load / capacity[replica_id] for replica_id, load in carried.items()}

    def total(self) -> int:
        """True load of all tenants, mMU per minute."""
        return sum(demand.rate for demand in self.tenants.values())

    def restart(self, seat: Seat) -> None:
        """A replica crashes, and another one is there in its place at once."""
        seat.starts += 1
        seat.up, seat.leaving = True, False

    def disturb(self) -> None:
        """Something happens to the fleet or to a tenant."""
        draw, seat = self.random.random(), self.random.choice(self.seats)
        tenants = sorted(self.tenants)
        tenant_id = self.random.choice(tenants) if tenants else ""
        if draw < 0.15:
            seat.up = False
        elif draw < 0.35:
            self.restart(seat)
        elif draw < 0.42:
            seat.leaving = not seat.leaving
        elif draw < 0.5:
            for each in self.seats:
                if not each.up:
                    self.restart(each)
        elif draw < 0.55:
            self.tenants[f"late-{self.random.randrange(10**6)}"] = Demand(
                self.random.randrange(CAPACITY), self.spread()
            )
        elif draw < 0.6:
            self.tenants.pop(tenant_id, None)
        elif draw < 0.75 and tenant_id:
            self.tenants[tenant_id].rate = min(
                20 * CAPACITY, 1 + round(self.tenants[tenant_id].rate * self.random.choice((0.1, 0.5, 2, 8)))
            )
        elif draw < 0.85 and tenant_id:
            self.tenants[tenant_id].weights = [100.0 if part == 3 else 1.0 for part in range(PARTS)]
        elif draw < 0.88:
            for each in self.seats:
                each.leaving = True
        elif draw < 0.95:
            for each in self.seats:
                each.leaving = False
        elif draw < 0.97:
            for each in self.seats:
                each.up = False

    def nonsense(self, view: View) -> View:
        """The view as replicas that miss reports, contradict each other or talk nonsense would have it."""
        servers: Sequence[Server] = view.servers
        loads: Mapping[str, Sequence[KeyLoad]] = view.loads
        if self.random.random() < 0.3:
            loads = {each: told for each, told in loads.items() if self.random.random() < 0.7}
        if self.random.random() < 0.2:
            loads = {each: [self._absurd(load) for load in told] for each, told in loads.items()}
        if self.random.random() < 0.1:
            loads = {**loads, "nobody": [KeyLoad(1 << 63, 10**9)]}
        if self.random.random() < 0.1:
            servers = [
                replace(each, capacity=Rate(self.random.choice(_ABSURD_CAPACITIES)))
                if self.random.random() < 0.3
                else each
                for each in servers
            ]
        return replace(view, servers=servers, loads=loads)

    def _absurd(self, load: KeyLoad) -> KeyLoad:
        """One line of a report, perhaps wrong."""
        draw = self.random.random()
        if draw < 0.1:
            return replace(load, rate=self.random.choice(_ABSURD_RATES), warm_tokens=-3, in_flight=-1)
        if draw < 0.2:
            return replace(load, tenant_id=self.random.choice(["", "somebody-else"]))
        if draw < 0.25:
            return replace(load, first_key=self.random.getrandbits(64))
        return load

    def shuffled(self, view: View) -> View:
        """The same view in another order."""

        def mixed(items: Iterable[_Item]) -> list[_Item]:
            listed = list(items)
            return self.random.sample(listed, len(listed))

        return View(
            mixed(view.servers),
            dict(mixed(view.reserved.items())),
            {each: mixed(told) for each, told in mixed(view.loads.items())},
        )
