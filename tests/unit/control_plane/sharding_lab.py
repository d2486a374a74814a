"""A fleet that serves what an Assigner assigns, for tests of the sharder's core."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from common.shard_map import tenant_keys
from control_plane.core.sharding.assigner import Assigner
from control_plane.core.sharding.values import Cause, KeyLoad, Life, Placement, Round, Server, View
from model_units.units import MilliModelUnitsPerMinute as Rate

C = 100_000
"""Capacity of a replica, mMU per minute."""

PARTS = 16
ROUND_MS = 15_000


def fleet(count: int, capacity: int = C) -> list[Server]:
    return [Server(f"r{i:03}", f"seat-{i:03}", Rate(capacity)) for i in range(count)]


def zipf(tenants: int, total: float, exponent: float = 1.0) -> dict[str, int]:
    """Rates of tenants that share a total so that the n-th has 1/n^exponent of the first."""
    weights = [1 / (at + 1) ** exponent for at in range(tenants)]
    return {f"t{at}": round(total * weight / sum(weights)) for at, weight in enumerate(weights)}


def subset(placement: Placement, tenant_id: str) -> set[str]:
    """Every replica that serves a tenant."""
    first, end = tenant_keys(tenant_id)
    keys = [each.first_key for each in placement.slices]
    return {
        replica_id
        for at, each in enumerate(placement.slices)
        if each.first_key < end and (keys[at + 1] if at + 1 < len(keys) else 1 << 64) > first
        for replica_id in each.replica_ids
    }


@dataclass
class Lab:
    """One model: servers, true rates, and the rounds of its sharder.

    Attributes:
        servers: There are.
        rates: True rate by tenant, mMU per minute.
        reserved: By tenant.
        placement: In force.
        now_ms: Wall clock.
        churn: Load moved by cause, as a part of all load, summed over rounds.
    """

    servers: list[Server]
    rates: dict[str, int]
    reserved: dict[str, Rate] = field(default_factory=dict)
    warm_per_rate: float = 0.0
    token_milli_mu: float = 0.0
    assigner: Assigner = field(default_factory=Assigner)
    placement: Placement | None = None
    now_ms: int = 1_700_000_000_000
    churn: Counter[Cause] = field(default_factory=Counter)
    _averages: dict[tuple[str, int], KeyLoad] = field(default_factory=dict)

    def loads(self) -> dict[str, list[KeyLoad]]:
        """What arrives now: every tenant's keys evenly, over its subset by capacity."""
        capacity = {server.replica_id: max(1, server.capacity) for server in self.servers}
        loads: dict[str, list[KeyLoad]] = {server.replica_id: [] for server in self.servers}
        if self.placement is None:
            return loads
        for tenant_id, rate in self.rates.items():
            first = tenant_keys(tenant_id)[0]
            for part in range(PARTS):
                key = first + (part << 28)
                there = [r for r in serving(self.placement, key) if r in capacity]
                total = sum(capacity[r] for r in there)
                for replica_id in there:
                    own = round(rate / PARTS * capacity[replica_id] / total)
                    loads[replica_id].append(KeyLoad(key, own, round(own * self.warm_per_rate), 1, tenant_id))
        return loads

    def reports(self) -> dict[str, list[KeyLoad]]:
        """What the replicas say of it after another ROUND_MS: averages that halve in 20 s."""
        fresh = 1.0 if not self._averages else 1.0 - 0.5 ** (ROUND_MS / 20_000)
        now = {(replica_id, each.first_key): each for replica_id, parts in self.loads().items() for each in parts}
        there = {server.replica_id for server in self.servers}
        averages: dict[tuple[str, int], KeyLoad] = {}
        for at in now.keys() | self._averages.keys():
            arrives, before = now.get(at), self._averages.get(at)
            known = arrives or before
            if known is None or at[0] not in there:
                continue
            rate = round(fresh * (arrives.rate if arrives else 0) + (1 - fresh) * (before.rate if before else 0))
            averages[at] = replace(known, rate=rate, in_flight=1 if arrives else 0)
        self._averages = averages
        said: dict[str, list[KeyLoad]] = {replica_id: [] for replica_id in there}
        for (replica_id, _), each in sorted(averages.items()):
            said[replica_id].append(each)
        return said

    def round(self, *, balance: bool = True, loads: Mapping[str, Sequence[KeyLoad]] | None = None) -> Round:
        """A round ROUND_MS after the one before."""
        view = View(
            self.servers, self.reserved, self.reports() if loads is None else loads, token_milli_mu=self.token_milli_mu
        )
        made = self.assigner.round(view, self.placement, incarnation=7, now_ms=self.now_ms, balance=balance)
        self.now_ms += ROUND_MS
        if made.placement is not None:
            if self.placement is not None:
                assert made.placement.generation > self.placement.generation
                for move in made.placement.moves:
                    self.churn[move.cause] += move.load / max(1, sum(self.rates.values()))  # type: ignore[assignment]
            self.placement = made.placement
        return made

    def settle(self, rounds: int = 12) -> Placement:
        """Rounds until nothing has moved for a while."""
        for _ in range(rounds):
            self.round()
        self.churn.clear()
        assert self.placement is not None
        return self.placement

    def evenness(self) -> float:
        """Utilisation of the busiest replica over the mean."""
        used = {replica_id: sum(each.rate for each in parts) for replica_id, parts in self.loads().items()}
        capacity = {server.replica_id: server.capacity for server in self.servers}
        mean = sum(used.values()) / sum(capacity.values())
        return max(used[replica_id] / capacity[replica_id] for replica_id in used) / mean

    def lose(self, replica_id: str) -> None:
        self.servers = [server for server in self.servers if server.replica_id != replica_id]

    def drain(self, replica_id: str) -> None:
        self.servers = [
            replace(server, life=Life.LEAVING) if server.replica_id == replica_id else server for server in self.servers
        ]

    def come(self, replica_id: str, seat: str) -> None:
        self.servers.append(Server(replica_id, seat, Rate(C)))


def serving(placement: Placement, key: int) -> tuple[str, ...]:
    """Who serves a key."""
    return placement.slices[bisect_right(placement.slices, key, key=lambda each: each.first_key) - 1].replica_ids
