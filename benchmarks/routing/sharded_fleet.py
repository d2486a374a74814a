"""A fleet that serves what an Assigner assigns: exact loads, no requests, no time but rounds.

Every tenant's keys bear its load evenly, and every replica of a subset its part by capacity, as routers by cost come
to.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from common.shard_map import tenant_keys
from control_plane.core.sharding.assigner import Assigner
from control_plane.core.sharding.values import Cause, KeyLoad, Life, Placement, Round, Server, View
from model_units.units import REPLICA_CAPACITY
from model_units.units import MilliModelUnitsPerMinute as Rate

ROUND_MS: Final = 15_000
"""Between regular rounds; the control plane's."""
HALF_LIFE_MS: Final = 20_000
"""Of the averages that agents report; theirs."""

_PARTS: Final = 16
_PART_BITS: Final = 28


def zipf(tenants: int, total: float) -> dict[str, int]:
    """Rates of tenants of which the n-th has 1/n of the first, mMU per minute."""
    weights = [1.0 / rank for rank in range(1, tenants + 1)]
    return {f"tenant-{rank}": round(total * weight / sum(weights)) for rank, weight in enumerate(weights, 1)}


class ShardedFleet:
    """One model, its replicas and its sharder.

    Args:
        replicas: How many.
        rates: By tenant, mMU per minute.

    Attributes:
        rates: As given; may be changed between rounds.
        moved: Load that changed its replica by cause, mMU per minute, over all rounds since `forget`.
        round_s: CPU time of each round.
    """

    def __init__(self, replicas: int, rates: Mapping[str, int]) -> None:
        self.rates = dict(rates)
        self.moved: Counter[Cause] = Counter()
        self.round_s: list[float] = []
        self._servers = [_server(f"replica-{at:03}", f"seat-{at:03}") for at in range(replicas)]
        self._starts = replicas
        self._assigner = Assigner()
        self._placement: Placement | None = None
        self._now_ms = 1_700_000_000_000
        self._told: dict[tuple[str, int], KeyLoad] = {}

    @property
    def replica_ids(self) -> list[str]:
        """Of the replicas there are."""
        return [server.replica_id for server in self._servers]

    @property
    def load(self) -> int:
        """Of all tenants, mMU per minute."""
        return sum(self.rates.values())

    def round(self, *, balance: bool = True, after_ms: int = ROUND_MS) -> Round:
        """The sharder's next round.

        Args:
            balance: Whether it is a regular one.
            after_ms: Since the one before.
        """
        self._now_ms += after_ms
        view = View(list(self._servers), {}, self._reports(after_ms))
        began_s = time.process_time()
        made = self._assigner.round(view, self._placement, incarnation=1, now_ms=self._now_ms, balance=balance)
        self.round_s.append(time.process_time() - began_s)
        if made.placement is not None:
            if self._placement is not None:
                for move in made.placement.moves:
                    self.moved[move.cause] += move.load
            self._placement = made.placement
        return made

    def settle(self, rounds: int) -> None:
        """Regular rounds, whose moves are forgotten."""
        for _ in range(rounds):
            self.round()
        self.moved.clear()

    def lose(self, replica_id: str) -> None:
        """A replica is gone."""
        self._servers = [server for server in self._servers if server.replica_id != replica_id]

    def drain(self, replica_id: str) -> None:
        """A replica is about to leave."""
        self._servers = [
            replace(server, life=Life.LEAVING) if server.replica_id == replica_id else server
            for server in self._servers
        ]

    def restart(self, replica_id: str) -> None:
        """A replica leaves, and another takes its seat."""
        seat = next(server.seat for server in self._servers if server.replica_id == replica_id)
        self.lose(replica_id)
        self._starts += 1
        self._servers.append(_server(f"replica-{self._starts:03}", seat))

    def _arrives(self) -> dict[tuple[str, int], KeyLoad]:
        """Load now by replica and part of the key space."""
        arrives: dict[tuple[str, int], KeyLoad] = {}
        if self._placement is None:
            return arrives
        there = {server.replica_id: max(1, server.capacity) for server in self._servers}
        firsts = [each.first_key for each in self._placement.slices]
        for tenant_id, rate in self.rates.items():
            first = tenant_keys(tenant_id)[0]
            for part in range(_PARTS):
                key = first + (part << _PART_BITS)
                subset = self._placement.slices[bisect_right(firsts, key) - 1].replica_ids
                serving = [replica_id for replica_id in subset if replica_id in there]
                whole = sum(there[replica_id] for replica_id in serving)
                for replica_id in serving:
                    own = round(rate / _PARTS * there[replica_id] / whole)
                    arrives[replica_id, key] = KeyLoad(key, own, 0, 1, tenant_id)
        return arrives

    def _reports(self, after_ms: int) -> dict[str, list[KeyLoad]]:
        """What the replicas say of it: averages that halve in HALF_LIFE_MS."""
        fresh = 1.0 - 0.5 ** (after_ms / HALF_LIFE_MS) if self._told else 1.0
        now, there = self._arrives(), set(self.replica_ids)
        told: dict[tuple[str, int], KeyLoad] = {}
        for at in sorted(now.keys() | self._told.keys()):
            known = now.get(at) or self._told.get(at)
            if known is None or at[0] not in there:
                continue
            arrived, before = now[at].rate if at in now else 0, self._told[at].rate if at in self._told else 0
            rate = round(fresh * arrived + (1.0 - fresh) * before)
            told[at] = replace(known, rate=rate, in_flight=int(at in now))
        self._told = told
        said: dict[str, list[KeyLoad]] = {replica_id: [] for replica_id in there}
        for (replica_id, _), each in told.items():
            said[replica_id].append(each)
        return said


def _server(replica_id: str, seat: str) -> Server:
    return Server(replica_id, seat, Rate(REPLICA_CAPACITY))
