"""The sharder: which replicas serve which keys, by the product's core.

    records, breaking streams --> health rounds, at once      replicas that are gone or leave, and new ones
    load by key, of each replica --> regular rounds           besides: cuts, sizes, evenness, overlap

Every placement goes to the routers as the message that the product stores, a store's delay later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from common.shard_map import ShardMap
from control_plane.assignment_messages import to_message
from control_plane.core.heartbeats import Heartbeats
from control_plane.core.sharding.assigner import Assigner
from control_plane.core.sharding.storm import StormWait
from control_plane.core.sharding.values import KeyLoad, Placement, Round, View
from control_plane.fleet_views import server_of
from fairlead.engine.v1 import engine_pb2
from model_units.cost import CostProfile
from model_units.units import MILLI_PER_REPLICA_SECOND
from model_units.units import MilliModelUnitsPerMinute as Rate
from simulation.books import Rearrangement
from simulation.kernel import NS_PER_S, Loop
from simulation.registry import Registry
from simulation.replica import Replica
from simulation.router import Router

BALANCE_INTERVAL_S: Final = 15.0
"""Between regular rounds; source: the control plane's."""

# The control plane's default settings: control_plane/config.py and the pause after a change in its sharder.
_STORM_WAIT_NS: Final = NS_PER_S
_SETTLE_S: Final = 0.1
# How often it judges who is alive, and how old what replicas said of their load may be. Source: its replica_loads.py,
# where reports come every 2 s; here they are asked for in the round, and in between only now and then.
_JUDGE_S: Final = 0.5
_ASK_S: Final = 5.0


class Sharded(NamedTuple):
    """A model to be sharded.

    Attributes:
        reserved: Reserved rate by tenant, mMU per minute.
        profile: Prices its requests.
    """

    reserved: Mapping[str, Rate]
    profile: CostProfile


class Sharder:
    """Keeps every model's placement true to the fleet.

    Args:
        loop: Virtual time.
        registry: The replicas' records.
        models: What it assigns, by model.
        replicas: Every replica that ever was, by id: it has a load stream to each.
        routers: They follow the placements.
        delay_ns: Of the store.
        mode: "on"; "fixed" for no regular rounds after the first placement; "whole_fleet" for no placement at all.
        newest: The assignment in the store, by model, which it keeps.

    Attributes:
        rearrangements: What every placement after a model's first one changed.
    """

    def __init__(
        self,
        loop: Loop,
        registry: Registry,
        models: Mapping[str, Sharded],
        replicas: Mapping[str, Replica],
        routers: Sequence[Router],
        delay_ns: int,
        mode: str,
        newest: dict[str, ShardMap],
    ) -> None:
        self._loop = loop
        self._registry = registry
        self._models = models
        self._replicas = replicas
        self._routers = routers
        self._delay_ns = delay_ns
        self._assigners = {model_id: Assigner() for model_id in models}
        self._placements: dict[str, Placement] = {}
        self._storms = {model_id: StormWait(_STORM_WAIT_NS) for model_id in models}
        self._beats = Heartbeats()
        self._dead: frozenset[str] = frozenset()
        self._loads: dict[str, tuple[KeyLoad, ...]] = {}
        self._look_planned = False
        self._newest = newest
        self.rearrangements: list[Rearrangement] = []
        if mode == "whole_fleet":
            return
        registry.watch(self._on_record)
        loop.after(_JUDGE_S, self._judge)
        loop.after(_ASK_S, self._listen)
        if mode == "on":
            loop.after(BALANCE_INTERVAL_S, self._regular)

    # --- what it hears

    def _on_record(self, _replica_id: str, _record: engine_pb2.Replica | None) -> None:
        self._soon(_SETTLE_S)

    def _judge(self, _: object) -> None:
        """Who stopped reporting is dead before its record says so."""
        now_ns, beats, replicas = self._loop.now_ns, self._beats, self._replicas
        for replica_id in self._registry.records:
            replica = replicas[replica_id]
            if not replica.alive:
                beats.gone(replica_id)
            elif not replica.frozen:
                beats.heard(replica_id, now_ns)
        beats.keep(self._registry.records.keys())
        dead = beats.dead(now_ns)
        if dead != self._dead:
            self._dead = dead
            self._soon(_SETTLE_S)
        self._loop.after(_JUDGE_S, self._judge)

    def _listen(self, _: object) -> None:
        self._ask()
        self._loop.after(_ASK_S, self._listen)

    def _ask(self) -> None:
        """Load by key of everybody who answers; of the others the last that they said."""
        records, loads = self._registry.records, self._loads
        for gone in loads.keys() - records.keys():
            del loads[gone]
        for replica_id in records:
            replica = self._replicas[replica_id]
            if replica.alive and not replica.frozen:
                loads[replica_id] = tuple(
                    KeyLoad(
                        each.first_key, each.rate_milli_mu_per_minute, each.warm_tokens, each.in_flight, each.tenant_id
                    )
                    for each in replica.key_loads()
                )

    # --- rounds

    def _soon(self, seconds: float) -> None:
        if not self._look_planned:
            self._look_planned = True
            self._loop.after(seconds, self._health)

    def _health(self, _: object) -> None:
        self._look_planned = False
        for model_id in sorted(self._models):
            self._round(model_id, balance=False)

    def _regular(self, _: object) -> None:
        self._ask()
        for model_id in sorted(self._models):
            self._round(model_id, balance=True)
        self._loop.after(BALANCE_INTERVAL_S, self._regular)

    def _round(self, model_id: str, *, balance: bool) -> None:
        model, previous = self._models[model_id], self._placements.get(model_id)
        servers = [
            server
            for replica_id, record in sorted(self._registry.records.items())
            if record.model_id == model_id and replica_id not in self._dead
            if (server := server_of(record)) is not None
        ]
        if previous is not None:
            named = previous.members()
            lost = named - {server.replica_id for server in servers}
            remaining_ns = self._storms[model_id].remaining_ns(len(lost) / len(named), self._loop.now_ns)
            if remaining_ns:
                self._soon(remaining_ns / NS_PER_S)
                return
        view = View(servers, model.reserved, self._loads, model.profile.a * MILLI_PER_REPLICA_SECOND)
        now_ms = self._loop.wall_ns() // 1_000_000
        done = self._assigners[model_id].round(view, previous, incarnation=1, now_ms=now_ms, balance=balance)
        if done.placement is not None:
            self._write(model_id, done.placement, done, first=previous is None)

    def _write(self, model_id: str, placement: Placement, done: Round, *, first: bool) -> None:
        self._placements[model_id] = placement
        self._newest[model_id] = ShardMap(to_message(model_id, placement, self._loop.wall_ns()))
        if not first:
            self.rearrangements.append(
                Rearrangement(
                    at_s=self._loop.now_ns / NS_PER_S,
                    model_id=model_id,
                    reason=placement.reason,
                    load=sum(done.slice_loads.values()),
                    moves=placement.moves,
                )
            )
        self._loop.at(self._loop.now_ns + self._delay_ns, self._tell, self._newest[model_id])

    def _tell(self, assignment: ShardMap) -> None:
        for router in self._routers:
            router.assign(assignment)
