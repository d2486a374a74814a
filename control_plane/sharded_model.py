"""One model in the sharder's hands: what is in force, what changed, and what the next commit writes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final, Protocol

from common.clock import NS_PER_S
from common.shard_map import Generation
from control_plane.assignment_messages import MOVES_MAX, to_message
from control_plane.core.happenings import WARNING, Happening
from control_plane.core.sharding.storm import StormWait
from control_plane.core.sharding.values import Placement, Round, Server, View
from control_plane.metrics import ControlPlaneMetrics
from control_plane.replica_loads import LastReport
from fairlead.engine.v1 import engine_pb2
from fairlead.sharding.v1 import sharding_pb2
from model_units.units import MilliModelUnitsPerMinute as Rate

RETURN_S: Final = 10.0
"""After an assignment was recovered, replicas that it names may take so long to register again: twice their lease."""

ASKED_TIMES: Final = 2
"""A holder that is silent so many times is not waited for: it is gone, or says later that it holds something newer."""


class Assigning(Protocol):
    """The sharder's core for one model, as control_plane.core.sharding.assigner.Assigner."""

    def round(self, view: View, previous: Placement | None, *, incarnation: int, now_ms: int, balance: bool) -> Round:
        """Decides."""
        ...


@dataclass(frozen=True, slots=True)
class Commit:
    """What is to be written.

    Attributes:
        happenings: Events.
        placement: The new one; None where it stays.
        value: The new one as it is stored.
    """

    happenings: tuple[Happening, ...] = ()
    placement: Placement | None = None
    value: bytes = b""


class ShardedModel:
    """Follows one model for one term.

    Args:
        model_id: The model.
        assigner: Decides.
        storm_wait_ns: How long losses are collected.
        metrics: What to tell Prometheus.

    Attributes:
        placement: In force, as stored; None where there is none that can be read.
        revision: Of the store, of the stored value; 0 where there is none.
        asked_ns: When agents and routers were asked last for what they hold, monotonic.
        asked: Agents and routers that need not be asked before a first assignment is made.
        pending: Events that no commit has written yet.
        balance_due: Whether its next round is a regular one.
    """

    def __init__(self, model_id: str, assigner: Assigning, storm_wait_ns: int, metrics: ControlPlaneMetrics) -> None:
        self.model_id = model_id
        self.placement: Placement | None = None
        self.revision = 0
        self.asked_ns = 0
        self.asked: set[str] = set()
        self.pending: list[Happening] = []
        self.balance_due = False
        self._assigner = assigner
        self._storm = StormWait(storm_wait_ns)
        self._metrics = metrics
        self._servers: Sequence[Server] = ()
        self._reserved: Mapping[str, Rate] = {}
        self._settled: tuple[object, ...] | None = None
        self._return_until_ns = 0
        self._dead: Set[str] = frozenset()
        self._silent_holders: Counter[str] = Counter()
        self._round = Round(None)

    @property
    def generation(self) -> Generation:
        """Of the placement in force."""
        return self.placement.generation if self.placement is not None else Generation()

    @property
    def has_changed(self) -> bool:
        """Whether replicas, reservations or the placement are others than after the last round."""
        return self._settled != self._state()

    def _state(self) -> tuple[object, ...]:
        return self._servers, self._reserved, self.generation

    def sees(self, servers: Sequence[Server], reserved: Mapping[str, Rate]) -> None:
        """Takes the fleet as it is now.

        Args:
            servers: That can serve.
            reserved: Rate by tenant.
        """
        self._servers, self._reserved = servers, reserved

    def noticed_dead(self, dead: Set[str]) -> None:
        """Says it when replicas stop reporting.

        Args:
            dead: Registered replicas, of any model, that are taken for dead.
        """
        mine = dead & (self.placement.members() if self.placement is not None else set())
        for replica_id in sorted(mine - self._dead):
            self.pending.append(
                Happening(
                    "REPLICA_SILENT",
                    WARNING,
                    self.model_id,
                    f"replica {replica_id} is registered and does not report any more: others serve its tenants; see "
                    "whether its host and agent live",
                    {"replica_id": replica_id},
                )
            )
        self._dead = mine

    def has_asked(self, answered: Set[str], silent: Set[str], now_ns: int) -> None:
        """Notes who was asked for what they hold: who does not answer is asked again, ASKED_TIMES in all.

        Args:
            answered: Names of those that answered.
            silent: Names of those that did not.
            now_ns: Monotonic time.
        """
        self.asked_ns = now_ns
        self._silent_holders.update(silent)
        self.asked |= answered | {name for name in silent if self._silent_holders[name] >= ASKED_TIMES}

    def recovered(self, now_ns: int) -> None:
        """Notes that the placement in force was taken from those that still held it.

        Args:
            now_ns: Monotonic time.
        """
        self._return_until_ns = now_ns + round(RETURN_S * NS_PER_S)

    def wait_ns(self, registered: Iterable[engine_pb2.Replica], now_ns: int) -> int:
        """How long to wait before the next round; 0 means none.

        Args:
            registered: The model's replicas in the store, whatever their state.
            now_ns: Monotonic time.
        """
        if self.placement is None:
            return 0
        members = self.placement.members()
        if members <= {replica.replica_id for replica in registered}:
            self._return_until_ns = 0
        elif now_ns < self._return_until_ns:
            return self._return_until_ns - now_ns
        lost = members - {server.replica_id for server in self._servers}
        return self._storm.remaining_ns(len(lost) / len(members), now_ns)

    def round(
        self,
        reports: Mapping[str, LastReport],
        token_milli_mu: float,
        *,
        incarnation: int,
        wall_ns: int,
        balance: bool,
    ) -> Commit:
        """Computes the next placement; may take a second for a wide fleet, and runs in any thread.

        Args:
            reports: What the model's replicas reported last; nobody else changes the mapping.
            token_milli_mu: Price of one prompt token.
            incarnation: For a first placement.
            wall_ns: Nanoseconds since the Unix epoch.
            balance: Whether it is a regular round.
        """
        began_s = time.perf_counter()
        loads = {replica_id: last.loads() for replica_id, last in reports.items()}
        view = View(self._servers, self._reserved, loads, token_milli_mu)
        now_ms = wall_ns // 1_000_000
        self._round = self._assigner.round(
            view, self.placement, incarnation=incarnation, now_ms=now_ms, balance=balance
        )
        self._metrics.compute_seconds.labels(self.model_id).observe(time.perf_counter() - began_s)
        self._metrics.replicas.labels(self.model_id).set(len(self._servers))
        self._metrics.imbalance.labels(self.model_id).set(self._imbalance())
        for happened in self._round.happened:
            facts = {"tenant_id": happened.tenant_id, **happened.facts} if happened.tenant_id else happened.facts
            self.pending.append(Happening(happened.kind, WARNING, self.model_id, happened.message, facts))
        return self.write(self._round.placement, wall_ns)

    def write(self, placement: Placement | None, wall_ns: int) -> Commit:
        """What to write for a placement, with the events that wait.

        Args:
            placement: The new one; None where it stays.
            wall_ns: Nanoseconds since the Unix epoch.
        """
        happenings = tuple(self.pending)
        if placement is None:
            return Commit(happenings)
        return Commit(happenings, placement, to_message(self.model_id, placement, wall_ns).SerializeToString())

    def committed(self, commit: Commit, revision: int) -> None:
        """Notes what was written.

        Args:
            commit: That.
            revision: The store's after it.
        """
        del self.pending[: len(commit.happenings)]
        placement = commit.placement
        if placement is None:
            return
        self.placement, self.revision = placement, revision
        self._metrics.assignments.labels(self.model_id).inc()
        self._metrics.moved.labels(self.model_id).inc(placement.moved)
        for move in placement.moves[:MOVES_MAX]:
            self._metrics.moves.labels(self.model_id, move.cause.value).inc()
        frozen = sum(each.frozen_until_ms > 0 for each in placement.slices)
        self._metrics.frozen_slices.labels(self.model_id).set(frozen)

    def settled(self) -> None:
        """Notes that the round for the fleet as it is was made and written."""
        self._settled = self._state()

    def heat(self) -> list[sharding_pb2.ReplicaHeat]:
        """How busy the replicas were in the last round, sorted."""
        slices: dict[str, int] = {}
        for each in self.placement.slices if self.placement is not None else ():
            for replica_id in each.replica_ids:
                slices[replica_id] = slices.get(replica_id, 0) + 1
        return [
            sharding_pb2.ReplicaHeat(
                replica_id=server.replica_id,
                model_id=self.model_id,
                load_milli_mu_per_minute=self._round.heat.get(server.replica_id, 0),
                capacity_milli_mu_per_minute=server.capacity,
                slices=slices.get(server.replica_id, 0),
            )
            for server in self._servers
        ]

    def slice_heat(self) -> list[sharding_pb2.SliceHeat]:
        """How busy the slices were in the last round, sorted."""
        return [
            sharding_pb2.SliceHeat(model_id=self.model_id, first_key=first_key, load_milli_mu_per_minute=load)
            for first_key, load in sorted(self._round.slice_loads.items())
        ]

    def _imbalance(self) -> float:
        """Largest over mean utilisation; 0 where nothing is reported."""
        heat = self._round.heat
        parts = [
            heat[server.replica_id] / max(1, server.capacity) for server in self._servers if server.replica_id in heat
        ]
        return max(parts) * len(parts) / sum(parts) if parts and sum(parts) > 0 else 0.0
